"""`manage.py seed`: products, if there are none."""

from django.core.management.base import BaseCommand

from dss_django.locks import lock
from store import catalogue
from store.models import Product

PRODUCTS = [
    ("leader-mug", "Leader mug", "One at a time. Holds 350 ml, and a majority.", 1400, 24, "mug"),
    ("log-notebook", "Append-only notebook", "192 pages. What is written stays written.", 1850, 40, "notebook"),
    ("lease-lamp", "Lease lamp", "Goes out by itself unless you renew it.", 6900, 8, "lamp"),
    ("follower-plant", "Follower", "A pothos. Grows towards the leader.", 2400, 12, "plant"),
    ("steady-clock", "Steady clock", "Never goes back, even when its battery is low.", 5200, 6, "clock"),
    ("quorum-tote", "Quorum tote", "Two of three handles are enough.", 2200, 3, "tote"),
]


class Command(BaseCommand):
    help = "Add the products, if there are none."

    @lock("seed")
    def handle(self, **options):
        if Product.objects.exists():
            return
        for slug, name, text, price, stock, art in PRODUCTS:
            Product.objects.create(slug=slug, name=name, text=text, price=price, stock=stock, art=art)
        catalogue.forget()

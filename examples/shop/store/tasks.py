"""What happens after a payment. `manage.py dss_worker` runs it. Each task may be run twice, and is harmless to repeat."""

from datetime import timedelta
from importlib.util import find_spec

from django.conf import settings
from django.core.mail import send_mail
from django.utils import timezone

from dss_django.locks import lock
from store.models import Invoice, Order

if find_spec("django.tasks"):
    from django.tasks import task
else:
    from django_tasks import task

REVIEW_AFTER = timedelta(minutes=2)


@task(priority=10)
@lock("invoice/{order_id}")
def make_invoice(order_id):
    """Write the invoice, then mail it. The lock keeps a second run of the task from working at the same time."""
    order = Order.objects.get(pk=order_id)
    lines = [f"{line.quantity:>2}  {line.product.name:<22} {line.total / 100:>8.2f} €" for line in order.lines.all()]
    text = "\n".join([*lines, "", f"{'Total':<27}{order.total / 100:>8.2f} €"])
    invoice, is_new = Invoice.objects.get_or_create(order=order, defaults={"text": text})
    if is_new or order.mailed_at is None:
        mail_invoice.enqueue(order_id)
    return invoice.number


@task(queue_name="mails")
@lock("mail/{order_id}")
def mail_invoice(order_id):
    """At least once: if the worker dies between the two statements, the customer gets the mail twice."""
    order = Order.objects.select_related("invoice").get(pk=order_id)
    if order.mailed_at is None:
        send_mail(f"Your invoice {order.invoice.number}", order.invoice.text, settings.DEFAULT_FROM_EMAIL, [order.email])
        Order.objects.filter(pk=order_id).update(mailed_at=timezone.now())
        ask_for_review.using(run_after=timezone.now() + REVIEW_AFTER).enqueue(order_id)


@task(queue_name="mails", priority=-10)
def ask_for_review(order_id):
    order = Order.objects.get(pk=order_id)
    send_mail("How do you like it?", "Please tell us.", settings.DEFAULT_FROM_EMAIL, [order.email])

"""Paying an order, once, and taking its products from the stock."""

from functools import partial

from django.db import transaction
from django.utils import timezone

from dss_django.locks import client, fencing_token
from store import catalogue, tasks
from store.models import Order, Product

STOCK_WAIT_S = 5


class SoldOut(Exception):
    """There are not enough pieces of a product."""


def pay(order):
    """Call it under the lock `order/<pk>`.

    Raises:
        SoldOut
        LockTimeout: others pay orders with the same products.
        StaleToken: this process was paused until its lease was over. Another one got the lock and has written. Nothing was changed here.
    """
    lines = list(order.lines.all())
    locks = {line.product_id: f"product/{line.product_id}" for line in lines}
    # All products in one step: two orders with the same products cannot wait for each other.
    with client().locks(locks.values(), wait=STOCK_WAIT_S) as held, transaction.atomic():
        for line in lines:
            product = Product.objects.get(pk=line.product_id)
            if product.stock < line.quantity:
                raise SoldOut(product.name)
            product.stock -= line.quantity
            product.save(fencing_token=held.tokens[locks[product.pk]], update_fields=["stock"])
        # A real shop charges the card here, with the order's id as the idempotency key.
        order.paid_at = timezone.now()
        order.save(fencing_token=fencing_token(), update_fields=["paid_at"])
        transaction.on_commit(partial(_paid, order.pk))


def _paid(order_id):
    catalogue.forget()
    request_invoice(order_id)


def request_invoice(order_id):
    """If the process ends before this, the page of the order has a button for it: to make an invoice twice makes one."""
    task = tasks.make_invoice.enqueue(str(order_id))
    Order.objects.filter(pk=order_id).update(invoice_task=task.id)

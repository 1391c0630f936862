"""The pages."""

import time

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.http import Http404, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from dss_client import LockLost, LockTimeout
from dss_django.fenced import StaleToken
from dss_django.locks import lock
from dss_django.tasks.compat import TaskResultDoesNotExist
from store import cart, payment, tasks
from store.catalogue import catalogue
from store.models import Invoice, Line, Order, Product

PAY_WAIT_S = 5


@require_GET
def home(request):
    began = time.perf_counter()
    products = catalogue()
    return render(request, "store/home.html", {"products": products, "took_ms": (time.perf_counter() - began) * 1000})


# -------------------------------------------------------------------- cart


@require_GET
def show_cart(request):
    return _cart(request)


@require_POST
def change_cart(request, slug):
    if all(one["slug"] != slug for one in catalogue()):
        raise Http404
    try:
        cart.change(request, slug, int(request.POST["quantity"]))
    except (KeyError, ValueError):
        return HttpResponse("`quantity` is a number", status=400, content_type="text/plain")
    return redirect("cart")


@require_POST
def checkout(request):
    email, lines = request.POST.get("email", "").strip(), cart.read(request)
    try:
        validate_email(email)
    except ValidationError:
        return _cart(request, problem="Please enter your address.", email=email, status=400)
    if not lines:
        return redirect("cart")
    with transaction.atomic():
        order = Order.objects.create(email=email)
        products = {product.slug: product for product in Product.objects.filter(slug__in=[line["slug"] for line in lines])}
        Line.objects.bulk_create(
            Line(order=order, product=products[line["slug"]], quantity=line["quantity"], price=products[line["slug"]].price)
            for line in lines
        )
    request.session["cart"] = {}
    return redirect(order)


def _cart(request, problem="", email="", status=200):
    lines = cart.read(request)
    context = {
        "lines": lines,
        "total": sum(line["total"] for line in lines),
        "problem": problem,
        "email": email,
        "quantities": range(1, cart.QUANTITY_MAX + 1),
    }
    return render(request, "store/cart.html", context, status=status)


# ------------------------------------------------------------------ orders


@require_GET
def show_order(request, order_id):
    return _order(request, get_object_or_404(Order, pk=order_id))


def busy(request, order_id):
    """Another request is paying this order, and has taken long."""
    order = get_object_or_404(Order, pk=order_id)
    return _order(request, order, "This order is being paid. Please look again in a moment.", status=409)


@require_POST
@lock("order/{order_id}", wait=PAY_WAIT_S, busy=busy)
def pay(request, order_id):
    """Two clicks pay once, also in two processes."""
    order = get_object_or_404(Order, pk=order_id)
    if order.paid_at is None:
        try:
            payment.pay(order)
        except payment.SoldOut as sold_out:
            return _order(request, order, f"{sold_out} is sold out. You have not been charged.", status=409)
        except LockTimeout:
            return busy(request, order_id)
        except (LockLost, StaleToken):
            # This process was paused for longer than its leases. The page says what has happened.
            pass
    elif not order.invoice_task:
        payment.request_invoice(order.pk)
    return redirect(order)


@require_GET
def status(request, order_id):
    """For the script of the order's page."""
    return JsonResponse(_state(get_object_or_404(Order, pk=order_id)))


@require_GET
def show_invoice(request, order_id):
    invoice = get_object_or_404(Invoice.objects.select_related("order"), order_id=order_id)
    return render(request, "store/invoice.html", {"invoice": invoice, "order": invoice.order})


def _order(request, order, problem="", status=200):
    context = {"order": order, "state": _state(order), "problem": problem}
    return render(request, "store/order.html", context, status=status)


def _state(order):
    """What has happened to an order."""
    state = {"paid": order.paid_at is not None, "mailed": order.mailed_at is not None, "token": order.fencing_token}
    state["invoice"] = Invoice.objects.filter(order=order).exists()
    if order.invoice_task:
        try:
            result = tasks.make_invoice.get_result(order.invoice_task)
        except TaskResultDoesNotExist:
            # Results are kept for a day.
            pass
        else:
            state |= {"task": result.status, "attempts": result.attempts, "worker": (result.worker_ids or [""])[-1]}
    return state

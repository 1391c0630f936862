"""The cart: a dictionary in the session, from the slug of a product to a quantity."""

from store.catalogue import catalogue

QUANTITY_MAX = 9


def read(request):
    """The products in the cart, each with `quantity` and `total`."""
    cart = request.session.get("cart", {})
    found = [one for one in catalogue() if one["slug"] in cart]
    return [{**one, "quantity": cart[one["slug"]], "total": one["price"] * cart[one["slug"]]} for one in found]


def change(request, slug, quantity):
    cart = {**request.session.get("cart", {}), slug: max(0, min(quantity, QUANTITY_MAX))}
    request.session["cart"] = {slug: quantity for slug, quantity in cart.items() if quantity}


def context(request):
    """For all templates."""
    return {"cart_count": sum(request.session.get("cart", {}).values())}

from django.urls import path
from store import views

urlpatterns = [
    path("", views.home, name="home"),
    path("cart", views.show_cart, name="cart"),
    path("cart/<slug:slug>", views.change_cart, name="change_cart"),
    path("checkout", views.checkout, name="checkout"),
    path("orders/<uuid:order_id>", views.show_order, name="order"),
    path("orders/<uuid:order_id>/pay", views.pay, name="pay"),
    path("orders/<uuid:order_id>/status", views.status, name="status"),
    path("orders/<uuid:order_id>/invoice", views.show_invoice, name="invoice"),
]

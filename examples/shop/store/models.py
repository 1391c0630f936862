"""Products, orders and invoices. Money is in cents."""

import uuid

from django.db import models
from django.urls import reverse

from dss_django.fenced import FencedModel


class Product(FencedModel):
    """Its stock is written under the lock `product/<pk>`, by `save` with the lock's token."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=100)
    text = models.CharField(max_length=200)
    price = models.PositiveIntegerField()
    stock = models.PositiveIntegerField()
    #: a picture in templates/store/art.html
    art = models.CharField(max_length=20)

    class Meta:
        ordering = ["pk"]

    def __str__(self):
        return self.name


class Order(FencedModel):
    """It is paid under the lock `order/<pk>`."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField()
    created_at = models.DateTimeField(auto_now_add=True)
    paid_at = models.DateTimeField(null=True)
    #: the id of the task that makes the invoice
    invoice_task = models.CharField(max_length=64, blank=True)
    mailed_at = models.DateTimeField(null=True)

    def __str__(self):
        return str(self.pk)

    def get_absolute_url(self):
        return reverse("order", args=[self.pk])

    @property
    def total(self):
        return sum(line.total for line in self.lines.all())


class Line(models.Model):
    order = models.ForeignKey(Order, models.CASCADE, related_name="lines")
    product = models.ForeignKey(Product, models.PROTECT)
    quantity = models.PositiveIntegerField()
    #: of one piece, when it was ordered
    price = models.PositiveIntegerField()

    class Meta:
        ordering = ["pk"]

    def __str__(self):
        return f"{self.quantity} of {self.product}"

    @property
    def total(self):
        return self.quantity * self.price


class Invoice(models.Model):
    order = models.OneToOneField(Order, models.CASCADE)
    created_at = models.DateTimeField(auto_now_add=True)
    text = models.TextField()

    def __str__(self):
        return self.number

    @property
    def number(self):
        return f"{self.created_at.year}-{self.pk:05d}"

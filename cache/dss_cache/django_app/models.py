"""The table of the backing store `django`, and the rows of the admin's list."""

from __future__ import annotations

from django.db import models


class StoredValue(models.Model):
    """A value in this node's own backing store. `django_store.py` reads and writes it in SQL."""

    key = models.CharField(primary_key=True, max_length=512)
    version = models.BigIntegerField()
    value = models.BinaryField(help_text="JSON")

    class Meta:
        verbose_name = "stored value"
        verbose_name_plural = "stored values"

    def __str__(self) -> str:
        return self.key


class LineRow(models.Model):
    """A line of this node. The rows come from the running node; there is no database table."""

    key = models.CharField(primary_key=True, max_length=512)
    state = models.CharField(
        max_length=1, help_text="M: written here, not yet in the backing store; E: only here; S: other nodes may have it"
    )
    version = models.BigIntegerField()
    readable = models.BooleanField(help_text="All other nodes have dropped their older lines")
    bytes = models.IntegerField()
    age_ms = models.BigIntegerField("age (ms)")
    value = models.TextField()

    class Meta:
        managed = False
        verbose_name = "line"
        verbose_name_plural = "lines"

    def __str__(self) -> str:
        return f"{self.key} ({self.state})"

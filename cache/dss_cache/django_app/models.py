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


class KeyRow(models.Model):
    """A key of the cache."""

    key = models.CharField(primary_key=True, max_length=512)
    version = models.BigIntegerField()
    state = models.CharField(max_length=20, help_text="not written back: a majority has the value, the backing store not yet")
    owner = models.CharField("written back by", max_length=64, blank=True)
    registered = models.TextField(help_text="Nodes that may have a line; they may have evicted it")
    expires_in_ms = models.BigIntegerField(null=True)
    value = models.TextField(help_text="As far as this node has it in memory")

    class Meta:
        managed = False
        default_permissions = ("view", "change")
        verbose_name = "key"
        verbose_name_plural = "keys on all nodes"

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
    age_ms = models.BigIntegerField()
    value = models.TextField()

    class Meta:
        managed = False
        verbose_name = "line"
        default_permissions = ("view",)
        verbose_name_plural = "lines of this node"

    def __str__(self) -> str:
        return f"{self.key} ({self.state})"

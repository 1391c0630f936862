"""Rows of the admin's lists. They are taken from the lock table in memory; no database table stands behind them."""

from __future__ import annotations

from django.db import models


class LockRow(models.Model):
    """A client that holds a key."""

    row_id = models.CharField(primary_key=True, max_length=1100)
    key = models.CharField(max_length=512)
    client = models.CharField(max_length=512)
    mode = models.CharField(max_length=9)
    fencing_token = models.BigIntegerField()
    expires_in_ms = models.BigIntegerField(null=True)
    age_ms = models.BigIntegerField()
    waiting = models.IntegerField("waiters", help_text="Requests in this key's queue")
    session = models.CharField(max_length=64, help_text="Whose lease it has; empty: its own")
    lock_delay_ms = models.BigIntegerField()
    meta = models.TextField(blank=True)

    class Meta:
        managed = False
        verbose_name = "lock"
        verbose_name_plural = "locks"

    def __str__(self) -> str:
        return f"{self.key} ({self.mode}, {self.client})"


class WaiterRow(models.Model):
    """A request that waits."""

    row_id = models.CharField(primary_key=True, max_length=32)
    client = models.CharField(max_length=512)
    keys = models.TextField()
    mode = models.CharField(max_length=9)
    position = models.IntegerField(help_text="In the longest of its queues; 1 is next")
    waits_for = models.CharField("waits for", max_length=512, help_text="The first client in the way")
    chain = models.TextField(help_text="From this client to one who does not wait")
    age_ms = models.BigIntegerField()
    gives_up_in_ms = models.BigIntegerField()

    class Meta:
        managed = False
        verbose_name = "waiting request"
        verbose_name_plural = "waiting requests"

    def __str__(self) -> str:
        return f"{self.client} waits for {self.keys}"


class DelayRow(models.Model):
    """A key that is kept back after its holder lost it."""

    key = models.CharField(primary_key=True, max_length=512)
    lost_by = models.CharField("lost by", max_length=512)
    keeps_out = models.CharField("keeps out", max_length=9, help_text="Requests of this mode have to wait")
    left_ms = models.BigIntegerField()
    delay_ms = models.BigIntegerField()

    class Meta:
        managed = False
        verbose_name = "key kept back"
        verbose_name_plural = "keys kept back"

    def __str__(self) -> str:
        return f"{self.key}, lost by {self.lost_by}"


class ForcedRow(models.Model):
    """A lock that was taken away."""

    row_id = models.CharField(primary_key=True, max_length=1100)
    at = models.DateTimeField()
    key = models.CharField(max_length=512)
    client = models.CharField(max_length=512)
    fencing_token = models.BigIntegerField()
    by = models.CharField("taken by", max_length=512)
    reason = models.CharField(max_length=512)

    class Meta:
        managed = False
        verbose_name = "forced release"
        verbose_name_plural = "forced releases"

    def __str__(self) -> str:
        return f"{self.key}, {self.client}: {self.reason}"

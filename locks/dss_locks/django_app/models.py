"""Rows of the admin's lists. They come from the lock table in memory and have no database table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    session = models.CharField(max_length=64, help_text="The session whose lease it has; empty: a lease of its own")
    lock_delay_ms = models.BigIntegerField()
    meta = models.TextField(blank=True)

    class Meta:
        managed = False
        verbose_name = "lock"
        verbose_name_plural = "locks"

    def __str__(self) -> str:
        return f"{self.key} ({self.mode}, {self.client})"


class SessionRow(models.Model):
    """A client session."""

    session = models.CharField(primary_key=True, max_length=64)
    client = models.CharField(max_length=512)
    ttl_ms = models.BigIntegerField()
    expires_in_ms = models.BigIntegerField()
    key_count = models.IntegerField("locks")
    keys = models.TextField(help_text="The first keys that it holds")

    class Meta:
        managed = False
        default_permissions = ("view", "change")
        verbose_name = "client session"
        verbose_name_plural = "client sessions"

    def __str__(self) -> str:
        return f"session {self.session} of {self.client}"


class DeadlockRow(models.Model):
    """A request that was refused because it would have closed a cycle."""

    row_id = models.CharField(primary_key=True, max_length=64)
    at = models.DateTimeField("refused at")
    client = models.CharField("refused client", max_length=512)
    keys = models.TextField("asked for")
    mode = models.CharField(max_length=9)
    length = models.IntegerField("clients in the cycle")
    cycle = models.TextField(help_text="Begins with the request that was refused")

    def __init__(self, *args: Any, steps: Sequence[dict[str, Any]] = (), **fields: Any) -> None:
        super().__init__(*args, **fields)
        #: the cycle, to be drawn
        self.steps = steps

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "refused deadlock"
        verbose_name_plural = "refused deadlocks"

    def __str__(self) -> str:
        return f"{self.client} asked for {self.keys}"


class WaiterRow(models.Model):
    """A waiting request."""

    row_id = models.CharField(primary_key=True, max_length=32)
    client = models.CharField(max_length=512)
    keys = models.TextField()
    mode = models.CharField(max_length=9)
    position = models.IntegerField(help_text="In the queue where it is furthest behind; 1 is next")
    waits_for = models.CharField("waits for", max_length=512, help_text="The first client that blocks it")
    chain = models.TextField(help_text="From this client to the first one that is not waiting")
    age_ms = models.BigIntegerField()
    gives_up_in_ms = models.BigIntegerField()
    place = models.BigIntegerField()
    nodes = models.CharField("called at", max_length=512, help_text="The nodes where its calls wait")

    class Meta:
        managed = False
        verbose_name = "waiting request"
        verbose_name_plural = "waiting requests"

    def __str__(self) -> str:
        return f"{self.client} waits for {self.keys}"


class DelayRow(models.Model):
    """The lock delay of a key."""

    key = models.CharField(primary_key=True, max_length=512)
    lost_by = models.CharField("lost by", max_length=512)
    keeps_out = models.CharField(
        "blocks", max_length=9, help_text="Requests that have to wait: everybody, or exclusive ones only"
    )
    left_ms = models.BigIntegerField()
    delay_ms = models.BigIntegerField()

    class Meta:
        managed = False
        verbose_name = "lock delay"
        verbose_name_plural = "lock delays"

    def __str__(self) -> str:
        return f"{self.key}, lost by {self.lost_by}"


class ForcedRow(models.Model):
    """A forced release."""

    row_id = models.CharField(primary_key=True, max_length=1100)
    at = models.DateTimeField()
    key = models.CharField(max_length=512)
    client = models.CharField(max_length=512)
    fencing_token = models.BigIntegerField()
    by = models.CharField("released by", max_length=512)
    reason = models.CharField(max_length=512)

    class Meta:
        managed = False
        verbose_name = "forced release"
        verbose_name_plural = "forced releases"

    def __str__(self) -> str:
        return f"{self.key}, {self.client}: {self.reason}"

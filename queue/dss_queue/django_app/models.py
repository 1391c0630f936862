"""Rows of the admin's lists. They are taken from the broker in memory; no database table stands behind them."""

from __future__ import annotations

from django.db import models


class BacklogRow(models.Model):
    """What a consumer group has still to do."""

    row_id = models.CharField(primary_key=True, max_length=1100)
    topic = models.CharField(max_length=512)
    group = models.CharField(max_length=512, blank=True, help_text="Empty: nobody has consumed from the topic yet")
    ready = models.BigIntegerField(help_text="Can be consumed now, or are behind one of their key")
    delayed = models.BigIntegerField(help_text="Hidden for a while: a delay, or a backoff after a failure")
    in_flight = models.BigIntegerField(help_text="In the hands of consumers")
    dead = models.BigIntegerField("dead letters")
    waiting = models.BigIntegerField("waiting consumers")
    oldest_age_ms = models.BigIntegerField("oldest (ms)")
    published_per_s = models.FloatField("published a second", help_text="Over the last ten seconds")
    acked_per_s = models.FloatField("acked a second", help_text="Over the last ten seconds")
    bytes = models.BigIntegerField("bytes in the topic")

    class Meta:
        managed = False
        verbose_name = "backlog"
        verbose_name_plural = "topics and their groups"

    def __str__(self) -> str:
        return f"{self.topic} ({self.group or 'no group yet'})"


class InFlightRow(models.Model):
    """A message in the hands of a consumer."""

    row_id = models.CharField(primary_key=True, max_length=1100)
    topic = models.CharField(max_length=512)
    group = models.CharField(max_length=512)
    msg_id = models.CharField("message", max_length=64)
    key = models.CharField("routing key", max_length=512, blank=True)
    partition = models.IntegerField()
    receipt = models.CharField(max_length=128)
    attempt = models.IntegerField()
    node = models.CharField(max_length=64, help_text="The node its consumer called")
    visible_in_ms = models.BigIntegerField("comes back in (ms)")
    age_ms = models.BigIntegerField("published (ms ago)")
    value = models.TextField(help_text="The beginning of its JSON")

    class Meta:
        managed = False
        verbose_name = "message in flight"
        verbose_name_plural = "messages in flight"

    def __str__(self) -> str:
        return f"{self.msg_id} of {self.topic} ({self.group})"


class DeadLetterRow(models.Model):
    """A message that a group has given up."""

    row_id = models.CharField(primary_key=True, max_length=1100)
    topic = models.CharField(max_length=512)
    group = models.CharField(max_length=512)
    msg_id = models.CharField("message", max_length=64)
    key = models.CharField("routing key", max_length=512, blank=True)
    reason = models.CharField(max_length=16)
    attempts = models.IntegerField()
    dead_at = models.DateTimeField("dead since")
    published_at = models.DateTimeField("published")
    history = models.TextField(help_text="How each delivery ended")
    value = models.TextField(help_text="The beginning of its JSON")

    class Meta:
        managed = False
        verbose_name = "dead letter"
        verbose_name_plural = "dead letters"

    def __str__(self) -> str:
        return f"{self.msg_id} of {self.topic} ({self.group})"

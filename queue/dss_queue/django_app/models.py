"""Rows of the admin's lists. They come from the broker in memory; they have no database table."""

from __future__ import annotations

from django.db import models


class BacklogRow(models.Model):
    """The unfinished messages of a consumer group."""

    row_id = models.CharField(primary_key=True, max_length=1100)
    topic = models.CharField(max_length=512)
    group = models.CharField(max_length=512, blank=True, help_text="Empty: the topic has no consumer group yet")
    ready = models.BigIntegerField(help_text="Ready to be consumed, or behind another message with the same key")
    delayed = models.BigIntegerField(help_text="Hidden by a delay, or by the backoff after a failure")
    in_flight = models.BigIntegerField(help_text="Taken by consumers and not finished yet")
    dead = models.BigIntegerField("dead letters")
    waiting = models.BigIntegerField("waiting consumers")
    oldest_age_ms = models.BigIntegerField("oldest (ms)")
    published_per_s = models.FloatField("published per second", help_text="Over the last ten seconds")
    acked_per_s = models.FloatField("acked per second", help_text="Over the last ten seconds")
    bytes = models.BigIntegerField("bytes in the topic")

    class Meta:
        managed = False
        verbose_name = "backlog"
        verbose_name_plural = "topics and their groups"

    def __str__(self) -> str:
        return f"{self.topic} ({self.group or 'no group yet'})"


class InFlightRow(models.Model):
    """A message that a consumer has taken and not finished."""

    row_id = models.CharField(primary_key=True, max_length=1100)
    topic = models.CharField(max_length=512)
    group = models.CharField(max_length=512)
    msg_id = models.CharField("message", max_length=64)
    key = models.CharField("routing key", max_length=512, blank=True)
    partition = models.IntegerField()
    receipt = models.CharField(max_length=128)
    attempt = models.IntegerField()
    node = models.CharField(max_length=64, help_text="The node that its consumer called")
    visible_in_ms = models.BigIntegerField("comes back in (ms)")
    age_ms = models.BigIntegerField("published (ms ago)")
    value = models.TextField(help_text="The beginning of its JSON value")

    class Meta:
        managed = False
        verbose_name = "message in flight"
        verbose_name_plural = "messages in flight"

    def __str__(self) -> str:
        return f"{self.msg_id} of {self.topic} ({self.group})"


class DeadLetterRow(models.Model):
    """A message that a group no longer tries to deliver."""

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
    value = models.TextField(help_text="The beginning of its JSON value")

    class Meta:
        managed = False
        verbose_name = "dead letter"
        verbose_name_plural = "dead letters"

    def __str__(self) -> str:
        return f"{self.msg_id} of {self.topic} ({self.group})"

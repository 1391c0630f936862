"""Rows of the admin's lists. They come from the broker in memory; they have no database table."""

from __future__ import annotations

from django.db import models


class TopicRow(models.Model):
    """A topic with its settings."""

    topic = models.CharField(primary_key=True, max_length=512)
    messages = models.BigIntegerField(help_text="That the topic retains, because a group has not finished them")
    bytes = models.BigIntegerField(help_text="Of values, keys and headers, dead letters included")
    groups = models.IntegerField()
    consumers = models.IntegerField("waiting consumers")
    dead = models.BigIntegerField("dead letters")
    oldest_age_ms = models.BigIntegerField()
    published = models.BigIntegerField(help_text="Messages since the topic was created")
    published_per_s = models.FloatField("published per second", help_text="Over the last ten seconds")
    engine = models.CharField(
        max_length=16, help_text="Where the messages are: raft, the replicated log, or redis. With an arrow, the topic moves"
    )
    settings = models.TextField()

    class Meta:
        managed = False
        default_permissions = ("view", "change")
        verbose_name = "topic"
        verbose_name_plural = "topics"

    def __str__(self) -> str:
        return self.topic


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
    oldest_age_ms = models.BigIntegerField()
    published_per_s = models.FloatField("published per second", help_text="Over the last ten seconds")
    acked_per_s = models.FloatField("acked per second", help_text="Over the last ten seconds")
    bytes = models.BigIntegerField("bytes in the topic")

    class Meta:
        managed = False
        verbose_name = "consumer group"
        verbose_name_plural = "consumer groups"

    def __str__(self) -> str:
        return f"{self.topic} ({self.group or 'no group yet'})"


class ConsumerRow(models.Model):
    """A consume call, or a pull of a subscription, that waits or whose messages are in flight."""

    row_id = models.CharField(primary_key=True, max_length=200)
    topic = models.CharField(max_length=512)
    group = models.CharField(max_length=512)
    node = models.CharField("connected to", max_length=64)
    doing = models.CharField(max_length=8, help_text="waits: for messages; works: it has messages that are not finished")
    messages = models.IntegerField(help_text="In flight; for one that waits: how many it takes at most")
    until_ms = models.BigIntegerField(null=True, help_text="When a call that waits is answered without a message")

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "connected consumer"
        verbose_name_plural = "connected consumers"

    def __str__(self) -> str:
        return f"{self.topic} ({self.group}) at {self.node}"


class MessageRow(models.Model):
    """A message that a group has not finished."""

    row_id = models.CharField(primary_key=True, max_length=1100)
    topic = models.CharField(max_length=512)
    group = models.CharField(max_length=512, blank=True, help_text="Empty: the topic has no consumer group yet")
    msg_id = models.CharField("message", max_length=64)
    key = models.CharField("routing key", max_length=512, blank=True)
    partition = models.IntegerField()
    state = models.CharField(
        max_length=9,
        help_text="ready: can be taken, or is behind another one with its key; delayed; in flight: a consumer has it",
    )
    attempt = models.IntegerField(help_text="Deliveries that count")
    node = models.CharField("consumer at", max_length=64, blank=True, help_text="The node that its consumer called")
    due_in_ms = models.BigIntegerField(null=True, help_text="When a delayed one is ready, and one in flight comes back")
    age_ms = models.BigIntegerField()
    receipt = models.CharField(max_length=128, blank=True)
    headers = models.TextField(blank=True)
    value = models.TextField(help_text="The beginning of its JSON value")

    class Meta:
        managed = False
        default_permissions = ("view", "change")
        verbose_name = "message"
        verbose_name_plural = "messages"

    def __str__(self) -> str:
        return f"{self.msg_id} of {self.topic} ({self.group or 'no group yet'})"


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
    headers = models.TextField(blank=True)
    value = models.TextField(help_text="The beginning of its JSON value")

    class Meta:
        managed = False
        verbose_name = "dead letter"
        verbose_name_plural = "dead letters"

    def __str__(self) -> str:
        return f"{self.msg_id} of {self.topic} ({self.group})"

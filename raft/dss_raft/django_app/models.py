"""Raft as the admin shows it: rows of the present moment, no tables."""

from __future__ import annotations

from django.db import models


class MemberRow(models.Model):
    """A member of the cluster, as this node sees it."""

    id = models.CharField("node", primary_key=True, max_length=64)
    url = models.CharField("address", max_length=512)
    role = models.CharField(max_length=16)
    up = models.BooleanField("reachable")
    match_index = models.BigIntegerField("replicated up to", null=True, help_text="Known to the leader only.")
    lag = models.BigIntegerField("entries behind", null=True)
    last_contact_ms = models.BigIntegerField("last contact (ms ago)", null=True)

    class Meta:
        managed = False
        default_permissions = ("view", "change")
        verbose_name = "member"
        verbose_name_plural = "members"

    def __str__(self) -> str:
        return self.id


class StatusRow(models.Model):
    """One figure of this node's Raft state."""

    name = models.CharField(primary_key=True, max_length=64)
    value = models.CharField(max_length=256)

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "figure"
        verbose_name_plural = "this node's status"

    def __str__(self) -> str:
        return self.name

"""The models of Raft's admin pages: unmanaged, filled from the running node."""

from __future__ import annotations

from django.db import models


class MemberRow(models.Model):
    """A member of the cluster, as seen by this node."""

    id = models.CharField("node", primary_key=True, max_length=64)
    url = models.CharField("address", max_length=512)
    role = models.CharField(max_length=16)
    up = models.BooleanField("reachable")
    match_index = models.BigIntegerField("replicated up to", null=True, help_text="Known only on the leader.")
    lag = models.BigIntegerField("entries behind", null=True)
    last_contact_ms = models.BigIntegerField("last contact (ms ago)", null=True)
    outdated = models.BooleanField(help_text="Its disk was put back to an earlier state: replace the member.")
    versions = models.CharField("supports cluster versions", max_length=16, help_text="Empty while it is not linked.")

    class Meta:
        managed = False
        default_permissions = ("view", "change")
        verbose_name = "member"
        verbose_name_plural = "members"

    def __str__(self) -> str:
        return self.id


class StatusRow(models.Model):
    """One value of this node's Raft status."""

    name = models.CharField(primary_key=True, max_length=64)
    value = models.CharField(max_length=256)

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "value"
        verbose_name_plural = "this node's status"

    def __str__(self) -> str:
        return self.name

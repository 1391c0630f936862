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


class TokenRow(models.Model):
    """A token, without its secret."""

    id = models.CharField(primary_key=True, max_length=12)
    name = models.CharField(max_length=512)
    scopes = models.TextField()
    created = models.DateTimeField()
    created_by = models.CharField("made by", max_length=512)
    expires = models.DateTimeField(null=True)
    expired = models.BooleanField()
    last_used = models.DateTimeField("last use", null=True, help_text="To the hour.")
    generation = models.IntegerField(help_text="1, and one more with each rotation.")

    class Meta:
        managed = False
        default_permissions = ("view", "change")
        verbose_name = "token"
        verbose_name_plural = "tokens"

    def __str__(self) -> str:
        return f"{self.name} ({self.id})"


class AuditRow(models.Model):
    """A call of an operator."""

    index = models.BigIntegerField(primary_key=True)
    at = models.DateTimeField("when")
    at_ms = models.BigIntegerField()
    by = models.CharField("who", max_length=600)
    operation = models.CharField("what", max_length=600)
    request = models.TextField("fields")
    reason = models.CharField("why", max_length=512)
    via = models.CharField("entry point", max_length=16)
    address = models.CharField("from", max_length=600)
    node = models.CharField(max_length=64)

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "audit record"
        verbose_name_plural = "audit trail"

    def __str__(self) -> str:
        return f"{self.index}: {self.operation} by {self.by}"


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

"""The models of Raft's admin pages: unmanaged, filled from the running node."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.contrib.auth.models import User
from django.db import models
from django.utils.crypto import salted_hmac

from dss_api.rights import OF_GROUP

if TYPE_CHECKING:
    from dss_api.rights import Access
    from dss_raft.replication import users


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


class ClusterUser(User):
    """A user of the replicated state as Django sees one, made for each request. The primary key is the user's number, negated: those of
    users whom a node has from an older release are positive.
    """

    # Not database fields: the state of the cluster at this request.
    group = ""
    generation = 0

    class Meta:
        proxy = True
        default_permissions = ()
        # This app has no migrations, so it cannot have a child of a model that has.
        app_label = "auth"

    @classmethod
    def of(cls, user: users.User) -> ClusterUser:
        found = cls(
            pk=-user.number,
            username=user.name,
            password=user.password_hash,
            is_active=user.is_active,
            is_staff=True,
            is_superuser=user.group == "admin",
        )
        found.group, found.generation = user.group, user.generation
        found._state.adding = False
        return found

    @cached_property
    def access(self) -> Access:
        """What the user may do."""
        return OF_GROUP[self.group]

    def save(self, *args: Any, **options: Any) -> None:
        """Django saves the time of a login. Everything else about a user is changed by operations."""
        if options.get("update_fields") != ["last_login"]:
            raise TypeError("a user of the cluster is changed by the operations of `user_operations`")

    def check_password(self, raw_password: str) -> bool:
        from dss_raft.django_app.passwords import hashing

        return hashing().is_right(raw_password, self.password)

    def _get_session_auth_hash(self, secret: Any = None) -> str:
        """Sessions end when the password or the generation changes. No one can tell the hash of the password from it."""
        proved = f"{self.pk} {self.generation} {self.password}"
        return salted_hmac("dss.session", proved, secret=secret, algorithm="sha256").hexdigest()


class UserRow(models.Model):
    """A user of the pages and the admin."""

    name = models.CharField(primary_key=True, max_length=150, help_text="Letters, digits and @ . + - _")
    group = models.CharField(max_length=16)
    active = models.BooleanField(default=True, help_text="Without it, the user cannot log in.")
    created = models.DateTimeField()
    created_by = models.CharField("made by", max_length=512)
    changed = models.DateTimeField("last change", null=True)
    password_changed = models.DateTimeField("last password", null=True)
    generation = models.IntegerField(help_text="1, and one more whenever all sessions end.")

    class Meta:
        managed = False
        default_permissions = ("view", "add", "change")
        verbose_name = "user"
        verbose_name_plural = "users"

    def __str__(self) -> str:
        return self.name


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


class EntryRow(models.Model):
    """An entry of this node's log."""

    index = models.BigIntegerField(primary_key=True)
    term = models.BigIntegerField()
    kind = models.CharField(max_length=16)
    state = models.CharField(max_length=16, help_text="applied: it has taken effect on this node")
    bytes = models.IntegerField()
    commands = models.TextField()

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "log entry"
        verbose_name_plural = "log entries"

    def __str__(self) -> str:
        return f"entry {self.index} of term {self.term}"


class SnapshotRow(models.Model):
    """A snapshot file of this node."""

    name = models.CharField("file", primary_key=True, max_length=255)
    index = models.BigIntegerField("up to entry")
    term = models.BigIntegerField()
    bytes = models.BigIntegerField()
    state = models.CharField(max_length=16)
    saved = models.DateTimeField(null=True)

    class Meta:
        managed = False
        default_permissions = ("view",)
        verbose_name = "snapshot"
        verbose_name_plural = "snapshots"

    def __str__(self) -> str:
        return self.name


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

"""Django models that refuse writes under an old lock.

A lease cannot stop a client that was paused and does not know that it has lost its lock. The database can: every write carries the
fencing token of its lock, and the row remembers the highest token. The check and the write are one SQL statement, so no other write
can happen between them.

    class Account(FencedModel):
        balance = models.IntegerField()

    token = acquire("account/7")["fencing_token"]
    account = Account.objects.get(pk=7)
    account.balance -= 100
    account.save(fencing_token=token)      # raises StaleToken if the row was written under a later lock
"""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async
from django.db import models


class StaleToken(Exception):
    """A write was refused: the row has been written under a later lock, or it no longer exists.

    Args:
        token: the token of the refused write.
        current: the token that the row has now; None: the row no longer exists.
    """

    def __init__(self, model: type[models.Model], pk: Any, token: int, current: int | None) -> None:
        found = "the row no longer exists" if current is None else f"the row was written with {current}"
        super().__init__(f"{model._meta.label} {pk}: fencing token {token} is too old; {found}")
        self.token = token
        self.current = current


class FencedQuerySet(models.QuerySet):
    """Writes with a fencing token."""

    def fenced_update(self, fencing_token: int, **values: Any) -> int:
        """As `update`, but skip rows written under a later lock. Returns the number of rows updated."""
        return self.filter(fencing_token__lte=fencing_token).update(fencing_token=fencing_token, **values)


class FencedModel(models.Model):
    """A row that remembers the highest fencing token that it was written with.

    Saving an existing row requires a token. It is one UPDATE, without `pre_save` and `post_save` signals. `QuerySet.update` and
    `delete` are not fenced. Always protect a row with the same key: tokens of different keys cannot be compared.
    """

    fencing_token = models.BigIntegerField(default=0, editable=False)

    objects = FencedQuerySet.as_manager()

    class Meta:
        abstract = True

    def save(self, *args: Any, fencing_token: int | None = None, update_fields: Any = None, **kwargs: Any) -> None:
        """Insert a new row, or update an existing one unless it was written under a later lock.

        Args:
            fencing_token: the token of the lock that protects this row. Optional for a new row.
            update_fields: the names of the fields to write; None: all fields.

        Raises:
            StaleToken: the row was written under a later lock, or it no longer exists. Nothing was written.
            TypeError: there is no token for an existing row.
        """
        if self._state.adding:
            if fencing_token is not None:
                self.fencing_token = fencing_token
            super().save(*args, update_fields=update_fields, **kwargs)
            return
        if fencing_token is None:
            raise TypeError(f"{self._meta.label}.save() needs the `fencing_token` of the lock that protects the row")
        using = kwargs.get("using") or self._state.db
        rows = FencedQuerySet(type(self), using=using).filter(pk=self.pk)
        if not rows.fenced_update(fencing_token, **self._values(update_fields)):
            current = rows.values_list("fencing_token", flat=True).first()
            raise StaleToken(type(self), self.pk, fencing_token, current)
        self.fencing_token = fencing_token

    async def asave(self, *args: Any, **kwargs: Any) -> None:
        """As `save`."""
        await sync_to_async(self.save)(*args, **kwargs)

    def _values(self, update_fields: Any) -> dict[str, Any]:
        names = None if update_fields is None else set(update_fields)
        return {
            field.attname: field.pre_save(self, add=False)
            for field in self._meta.concrete_fields
            if not field.primary_key
            and field.name != "fencing_token"
            and (names is None or field.name in names or field.attname in names)
        }

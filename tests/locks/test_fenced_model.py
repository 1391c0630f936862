"""The database refuses the write of a paused client. Without fencing, it would overwrite another client's write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, models
from django.test.utils import CaptureQueriesContext

from dss_django.fenced import FencedModel, StaleToken

# The app has no migrations: the test database gets tables for these models like for any other.
pytestmark = pytest.mark.django_db


class FencedAccount(FencedModel):
    balance = models.IntegerField()
    note = models.CharField(max_length=50, default="")
    changed = models.DateTimeField(auto_now=True)

    class Meta:
        app_label = "dss_locks"


#: The examples in the README: a model, and a client that is paused.
README_MODEL, README_PAUSE = [
    block.split("```")[0]
    for block in (Path(__file__).parents[2] / "locks" / "README.md").read_text().split("```python\n")
    if "Account" in block.split("```")[0]
]
readme: dict[str, Any] = {"__name__": "dss_locks.django_app.readme"}
exec(README_MODEL, readme)


class PlainAccount(models.Model):
    balance = models.IntegerField()

    class Meta:
        app_label = "dss_locks"


def withdraw_while_paused(locks, model, save):
    """The balance is 100. a reads it under its lock and is paused. Its lease ends. b withdraws 30. a resumes and withdraws 50."""
    model.objects.create(pk=1, balance=100)
    old = locks.acquire("a", "account/1", ttl_ms=1000).body["fencing_token"]
    paused = model.objects.get(pk=1)
    locks.pass_ms(1000)
    new = locks.acquire("b", "account/1").body["fencing_token"]
    other = model.objects.get(pk=1)
    other.balance -= 30
    save(other, new)
    paused.balance -= 50
    save(paused, old)


def test_the_write_of_the_paused_client_is_refused(locks):
    with pytest.raises(StaleToken) as refused:
        withdraw_while_paused(locks, FencedAccount, lambda row, token: row.save(fencing_token=token))
    assert refused.value.current > refused.value.token
    assert FencedAccount.objects.get(pk=1).balance == 70


def test_without_fencing_the_other_write_is_lost(locks):
    """Otherwise the test above would prove nothing."""
    withdraw_while_paused(locks, PlainAccount, lambda row, token: row.save())
    assert PlainAccount.objects.get(pk=1).balance == 50


def test_the_example_in_the_readme(capsys):
    exec(README_PAUSE, readme)
    refusal, balance = capsys.readouterr().out.splitlines()
    assert refusal == "dss_locks.Account 7: fencing token 33 is too old; the row was written with 34"
    assert balance == "70"


def test_asave_checks_the_token():
    async def scene():
        account = await FencedAccount.objects.acreate(balance=1)
        account.balance = 2
        await account.asave(fencing_token=5)
        with pytest.raises(StaleToken):
            await account.asave(fencing_token=4)
        assert (await FencedAccount.objects.aget()).balance == 2

    # In this thread: another thread would keep a database connection open after the test.
    async_to_sync(scene)()


def test_check_and_write_are_one_statement():
    account = FencedAccount.objects.create(balance=1)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        account.save(fencing_token=5)
    (query,) = queries.captured_queries
    assert query["sql"].startswith("UPDATE")
    assert '"fencing_token" <= 5' in query["sql"]


def test_the_holder_may_write_repeatedly():
    account = FencedAccount.objects.create(balance=1, fencing_token=3)
    for balance in (2, 3):
        account.balance = balance
        account.save(fencing_token=3)
    assert FencedAccount.objects.get().balance == 3


def test_only_the_named_fields_are_written():
    account = FencedAccount.objects.create(balance=1)
    account.balance, account.note = 2, "changed"
    account.save(fencing_token=1, update_fields=["note"])
    account.refresh_from_db()
    assert (account.balance, account.note, account.fencing_token) == (1, "changed", 1)


def test_saving_an_existing_row_requires_a_token():
    account = FencedAccount.objects.create(balance=1)
    with pytest.raises(TypeError, match="fencing_token"):
        account.save()


def test_a_deleted_row_is_not_inserted_again():
    account = FencedAccount.objects.create(balance=1)
    FencedAccount.objects.all().delete()
    with pytest.raises(StaleToken, match="no longer exists"):
        account.save(fencing_token=9)
    assert not FencedAccount.objects.exists()


def test_fenced_update_skips_rows_written_under_later_locks():
    FencedAccount.objects.create(balance=1, fencing_token=5)
    FencedAccount.objects.create(balance=1, fencing_token=9)
    assert FencedAccount.objects.fenced_update(7, balance=models.F("balance") + 1) == 1
    assert list(FencedAccount.objects.order_by("fencing_token").values_list("balance", "fencing_token")) == [(2, 7), (1, 9)]

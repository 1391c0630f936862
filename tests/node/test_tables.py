"""When the database of the pages is complete, a node starts without the command `migrate`, which takes long to change nothing."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from dss_project.management.commands.node import _has_all_tables, _require_known_tables

pytestmark = pytest.mark.django_db


def is_complete() -> bool:
    return _has_all_tables(_require_known_tables())


def test_after_migrate_nothing_is_missing() -> None:
    assert is_complete()


def test_a_migration_is_missing() -> None:
    MigrationRecorder(connection).record_unapplied("dss_cache", "0001_initial")
    assert not is_complete()


def test_a_model_without_a_table_is_new() -> None:
    """No migration tells of it. `migrate` makes its content type and its permissions."""
    ContentType.objects.get(app_label="dss_locks", model="lockrow").delete()
    assert not is_complete()


def test_a_permission_is_new() -> None:
    Permission.objects.get(content_type__app_label="dss_locks", codename="change_lockrow").delete()
    assert not is_complete()

"""`manage.py node`: run one node until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_permission_codename
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader

from dss_api import heap
from dss_api.tls import CannotUse, ServerTls
from dss_project import access, data_directory, logs, secret_files
from dss_project.config import NodeConfig, unknown_variables
from dss_project.server.listening import CannotListen, listen


class Command(BaseCommand):
    help = "Run one node. Its settings are environment variables; the README lists them."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        heap.keep_large_blocks_apart()
        config: NodeConfig = settings.NODE
        logs.configure(config)
        # Imported after the configuration: a logger keeps the configuration of its first use.
        import structlog

        log = structlog.get_logger("node")
        for name, meant in unknown_variables().items():
            hint = f"did you mean {meant}?" if meant else "no setting has this name"
            log.warning("node.unknown_setting", variable=name, hint=hint)
        try:
            listening = listen(config.rpc_host, config.rpc_port)
            sqs = listen(config.rpc_host, config.sqs_port, "DSS_SQS_PORT") if config.sqs_port else None
            tls = ServerTls(config.tls) if config.tls else None
        except (CannotListen, CannotUse) as error:
            sys.exit(str(error))
        self._prepare(config, log)
        from dss_project.tracing import TracesUnusable

        try:
            code = _serve(config, listening, tls, sqs)
        except TracesUnusable as error:
            sys.exit(str(error))
        sys.stderr.flush()
        sys.exit(code)

    def _prepare(self, config: NodeConfig, log: Any) -> None:
        data_dir = Path(config.data_dir)
        # SQLite creates its files with the mode that this leaves.
        os.umask(0o077)
        try:
            for path in data_directory.prepare(data_dir):
                log.warning("node.permissions_mended", path=str(path), hint="only the user of this node may use it")
            if access.needs_secret_key_file(config):
                secret_files.keep(data_dir / "secret-key", settings.SECRET_KEY)
                # The file may have been unreadable until its permissions were mended.
                settings.SECRET_KEY = secret_files.read_or_make(data_dir / "secret-key")
            access.make_key_file(config)
            if not _has_all_tables(_require_known_tables()):
                call_command("migrate", verbosity=0, interactive=False)
        except data_directory.Unusable as error:
            sys.exit(f"Cannot use DSS_DATA_DIR={data_dir}: {error}")
        except (OSError, DatabaseError) as error:
            # The disk became full since the check, or another process holds the database.
            sys.exit(f"Cannot use DSS_DATA_DIR={data_dir}: {' '.join(str(error).split())}")


def _require_known_tables() -> MigrationLoader:
    """The migrations of this release, and those that this node's database has.

    Raises:
        Unusable: a newer release has changed the tables.
    """
    loader = MigrationLoader(connection)
    newer = sorted(
        key for key in loader.applied_migrations if key[0] in loader.migrated_apps and key not in loader.disk_migrations
    )
    if newer:
        names = ", ".join(".".join(key) for key in newer)
        raise data_directory.Unusable(
            f"its database has tables of a newer release ({names}): start the release that wrote it, or a newer one"
        )
    return loader


def _has_all_tables(loader: MigrationLoader) -> bool:
    """Whether `migrate` would change nothing. Even then, it takes a quarter of the start of a node."""
    if not loader.graph.nodes.keys() <= loader.applied_migrations.keys():
        return False
    # These modules can be loaded only after the settings are made.
    from django.contrib.auth.models import Permission
    from django.contrib.contenttypes.models import ContentType

    # Apps with migrations got their permissions with the last one. For the others, no migration shows whether they have them.
    models = [model._meta for model in apps.get_models() if model._meta.app_label not in loader.migrated_apps]
    types = {(model.app_label, model.model_name) for model in models}
    permissions = {
        (model.app_label, model.model_name, name)
        for model in models
        for name in (
            *(get_permission_codename(action, model) for action in model.default_permissions),
            *(name for name, _ in model.permissions),
        )
    }
    made = Permission.objects.values_list("content_type__app_label", "content_type__model", "codename")
    return types <= set(ContentType.objects.values_list("app_label", "model")) and permissions <= set(made)


def _serve(config: NodeConfig, listening: Any, tls: ServerTls | None, sqs: Any) -> int:
    import uvloop

    # Before Twisted is imported: its reactor uses the loop of this policy.
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dss_project.settings")
    if config.server == "uvicorn":
        from dss_project.server import on_uvicorn as server
    else:
        from dss_project.server import on_daphne as server  # type: ignore[no-redef]
    from dss_project.asgi import application, end_traces, http_listener, in_progress
    from dss_project.server.life import live

    def main(web: Any) -> Any:
        return live(config, application, in_progress, http_listener(web.take_over, tls, sqs), listening)

    code = server.run(application, config, main)
    if end_traces is not None:
        end_traces()
    return code

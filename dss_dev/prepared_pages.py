"""The pages' database of a node, made once for many nodes: it takes half of the first start of a node."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from dss_dev.checkouts import tested_checkout
from dss_dev.local_cluster import ROOT, LocalCluster, LocalNode

#: the settings of the nodes of tests
ENVIRONMENT = {"DSS_CLUSTER_SECRET": "test", "DSS_LOG_FORMAT": "json", "DSS_ADMIN_PASSWORD": "test"}

#: prepares the database of the pages, as a node does at its first start
PREPARE_PAGES = """
import django, django.core.management
django.setup()
django.core.management.call_command("migrate", verbosity=0)
"""


@cache
def database_of_pages() -> bytes:
    """Django's tables."""
    if LocalNode.pool:
        return (LocalNode.pool.new_data() / "django.sqlite3").read_bytes()
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, **ENVIRONMENT, "DSS_DATA_DIR": directory, "DJANGO_SETTINGS_MODULE": "dss_project.settings"}
        subprocess.run([sys.executable, "-c", PREPARE_PAGES], cwd=ROOT, env=environment, check=True)
        return (Path(directory) / "django.sqlite3").read_bytes()


def prepare_pages(cluster: LocalCluster) -> None:
    """Nodes of this checkout find their pages' database at their first start."""
    if tested_checkout() is not None:
        return
    for node in cluster.nodes:
        prepare_directory(Path(node.environment["DSS_DATA_DIR"]))


def prepare_directory(data: Path) -> None:
    """A node of this checkout finds its pages' database here at its first start."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    database = data / "django.sqlite3"
    if not database.exists():
        database.touch(mode=0o600)
        database.write_bytes(database_of_pages())

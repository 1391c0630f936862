"""Django's own tests of caches, and of sessions in a cache, with `dss_django.cache.DSSCache`: 5.2 with this Python, 6 with Python 3.12.

They come from Django's source distribution, which is fetched once and kept in pytest's cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import django
import pytest

from dss_dev.django_6 import django_version, fetch, libraries_for_django_6
from dss_dev.local_cluster import ROOT, LocalCluster, free_ports

pytestmark = pytest.mark.cluster

#: They want the oldest entries thrown away beyond MAX_ENTRIES. Here, the limits are the cluster's.
CULLING = {"test_cull", "test_zero_cull"}
TESTS_MIN = 120
CACHE_TESTS = """
import os
from django.test import TestCase, override_settings
from .tests import BaseCacheTests, caches_setting_for_tests

BACKEND = {"BACKEND": "dss_django.cache.DSSCache", "LOCATION": os.environ["DSS_URLS"]}
BACKEND["OPTIONS"] = {"namespace": os.environ["DSS_NAMESPACE"]}


@override_settings(CACHES=caches_setting_for_tests(base=BACKEND))
class DSSCacheTests(BaseCacheTests, TestCase):
    pass


del BaseCacheTests
"""
SETTINGS = """
import os
from test_sqlite import *

CACHES = {"default": {"BACKEND": "dss_django.cache.DSSCache", "LOCATION": os.environ["DSS_URLS"]}}
CACHES["default"]["OPTIONS"] = {"namespace": os.environ["DSS_NAMESPACE"]}
"""
#: the folders of Django's tests that these need, of some hundred
NEEDED = {"cache", "sessions_tests", "templates"}
LABELS = ("cache.dss_tests", *(f"sessions_tests.tests.{name}" for name in ("CacheSessionTests", "CacheDBSessionTests")))


def needed(member: tarfile.TarInfo, directory: str) -> tarfile.TarInfo | None:
    """Of Django's tests, the folders that are needed, and the files beside all folders."""
    top, *below = member.name.split("/")[1:] or [""]
    is_needed = top == "tests" and (below[0] in NEEDED if below[1:] else bool(below) and member.isfile())
    return tarfile.data_filter(member, directory) if is_needed else None


def source_of(version: str, python: str, directory: Path) -> Path:
    """What is needed of Django's source distribution, unpacked. Each release has its own tests."""
    fetch(python, ["download", "--no-deps", "--no-binary=:all:", f"--dest={directory}", f"Django=={version}"], directory, version)
    (archive,) = directory.glob(f"?jango-{version}.tar.gz")
    unpacked = directory / f"django-{version}"
    if not unpacked.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(directory, filter=needed)
    return unpacked


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    cluster = LocalCluster(tmp_path_factory.mktemp("node"), free_ports(1), {"DSS_SERVER": "uvicorn"})
    try:
        cluster.start()
        cluster.wait_ready()
        yield cluster.nodes[0].url
    finally:
        cluster.stop()


@pytest.mark.parametrize("series", ["5.2", "6"])
def test_djangos_tests(request: pytest.FixtureRequest, tmp_path: Path, urls: str, series: str) -> None:
    assert request.config.cache is not None
    if series == "5.2":
        python, path, version = sys.executable, [], django.__version__
        assert version.startswith(series)
    else:
        python, path = libraries_for_django_6(request.config)
        version = django_version(path[0])
    source = source_of(version, python, request.config.cache.mkdir(f"django-{series}"))
    tests = tmp_path / "tests"
    shutil.copytree(source / "tests", tests)
    (tests / "cache" / "dss_tests.py").write_text(CACHE_TESTS)
    (tests / "dss_settings.py").write_text(SETTINGS)
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    environment |= {
        "DSS_URLS": urls,
        "DSS_NAMESPACE": f"suite-{series}",
        "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT / "client", tests])),
    }
    command = [python, str(tests / "runtests.py"), "--parallel=1", "--settings=dss_settings", *LABELS]
    run = subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True)
    ran = re.search(r"^Ran (\d+) tests", run.stderr, re.MULTILINE)
    assert ran is not None, run.stderr[-2000:]
    assert int(ran.group(1)) >= TESTS_MIN, run.stderr[-2000:]
    failed = set(re.findall(r"^(?:FAIL|ERROR): (\w+)", run.stderr, re.MULTILINE))
    assert failed == CULLING, run.stderr[-5000:]

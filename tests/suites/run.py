"""Run the tests of other projects against our nodes, and print one table. Exit status 1: fewer tests of a suite have passed than required.

    python tests/suites/run.py [--nodes 3] [NAME …]

The sources come from PyPI (sdists.txt), and the packages that their tests need are installed into .venv-suites (requirements.lock). pip
accepts only what has a hash in these two files.
What the table counts as excluded is in catalog.py, each test with its reason.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from catalog import SUITES, Suite

from dss_dev.local_cluster import ROOT, LocalCluster, free_ports
from dss_dev.prepared_pages import ENVIRONMENT, prepare_pages

HERE = Path(__file__).parent
VENV = ROOT / ".venv-suites"
PYTHON = VENV / "bin" / "python"
SOURCES = ROOT / "build" / "suites"
#: a suite that hangs ends here
SUITE_S_MAX = 1800


class Row(NamedTuple):
    """What came of a suite."""

    suite: Suite
    ran: int
    #: ids of the tests that failed
    failed: list[str]
    skipped: int

    @property
    def passed(self) -> int:
        return self.ran - len(self.failed)

    @property
    def is_enough(self) -> bool:
        return self.passed >= self.suite.least


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of: {', '.join(suite.name for suite in SUITES)}; all by default"
    )
    parser.add_argument("--nodes", type=int, default=1, help="the size of the cluster")
    given = parser.parse_args()
    # Ended by a signal, it stops the nodes, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    unknown = set(given.names) - {suite.name for suite in SUITES}
    if unknown:
        parser.error(f"there is no suite {', '.join(sorted(unknown))}")
    chosen = [suite for suite in SUITES if not given.names or suite.name in given.names]
    install()
    fetch()
    rows = []
    with tempfile.TemporaryDirectory(prefix="dss-suites-") as directory:
        for suite in chosen:
            print(f"\n== {suite.name}", flush=True)
            rows.append(run(suite, given.nodes, Path(directory) / suite.name))
    print("\n" + table(rows))
    return 0 if all(row.is_enough for row in rows) else 1


def install() -> None:
    """Make .venv-suites, unless it was made from the same list."""
    _once(VENV / ".ready", HERE / "requirements.lock", _pip_install)


def _pip_install() -> None:
    print(f"Setting up {VENV.name} (once, some minutes)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    _pip("install", "--require-hashes", "-r", str(HERE / "requirements.lock"))
    # The client, whose transports some suites test.
    _pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT / "client"))


def fetch() -> None:
    """Unpack the sources into build/suites, unless they are there."""
    _once(SOURCES / ".ready", HERE / "sdists.txt", _download)


def _download() -> None:
    print("Fetching the sources", flush=True)
    SOURCES.mkdir(parents=True, exist_ok=True)
    exactly = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes")
    _pip("download", *exactly, "-d", str(SOURCES), "-r", str(HERE / "sdists.txt"))
    for archive in SOURCES.glob("*.tar.gz"):
        with tarfile.open(archive) as source:
            source.extractall(SOURCES, filter="data")


def _once(stamp: Path, wanted: Path, work: Callable[[], None]) -> None:
    digest = sha256(wanted.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        work()
        stamp.write_text(digest)


def _pip(*arguments: str) -> None:
    subprocess.run([PYTHON, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


def source_of(suite: Suite) -> Path:
    """The folder with the source of a suite."""
    versions = dict(line.split()[0].split("==") for line in (HERE / "sdists.txt").read_text().splitlines() if "==" in line)
    return SOURCES / f"{suite.sdist}-{versions[suite.sdist]}"


def run(suite: Suite, node_count: int, directory: Path) -> Row:
    """Run a suite against a cluster of its own."""
    ports = free_ports(2 * node_count)
    cluster = LocalCluster(directory, ports[:node_count], ENVIRONMENT)
    for node, port in zip(cluster.nodes, ports[node_count:], strict=True):
        node.environment["DSS_SQS_PORT"] = str(suite.sqs_port if suite.sqs_port and node is cluster.nodes[0] else port)
    prepare_pages(cluster)
    cluster.start()
    try:
        cluster.wait_ready()
        return _run_pytest(suite, cluster, directory / "report.xml")
    finally:
        cluster.stop()


def _run_pytest(suite: Suite, cluster: LocalCluster, report: Path) -> Row:
    command = [str(PYTHON), "-m", "pytest", "-q", "--no-header", "--tb=short", "--disable-warnings", "--color=no"]
    command += ["-p", "no:cacheprovider", "--timeout=300", f"--junitxml={report}"]
    for plugin in suite.plugins:
        command += ["-p", plugin]
    for node_id in suite.excluded:
        command += ["--deselect", node_id]
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith(("DSS_", "DJANGO_"))},
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "PYTHONPATH": str(HERE / "plugins"),
        **suite.environment(cluster),
    }
    subprocess.run(
        [*command, *suite.arguments, *suite.tests], cwd=source_of(suite), env=environment, timeout=SUITE_S_MAX, check=False
    )
    if not report.exists():
        return Row(suite, 0, ["the suite did not start"], 0)
    return counted(suite, ET.parse(report).getroot().iter("testcase"))


def counted(suite: Suite, cases: Iterable[ET.Element]) -> Row:
    """The row of a suite, from pytest's report."""
    # By name: a test with subtests is several cases.
    outcomes: dict[str, set[str]] = {}
    for case in cases:
        outcomes.setdefault(f"{case.get('classname')}::{case.get('name')}", set()).update(child.tag for child in case)
    skipped = [name for name, tags in outcomes.items() if "skipped" in tags]
    failed = [name for name, tags in outcomes.items() if tags & {"failure", "error"}]
    return Row(suite, len(outcomes) - len(skipped), failed, len(skipped))


def table(rows: list[Row]) -> str:
    """The rows as a table in Markdown, and below it the names of failed tests and the reasons of excluded ones."""
    lines = ["| suite | passed | ran | required | skipped | excluded |", "|---|---|---|---|---|---|"]
    for row in rows:
        suite = row.suite
        version = source_of(suite).name
        lines.append(
            f"| {suite.name} ({version}) | {row.passed} | {row.ran} | {suite.least} | {row.skipped} | {len(suite.excluded)} |"
        )
    for row in rows:
        lines += [f"- {row.suite.name}: failed: {name}" for name in row.failed]
        lines += [f"- {row.suite.name}: excluded: {name}: {reason}" for name, reason in row.suite.excluded.items()]
        if not row.is_enough:
            lines.append(f"- {row.suite.name}: TOO FEW PASSED: {row.passed}, required {row.suite.least}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

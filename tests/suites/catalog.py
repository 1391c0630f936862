"""The suites of other projects that `make suites` runs against our nodes. A new suite is one entry of `SUITES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dss_dev.local_cluster import HOST, LocalCluster


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Tests of another project."""

    #: of the row in the table, and for `make suites SUITES=…`
    name: str
    #: the source in sdists.txt
    sdist: str
    #: files, folders or node ids in it
    tests: tuple[str, ...]
    #: what the tests find in their environment
    environment: Callable[[LocalCluster], dict[str, str]] = lambda cluster: {}
    #: modules of `plugins/`, which fit the tests to our nodes
    plugins: tuple[str, ...] = ()
    #: further arguments of pytest
    arguments: tuple[str, ...] = ()
    #: the yardstick: with fewer passed tests, `make suites` fails
    least: int
    #: node id, or what it begins with -> why the test does not apply
    excluded: dict[str, str] = field(default_factory=dict)


def sqs_url(cluster: LocalCluster) -> str:
    """The SQS endpoint of the first node."""
    return f"http://{HOST}:{cluster.nodes[0].environment['DSS_SQS_PORT']}"


SUITES = (
    Suite(
        name="moto-sqs",
        sdist="moto",
        tests=("tests/test_sqs/test_sqs.py", "tests/test_sqs/test_sqs_message_attributes.py"),
        environment=lambda cluster: {"TEST_SERVER_MODE": "true", "TEST_SERVER_MODE_ENDPOINT": sqs_url(cluster)},
        plugins=("moto_server",),
        least=0,
    ),
    Suite(
        name="kombu-sqs",
        sdist="kombu",
        tests=("t/integration/test_sqs.py",),
        environment=lambda cluster: {"SQS_HOST": HOST, "SQS_PORT": sqs_url(cluster).rpartition(":")[2]},
        arguments=("-p", "no:cacheprovider"),
        least=0,
    ),
)

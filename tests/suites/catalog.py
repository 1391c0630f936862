"""The suites of other projects that `make suites` runs against our nodes. A new suite is one entry of `SUITES`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dss_dev.local_cluster import HOST, LocalCluster

HERE = Path(__file__).parent


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
    #: the port of the SQS endpoint of the first node, if the tests expect a certain one
    sqs_port: int = 0
    #: modules of `plugins/`, which fit the tests to our nodes
    plugins: tuple[str, ...] = ()
    #: further arguments of pytest
    arguments: tuple[str, ...] = ()
    #: how many tests must pass: with fewer, `make suites` fails
    least: int
    #: node id, or what it begins with -> why the test does not apply
    excluded: dict[str, str] = field(default_factory=dict)


def sqs_url(cluster: LocalCluster) -> str:
    """The SQS endpoint of the first node."""
    return f"http://{HOST}:{cluster.nodes[0].environment['DSS_SQS_PORT']}"


def dss_hosts(cluster: LocalCluster) -> str:
    """The nodes for a URL `dss://`."""
    return ",".join(node.url.removeprefix("http://") for node in cluster.nodes)


_MOTO = "tests/test_sqs/test_sqs.py::"
#: Each contradicts a sentence of AWS's documentation (the API reference of SQS).
MOTO_CONTRADICTS = {
    _MOTO + "test_create_queue_with_different_attributes_fail": (
        'creates a queue with FifoQueue "tru"; CreateQueue: "Valid values are true and false"'
    ),
    _MOTO + "test_message_retention_period": (
        'keeps messages for 1 s; MessageRetentionPeriod: "An integer from 60 seconds (1 minute) to 1,209,600 seconds (14 days)"'
    ),
    _MOTO + "test_message_delay_is_more_than_15_minutes": (
        'sends a MessageDeduplicationId to a standard queue; SendMessage: "This parameter applies only to FIFO (first-in-first-out) queues"'
    ),
    _MOTO + "test_delete_message_using_old_receipt_handle": (
        'deletes with an older handle; DeleteMessage: "you must use the ReceiptHandle from the most recent time you received the '
        'message. If you use an old ReceiptHandle, the request will succeed, but the message might not be deleted"'
    ),
    _MOTO + "test_change_message_visibility_on_old_message": (
        "changes the visibility with an older handle (the test itself says that the documentation differs); "
        'ChangeMessageVisibility: "MessageNotInflight: The specified message isn\'t in flight"'
    ),
    _MOTO + "test_batch_change_message_visibility_on_old_message": "as the test before, in a batch",
}

_CELERY = "t/integration/test_tasks.py::"
_NO_REMOTE_CONTROL = (
    "revokes by remote control, which Celery's worker does not have with `sqs://`: its transport names direct exchanges only"
)
CELERY_ON_SQS_EXCLUDED = {
    _CELERY + "test_tasks::test_reject_with_requeue_redelivers_and_succeeds": (
        "expects a rejected message within seconds; Kombu leaves it to its visibility timeout, here 30 min"
    ),
    **{
        _CELERY + f"test_tasks::{name}": _NO_REMOTE_CONTROL
        for name in (
            "test_revoked",
            "test_revoke_keeps_state_of_task_started_elsewhere",
            "test_revoked_by_headers_simple_canvas",
            "test_revoked_by_headers_complex_canvas",
            "test_revoke_by_stamped_headers_no_match",
        )
    },
}

#: Some tests look for what the worker logs at this level. Without it, Celery's worker for tests logs errors alone.
CELERY_LOGS = {"WORKER_LOGLEVEL": "INFO"}

SUITES = (
    Suite(
        name="moto-sqs",
        sdist="moto",
        tests=("tests/test_sqs/test_sqs.py", "tests/test_sqs/test_sqs_message_attributes.py"),
        environment=lambda cluster: {
            "TEST_SERVER_MODE": "true",
            "TEST_SERVER_MODE_ENDPOINT": "http://localhost:5000",
        },
        sqs_port=5000,
        plugins=("moto_server",),
        # 148 of 150, less those that contradict the documentation.
        least=148 - len(MOTO_CONTRADICTS),
        excluded={
            **MOTO_CONTRADICTS,
            _MOTO + "test_create_queues_in_multiple_region": "expects queues of its own in each region; a cluster is one region",
        },
    ),
    Suite(
        name="kombu-sqs",
        sdist="kombu",
        tests=("t/integration/test_sqs.py",),
        environment=lambda cluster: {"SQS_HOST": HOST, "SQS_PORT": sqs_url(cluster).rpartition(":")[2]},
        # Of 42.
        least=40,
        excluded={
            "t/integration/test_sqs.py::test_ack_invalid_receipt_with_backoff": (
                "expects the 404 of GoAws when a message is deleted twice (2 tests); DeleteMessage: "
                '"If you use an old ReceiptHandle, the request will succeed"'
            ),
        },
    ),
    Suite(
        name="clients-sqs",
        sdist="celery",
        tests=(str(HERE / "clients_sqs.py"),),
        environment=lambda cluster: {"SQS_URL": sqs_url(cluster)},
        # Not the settings and fixtures of our own tests.
        arguments=("-c", os.devnull, "--confcutdir", str(HERE)),
        # aioboto3 needs an older botocore than boto3 here, and is skipped.
        least=3,
    ),
    Suite(
        name="celery-sqs",
        sdist="celery",
        tests=("t/integration/test_tasks.py",),
        environment=lambda cluster: {
            "TEST_BROKER": f"sqs://any:any@{HOST}:{sqs_url(cluster).rpartition(':')[2]}",
            **CELERY_LOGS,
        },
        plugins=("celery.contrib.pytest", "celery_redis", "celery_sqs"),
        # Of 59, less the excluded ones; one has a race (queue/README.md).
        least=50,
        excluded=CELERY_ON_SQS_EXCLUDED,
    ),
    Suite(
        name="kombu-dss",
        sdist="kombu",
        tests=(str(HERE / "kombu_dss.py"),),
        arguments=("-c", os.devnull, "--confcutdir", str(HERE)),
        environment=lambda cluster: {"DSS_KOMBU_URL": f"dss://{dss_hosts(cluster)}//"},
        least=30,
    ),
    Suite(
        name="celery-dss",
        sdist="celery",
        tests=("t/integration/test_tasks.py", "t/integration/test_inspect.py", "t/integration/test_canvas.py"),
        environment=lambda cluster: {
            "TEST_BROKER": f"dss://{dss_hosts(cluster)}//",
            "TEST_BACKEND": f"dss://{dss_hosts(cluster)}",
            **CELERY_LOGS,
        },
        plugins=("celery.contrib.pytest", "celery_redis"),
        least=200,
    ),
    Suite(
        name="tooz-dss",
        sdist="tooz",
        tests=("tooz/tests/test_coordination.py",),
        environment=lambda cluster: {"TOOZ_TEST_URL": f"dss://{dss_hosts(cluster)}"},
        least=75,
    ),
)

"""Calls that schemathesis makes from the OpenAPI document: with valid and with invalid data, to a real node.

`DSS_SCHEMA_CALLS` is the number of calls: 300 in CI, 20,000 in `make fuzz`.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from requests import Session

from dss_api.fields import WAIT_MS_MAX
from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports

CALLS = int(os.environ.get("DSS_SCHEMA_CALLS", "300"))
REPORT_EVERY = 200
WAIT_MS = 5
#: A call waits for its default time if it does not say how long.
WAITS = {"/queue/consume": "timeout_ms"}

#: The node has it, because calls without a token end when the first one was made.
TOKEN = "fuzz"
AUTHORIZATION = {"Authorization": f"Bearer {TOKEN}"}

pytestmark = pytest.mark.cluster


@pytest.fixture
def node(tmp_path: Any) -> Iterator[LocalNode]:
    """A cluster of one: no call can remove its last voter or give its leadership away."""
    cluster = LocalCluster(
        tmp_path, free_ports(1), {"DSS_ADMIN_PASSWORD": "test", "DSS_LOG_FORMAT": "json", "DSS_API_TOKEN": TOKEN}
    )
    (only,) = cluster.nodes
    cluster.start()
    try:
        cluster.wait_ready()
        yield only
    finally:
        cluster.stop()


@pytest.fixture
def schemathesis() -> Any:
    """Imported here, because each worker of the tests would import it for nothing."""
    return pytest.importorskip(
        "schemathesis", reason="schemathesis is not installed: NO calls were made from the OpenAPI document"
    )


def test_calls_made_from_the_openapi_document(schemathesis: Any, node: LocalNode) -> None:
    checks = import_module("schemathesis.specs.openapi.checks")
    conformance = (checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance)
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    document = node.call("GET", "/api/schema", headers=AUTHORIZATION).json
    operations = [result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations()]
    strategies = [operation.as_strategy(generation_mode=mode) for operation in operations for mode in modes]
    statuses: Counter[str] = Counter()
    session = Session()
    session.headers.update(AUTHORIZATION)

    def call(case: Any) -> None:
        wait_briefly(case)
        response = case.call(base_url=node.url, session=session)
        statuses[f"{response.status_code} {case.meta.generation.mode.value}"] += 1
        assert response.status_code < 500 or response.status_code == 503, (case.as_curl_command(), response.text[:500])
        case.validate_response(response, checks=conformance)
        if sum(statuses.values()) % REPORT_EVERY == 0:
            print(f"{sum(statuses.values()):,}/{CALLS:,} calls", file=sys.stderr, flush=True)

    for number in range(CALLS):
        left = CALLS - sum(statuses.values())
        if left <= 0:
            break
        quiet = settings(
            max_examples=max(1, left // len(strategies)),
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        for strategy in strategies:
            # Calls without parameters soon have no further requests, so there are several rounds; none of them can be invalid.
            with suppress(Unsatisfiable):
                seed(number)(quiet(given(case=strategy)(call)))()
    print(f"{sum(statuses.values()):,} calls: {', '.join(f'{name} {count:,}' for name, count in sorted(statuses.items()))}")
    assert node.is_running, node.log_tail()
    assert "Traceback" not in node.log_path.read_text()
    assert node.is_ready()


def wait_briefly(case: Any) -> None:
    """Leave out long waits, which are valid."""
    body = case.body
    if isinstance(body, dict):
        for name, value in body.items():
            if name in ("wait_ms", "timeout_ms") and isinstance(value, int | float) and WAIT_MS < value <= WAIT_MS_MAX:
                body[name] = WAIT_MS
        if case.path in WAITS:
            body.setdefault(WAITS[case.path], WAIT_MS)

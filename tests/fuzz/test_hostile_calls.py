"""The fuzzer of calls at a small size. `make fuzz` makes 200,000 calls."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
from call_fuzzer import ENVIRONMENT, Fuzzer, summary
from call_requests import RequestMaker, encode, is_json_object
from values import Seen, Values, struct_info

from dss_api.codec import RequestDecoder
from dss_api.errors import Refused
from dss_api.operation import Operation, Subscription
from dss_dev.local_cluster import LocalCluster, free_ports
from dss_project.registry import operations, subscriptions

CALLS = 1000
#: One in this many requests is decoded; all of them take a minute.
EVERY = 3
ALL: tuple[Operation | Subscription, ...] = (*operations(), *subscriptions())


def maker_of(operation: Operation | Subscription) -> RequestMaker:
    return RequestMaker(operation, Values(random.Random(operation.name), Seen()))


@pytest.mark.parametrize("operation", ALL, ids=lambda operation: operation.name)
def test_every_field_is_tried_and_each_refusal_names_it(operation: Operation | Subscription) -> None:
    maker = maker_of(operation)
    decoder = RequestDecoder(operation)
    assert {field.encode_name for field in struct_info(operation.request).fields} <= {path[0] for path in maker.paths if path}
    for (mutation,) in islice(maker.singles(), 0, None, EVERY):
        body = encode(maker.mutated((mutation,)))
        refusal = refusal_of(decoder, body)
        if refusal is None or not is_json_object(body):
            continue
        field = refusal.extra["field"]
        name = str(mutation.path[0]) if mutation.path else field
        assert field.startswith(name) or name in refusal.detail, (mutation, refusal)


def refusal_of(decoder: RequestDecoder, body: bytes) -> Refused | None:
    try:
        decoder.body(body)
    except Refused as refusal:
        return refusal
    return None


@pytest.mark.cluster
def test_hostile_calls_cost_an_answer_and_no_more(tmp_path: Path) -> None:
    fuzzer = Fuzzer(LocalCluster(tmp_path, free_ports(3), ENVIRONMENT), operations(), subscriptions(), calls=CALLS)
    fuzzer.run()
    print(summary(fuzzer))
    assert not fuzzer.faults, "\n".join(fuzzer.faults)
    assert fuzzer.made.total() > 0.95 * CALLS

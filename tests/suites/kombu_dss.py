"""kombu's integration tests of transports, for `dss://`: what each transport of kombu runs in a file of its own."""

from __future__ import annotations

import os

import kombu
import pytest
from t.integration.common import (
    BaseEventLoop,
    BaseExchangeTypes,
    BaseMessage,
    BasePriority,
    BaseTimeToLive,
    BasicFunctionality,
)

import dss_kombu

assert dss_kombu


@pytest.fixture
def connection() -> kombu.Connection:
    return kombu.Connection(os.environ["DSS_KOMBU_URL"])


@pytest.fixture
def invalid_connection() -> kombu.Connection:
    return kombu.Connection("dss://127.0.0.1:1")


class TestBasicFunctionality(BasicFunctionality):
    pass


class TestExchangeTypes(BaseExchangeTypes):
    pass


class TestTimeToLive(BaseTimeToLive):
    pass


class TestPriority(BasePriority):
    pass


class TestMessage(BaseMessage):
    pass


class TestEventLoop(BaseEventLoop):
    pass

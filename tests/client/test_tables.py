"""The client's tables of operations and errors are those of the server."""

from __future__ import annotations

from dss_api.problems import PROBLEMS
from dss_client import Refused
from dss_client.errors import NO_EFFECT, refusal
from dss_client.operations import NOT_NUMBERED, OPERATIONS, is_read
from dss_project.registry import operations


def test_every_problem_code_has_its_error() -> None:
    for code in PROBLEMS:
        if code not in NO_EFFECT and code != "unknown_outcome":
            error = refusal(PROBLEMS[code].status, {"code": code})
            assert type(error) is not Refused, code
            assert error.code == code


def test_a_code_of_a_newer_release_is_a_refusal() -> None:
    error = refusal(418, {"code": "teapot", "detail": "short and stout"})
    assert type(error) is Refused
    assert (error.code, error.status, str(error)) == ("teapot", 418, "short and stout (teapot)")


def test_operations_have_the_paths_of_the_api() -> None:
    given = {one.name: (one.method, one.path) for one in operations()}
    assert {name: OPERATIONS[name] for name in given if name in OPERATIONS} == {
        name: route for name, route in given.items() if name in OPERATIONS
    }
    assert set(given) - set(OPERATIONS) <= {"metrics"}


def test_operations_that_take_a_number() -> None:
    for one in operations():
        if one.name in OPERATIONS:
            numbered = not is_read(one.name) and one.name not in NOT_NUMBERED
            assert numbered == one.takes_request_id, one.name

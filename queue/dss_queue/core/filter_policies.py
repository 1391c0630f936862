"""Filter policies of SNS subscriptions: which messages a subscription gets, by their attributes.

A policy is a JSON object: attribute -> conditions, one of which must hold. All its attributes must match.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import eq, ge, gt, le, lt
from typing import Any

import msgspec

KEYS_MAX = 5
CONDITIONS_MAX = 150
_NUMERIC: dict[str, Callable[[float, float], bool]] = {"=": eq, "<": lt, "<=": le, ">": gt, ">=": ge}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")

#: attribute -> the values that it has: texts, numbers, true, false or null
Values = dict[str, list[Any]]
Policy = dict[str, list[Any]]


def parsed(text: str) -> Policy:
    """Raises:
    ValueError: it is no policy, or has a condition that is not there.
    """
    try:
        policy = msgspec.json.decode(text, type=dict[str, list[Any]])
    except (msgspec.MsgspecError, RecursionError):
        raise ValueError("it is not a JSON object of lists") from None
    if len(policy) > KEYS_MAX:
        raise ValueError(f"it has more than {KEYS_MAX} attributes")
    count = 1
    for name, conditions in policy.items():
        if not conditions:
            raise ValueError(f"{name}: the list is empty")
        count *= len(conditions)
        for condition in conditions:
            _check(name, condition)
    if count > CONDITIONS_MAX:
        raise ValueError(f"it has more than {CONDITIONS_MAX} combinations of conditions")
    return policy


def _check(name: str, condition: Any) -> None:
    if not isinstance(condition, dict):
        if isinstance(condition, list):
            raise ValueError(f"{name}: a condition is a text, a number, true, false, null, or an object")
        return
    if len(condition) != 1:
        raise ValueError(f"{name}: a condition has one key")
    ((kind, given),) = condition.items()
    is_text = isinstance(given, str)
    if kind in ("prefix", "suffix", "equals-ignore-case"):
        is_right = is_text
    elif kind == "exists":
        is_right = isinstance(given, bool)
    elif kind == "anything-but":
        rest = given if isinstance(given, list) else [given]
        is_affix = isinstance(given, dict) and len(given) == 1 and {*given} <= {"prefix", "suffix"}
        is_right = all(isinstance(one, str) for one in given.values()) if is_affix else bool(rest) and not _has_containers(rest)
    elif kind == "numeric":
        is_right = isinstance(given, list) and len(given) in (2, 4) and all(map(_is_comparison, given[::2], given[1::2]))
    else:
        raise ValueError(f"{name}: there is no condition {kind}")
    if not is_right:
        raise ValueError(f"{name}: the value of {kind} is not valid")


def _has_containers(values: list[Any]) -> bool:
    return any(isinstance(one, dict | list) for one in values)


def _is_comparison(operator: Any, number: Any) -> bool:
    return operator in _NUMERIC and isinstance(number, int | float) and not isinstance(number, bool)


def values_of(attributes: dict[str, dict[str, str]]) -> Values:
    """The values of the attributes of a message, in the form that SQS keeps them."""
    values: Values = {}
    for name, attribute in attributes.items():
        kind, text = attribute.get("DataType", ""), attribute.get("StringValue", "")
        if kind == "String.Array":
            try:
                values[name] = msgspec.json.decode(text, type=list[Any])
            except (msgspec.MsgspecError, RecursionError):
                values[name] = []
        elif kind.partition(".")[0] == "Number":
            values[name] = [float(text)] if _NUMBER.fullmatch(text) else []
        elif kind.partition(".")[0] == "String":
            values[name] = [text]
        else:
            values[name] = []
    return values


def matches(policy: Policy, values: Values) -> bool:
    """Whether a message with these values of attributes is sent."""
    return all(any(_holds(condition, values.get(name)) for condition in conditions) for name, conditions in policy.items())


def _holds(condition: Any, values: list[Any] | None) -> bool:
    if isinstance(condition, dict) and "exists" in condition:
        return condition["exists"] is (values is not None)
    return values is not None and any(_holds_for(condition, value) for value in values)


def _holds_for(condition: Any, value: Any) -> bool:
    if not isinstance(condition, dict):
        return _same(condition, value)
    ((kind, given),) = condition.items()
    if kind == "anything-but":
        if isinstance(given, dict):
            ((affix, text),) = given.items()
            return isinstance(value, str) and not _has_affix(affix, value, text)
        return not any(_same(one, value) for one in (given if isinstance(given, list) else [given]))
    if kind == "numeric":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and all(
            _NUMERIC[operator](value, number) for operator, number in zip(given[::2], given[1::2], strict=True)
        )
    if not isinstance(value, str):
        return False
    return value.lower() == given.lower() if kind == "equals-ignore-case" else _has_affix(kind, value, given)


def _has_affix(kind: str, value: str, text: str) -> bool:
    return value.startswith(text) if kind == "prefix" else value.endswith(text)


def _same(one: Any, other: Any) -> bool:
    # For Python, True is 1.
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)

"""Filter policies of SNS subscriptions: which messages a subscription gets, by their attributes.

A policy is a JSON object: attribute -> conditions, one of which must hold. All its attributes must match.
Conditions are sorted by kind when a policy is read, so that most of them together are one look-up for a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import eq, ge, gt, le, lt
from typing import Any

import msgspec

KEYS_MAX = 5
#: Combinations of conditions; each item of an `anything-but` list is a condition.
CONDITIONS_MAX = 150
#: Values of an attribute that are looked at: what an array has beyond does not match.
VALUES_MAX = 100
#: Comparisons of values with conditions that a command may need.
COMPARISONS_MAX = 200_000
#: What a parsed policy takes beside its texts, for each condition or attribute.
ITEM_BYTES = 128
_NUMERIC: dict[str, Callable[[float, float], bool]] = {"=": eq, "<": lt, "<=": le, ">": gt, ">=": ge}
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?")

# These types end the decoding at the first container that is too deep, at the same place on every node.
Scalar = str | int | float | bool | None
_Given = Scalar | list[Scalar] | dict[str, str]
_POLICY: msgspec.json.Decoder[dict[str, list[Any]]] = msgspec.json.Decoder(dict[str, list[Scalar | dict[str, _Given]]])
_ARRAY: msgspec.json.Decoder[list[Scalar]] = msgspec.json.Decoder(list[Scalar])


class Values:
    """The values of an attribute of a message."""

    def __init__(self, given: list[Scalar]) -> None:
        given = given[:VALUES_MAX]
        self.count = len(given)
        self.keys = [_key(one) for one in given]
        self.texts = [one for one in given if isinstance(one, str)]
        self.lowered = [one.lower() for one in self.texts]
        self.numbers = [one for one in given if isinstance(one, int | float) and not isinstance(one, bool)]


class Conditions:
    """The conditions on an attribute, one of which must hold."""

    def __init__(self) -> None:
        #: as in the policy; an item of an `anything-but` list is one
        self.count = 0
        self.exists: set[bool] = set()
        self.exact: set[Any] = set()
        self.lowered: set[str] = set()
        self.prefixes: tuple[str, ...] = ()
        self.suffixes: tuple[str, ...] = ()
        #: (operator, number), all of which must hold
        self.ranges: list[list[tuple[str, float]]] = []
        #: what all `anything-but` lists have; None: there is no such list
        self.excluded: set[Any] | None = None
        self.not_prefixes: list[str] = []
        self.not_suffixes: list[str] = []

    def add(self, condition: Any) -> None:
        """Raises:
        ValueError: there is no such condition.
        """
        self.count += 1
        if not isinstance(condition, dict):
            self.exact.add(_key(condition))
            return
        if len(condition) != 1:
            raise ValueError("a condition has one key")
        ((kind, given),) = condition.items()
        if kind == "prefix" and isinstance(given, str):
            self.prefixes += (given,)
        elif kind == "suffix" and isinstance(given, str):
            self.suffixes += (given,)
        elif kind == "equals-ignore-case" and isinstance(given, str):
            self.lowered.add(given.lower())
        elif kind == "exists" and isinstance(given, bool):
            self.exists.add(given)
        elif kind == "anything-but" and isinstance(given, dict) and len(given) == 1 and {*given} <= {"prefix", "suffix"}:
            self.not_prefixes += [given["prefix"]] if "prefix" in given else []
            self.not_suffixes += [given["suffix"]] if "suffix" in given else []
        elif kind == "anything-but" and not isinstance(given, dict) and given != []:
            excluded = {_key(one) for one in (given if isinstance(given, list) else [given])}
            self.count += len(given) - 1 if isinstance(given, list) else 0
            # What is not in one of several lists is what is not in all of them.
            self.excluded = excluded if self.excluded is None else self.excluded & excluded
        elif kind == "numeric" and isinstance(given, list) and len(given) in (2, 4):
            self.ranges.append([_comparison(operator, number) for operator, number in zip(given[::2], given[1::2], strict=True)])
        elif kind in ("prefix", "suffix", "equals-ignore-case", "exists", "anything-but", "numeric"):
            raise ValueError(f"the value of {kind} is not valid")
        else:
            raise ValueError(f"there is no condition {kind}")

    def hold_for(self, values: Values | None) -> bool:
        """Whether one of the conditions holds. None: the message has no such attribute."""
        if (values is not None) in self.exists:
            return True
        if values is None:
            return False
        if any(one in self.exact for one in values.keys):
            return True
        if self.excluded is not None and any(one not in self.excluded for one in values.keys):
            return True
        if self.lowered and any(one in self.lowered for one in values.lowered):
            return True
        return any(map(self._holds_for_text, values.texts)) or any(
            all(_NUMERIC[operator](one, number) for operator, number in within)
            for within in self.ranges
            for one in values.numbers
        )

    def _holds_for_text(self, text: str) -> bool:
        return (
            text.startswith(self.prefixes)
            or text.endswith(self.suffixes)
            or any(not text.startswith(one) for one in self.not_prefixes)
            or any(not text.endswith(one) for one in self.not_suffixes)
        )


Policy = dict[str, Conditions]


def parsed(text: str) -> Policy:
    """The policy in a text.

    Raises:
        ValueError: it is not a policy, or has a condition that is not supported.
    """
    try:
        given = _POLICY.decode(text)
    except msgspec.MsgspecError:
        raise ValueError("it is not a JSON object of lists of texts, numbers, true, false, null, or conditions") from None
    if len(given) > KEYS_MAX:
        raise ValueError(f"it has more than {KEYS_MAX} attributes")
    policy: Policy = {}
    count = 1
    for name, conditions in given.items():
        if not conditions:
            raise ValueError(f"{name}: the list is empty")
        if len(conditions) > CONDITIONS_MAX:
            raise ValueError(f"{name}: it has more than {CONDITIONS_MAX} conditions")
        policy[name] = Conditions()
        try:
            for condition in conditions:
                policy[name].add(condition)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        count *= policy[name].count
    if count > CONDITIONS_MAX:
        raise ValueError(f"it has more than {CONDITIONS_MAX} combinations of conditions")
    return policy


def parsed_bytes(text: str) -> int:
    """What the parsed form of a policy takes at most, beside a second copy of its texts."""
    return ITEM_BYTES * min(text.count(",") + text.count(":"), 2 * CONDITIONS_MAX)


def values_of(attributes: dict[str, dict[str, str]]) -> dict[str, Values]:
    """The values of the attributes of a message, in the form that SQS keeps them."""
    values: dict[str, Values] = {}
    for name, attribute in attributes.items():
        kind, text = attribute.get("DataType", ""), attribute.get("StringValue", "")
        given: list[Scalar] = []
        if kind == "String.Array":
            try:
                given = _ARRAY.decode(text)
            except msgspec.MsgspecError:
                given = []
        elif kind.partition(".")[0] == "Number":
            given = [float(text)] if _NUMBER.fullmatch(text) else []
        elif kind.partition(".")[0] == "String":
            given = [text]
        values[name] = Values(given)
    return values


def comparisons(policy: Policy, values: dict[str, Values]) -> int:
    """How many comparisons `matches` needs at most."""
    return sum(conditions.count * values[name].count for name, conditions in policy.items() if name in values)


def matches(policy: Policy, values: dict[str, Values]) -> bool:
    """Whether a message with these values of attributes is sent."""
    return all(conditions.hold_for(values.get(name)) for name, conditions in policy.items())


def _comparison(operator: Scalar, number: Scalar) -> tuple[str, float]:
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not isinstance(operator, str) or operator not in _NUMERIC or not is_number:
        raise ValueError("the value of numeric is not valid")
    assert isinstance(number, int | float)
    return operator, number


def _key(value: Scalar) -> Any:
    # For Python, True is 1.
    return (value,) if isinstance(value, bool) else value

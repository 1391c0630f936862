"""A strict check of answers, for tests: the JSON that a client gets must decode into the Struct that declares it.

An entry point checks the names of all fields when it encodes an answer. This module also checks the types of all values, and the
members of problem documents, which an entry point does not check.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import msgspec

from dss_api.answer import Answer, Part
from dss_api.codec import AnswerEncoder, EncodedAnswer
from dss_api.problems import PROBLEMS, problem_document
from dss_api.result import Result


@cache
def _decoder(struct: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(struct)


def check(answer: type[Answer], status: int, body: bytes) -> str:
    """What is wrong with a call's answer; "" if nothing is."""
    try:
        if status == 200:
            _decoder(answer).decode(body)
        else:
            _check_problem(msgspec.json.decode(body))
    except msgspec.ValidationError as error:
        return f"{error}: {body!r}"
    return ""


def _check_problem(document: dict[str, Any]) -> None:
    code = document["code"]
    extra = {name: value for name, value in document.items() if name not in {*problem_document(code), "index"}}
    msgspec.convert(extra, PROBLEMS[code].members or Part)


@contextmanager
def checked(prefixes: tuple[str, ...]) -> Iterator[None]:
    """Check the answers that this process encodes for operations whose name begins with one of `prefixes`.

    Raises:
        AssertionError: at the end, if one was wrong.
    """
    encode = AnswerEncoder.encode
    wrong: list[str] = []

    def encode_and_check(encoder: AnswerEncoder, result: Result | Answer, attaches: bool = False) -> EncodedAnswer:
        encoded = encode(encoder, result, attaches)
        if encoder.name.startswith(prefixes) and (error := check(encoder.answer, encoded.status, encoded.body)):
            wrong.append(f"{encoder.name}: {error}")
        return encoded

    with mock.patch.object(AnswerEncoder, "encode", encode_and_check):
        yield
    assert not wrong, wrong

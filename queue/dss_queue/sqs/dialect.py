"""The older query protocol has a dialect for each service."""

from __future__ import annotations

from typing import NamedTuple


class Dialect(NamedTuple):
    """How a service writes lists and maps in this protocol."""

    namespace: str
    #: lists and maps have an element of their own, with elements `member` and `entry` in it
    is_nested: bool


SQS = Dialect("http://queue.amazonaws.com/doc/2012-11-05/", is_nested=False)
SNS = Dialect("http://sns.amazonaws.com/doc/2010-03-31/", is_nested=True)

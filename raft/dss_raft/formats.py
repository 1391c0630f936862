"""The versions of stored and sent formats. Each format begins with its version, which is read before anything else is decoded.

Theory of operation
-------------------
1. A binary format begins with its version in one byte. A msgpack format is an array, and its version is the first element, so it is
   the second byte of the data (`array_version`). Reading it takes neither a decoder nor a copy.
2. A format whose version is newer than this release is refused with `WrongFormat`: one line for the operator. It is never decoded.
3. Releases up to 662b62d wrote some formats without a version. Their first byte or length shows that, and they count as version 0.
4. A changed format gets a new version. A release writes it only once the cluster version says that all members read it (see `versions`).
   So of two releases that work together, neither gets data in a format that it does not know.

docs/reference/formats.md lists all formats. A test compares it with the code.
"""

from __future__ import annotations

from typing import NamedTuple

from dss_api.errors import ForOperator

#: the highest version that msgpack encodes in one byte
VERSION_MAX = 127
#: msgpack arrays of 1 to 15 elements
_ARRAY_MIN, _ARRAY_MAX = 0x91, 0x9F


class WrongFormat(ForOperator):
    """Data have a version that this release does not read. The text is one line that says what to do."""


class Format(NamedTuple):
    """A format that this release reads and writes."""

    #: the name in messages: "this snapshot", "entry 7"
    name: str
    #: the version that this release writes, and the newest that it reads
    version: int
    #: the oldest version that this release reads
    oldest: int = 1

    def require(self, version: int, name: str = "") -> None:
        """Check the version of some data.

        Args:
            name: what the data are, if that says more than the name of the format.

        Raises:
            WrongFormat: this release does not read it.
        """
        if version > self.version:
            raise WrongFormat(
                f"{name or self.name} has format {version}, and this release reads formats up to {self.version}: start the release "
                "that wrote it, or a newer one"
            )
        if version < self.oldest:
            raise WrongFormat(
                f"{name or self.name} was written by a release before 0.2.0 in a format that this release no longer reads: start the "
                "release that wrote it"
            )

    def of_binary(self, data: bytes | memoryview) -> int:
        """The version in the first byte, checked.

        Raises:
            WrongFormat: this release does not read it, or there is none.
        """
        if not len(data):
            raise WrongFormat(f"{self.name} is empty")
        self.require(data[0])
        return data[0]


def array_version(data: bytes | memoryview) -> int | None:
    """The version of a msgpack array; None if the data do not begin with an array and a version."""
    if len(data) < 2 or not _ARRAY_MIN <= data[0] <= _ARRAY_MAX or data[1] > VERSION_MAX:
        return None
    return data[1]

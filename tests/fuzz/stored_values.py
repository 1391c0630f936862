"""Cache keys whose values are hostile: while they are dirty, and at rest."""

from __future__ import annotations

import itertools
import random

from values import EDGES

#: JSON. `incr` adds to integers; the rest must be refused there, and read back everywhere.
VALUES: tuple[str, ...] = (
    *dict.fromkeys(str(edge) for edge in EDGES if abs(edge) >= 2**53),
    *("0", "-1", "0.5", '"1"', "null", "[]", "9" * 400),
)
#: Stands for the key of a stored value in a hostile text: `"$stored:3"`.
PLACEHOLDER = "$stored:"
#: Each value is stored under this many keys, so that few calls meet a value that another call has changed.
COPIES = 20


class StoredValues:
    """The keys that hold each of `VALUES`."""

    def __init__(self, rng: random.Random) -> None:
        self._random = rng
        self._prefix = ""
        self._rounds = itertools.count()
        self._copy = itertools.cycle(range(COPIES))

    def renew(self) -> list[bytes]:
        """Name new keys. Returns the bodies of the `mput` calls that store their values."""
        self._prefix = f"stored-{next(self._rounds)}"
        bodies = []
        for copy in range(COPIES):
            items = ",".join(f'{{"key":"{self._key(number, copy)}","value":{value}}}' for number, value in enumerate(VALUES))
            bodies.append(f'{{"items":[{items}]}}'.encode())
        return bodies

    def any_key(self) -> str:
        """The key of a random value."""
        return self._key(self._random.randrange(len(VALUES)), next(self._copy))

    def keys(self) -> list[str]:
        """All keys."""
        return [self._key(number, copy) for number in range(len(VALUES)) for copy in range(COPIES)]

    def filled_in(self, text: str) -> str:
        """A hostile text with the key of the value that it asks for."""
        before, found, rest = text.partition(PLACEHOLDER)
        if not found:
            return text
        number, quote, after = rest.partition('"')
        return f"{before}{self._key(int(number), next(self._copy))}{quote}{after}"

    def _key(self, number: int, copy: int) -> str:
        return f"{self._prefix}-{number}-{copy}"


def placeholders() -> list[str]:
    """A hostile text for each stored value."""
    return [f'"{PLACEHOLDER}{number}"' for number in range(len(VALUES))]

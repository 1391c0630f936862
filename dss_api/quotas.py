"""How much one token or one address may use of a node at a time, and in a second. Each node counts for itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from dss_api.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Addresses and tokens whose rate is remembered. One that has not called for a second need not be.
RATES_MAX = 10_000


@dataclass(frozen=True)
class Limit:
    """A limit with the setting that changes it. 0: unlimited."""

    name: str
    setting: str
    maximum: int

    def refusal(self, whose: str) -> Refused:
        detail = f"{whose} has reached the limit {self.name} of this node, {self.maximum} ({self.setting})"
        return Refused("over_limit", detail, limit=self.name, maximum=self.maximum)


class Rates:
    """Limits how many calls each of many callers may begin in a second. A caller that was idle may begin a second's calls together."""

    def __init__(self, limit: Limit, clock: Callable[[], float] = monotonic) -> None:
        self._limit = limit
        self._clock = clock
        #: caller -> when it may begin the next call, if it never began two together
        self._free_at: dict[str, float] = {}

    def take(self, caller: str) -> None:
        """A call begins.

        Raises:
            Refused: `over_limit`.
        """
        maximum = self._limit.maximum
        if not maximum:
            return
        now = self._clock()
        free_at = max(self._free_at.get(caller, 0.0), now - 1.0)
        if free_at + 1.0 / maximum > now + 1e-9:
            raise self._limit.refusal(caller)
        if len(self._free_at) >= RATES_MAX and caller not in self._free_at:
            self._forget_idle(now)
        self._free_at[caller] = free_at + 1.0 / maximum

    def _forget_idle(self, now: float) -> None:
        self._free_at = {caller: free_at for caller, free_at in self._free_at.items() if free_at > now - 1.0}
        if len(self._free_at) >= RATES_MAX:
            # More callers than that in one second: each of them may begin a second's calls again.
            self._free_at.clear()


class InUse:
    """Limits how many of something each of many callers may have at a time."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._count: Counter[str] = Counter()

    def take(self, caller: str) -> None:
        """Count one, until `give_back`.

        Raises:
            Refused: `over_limit`.
        """
        if self._limit.maximum and self._count[caller] >= self._limit.maximum:
            if not self._count[caller]:
                del self._count[caller]
            raise self._limit.refusal(caller)
        self._count[caller] += 1

    def give_back(self, caller: str) -> None:
        self._count[caller] -= 1
        if not self._count[caller]:
            del self._count[caller]

    @contextmanager
    def one(self, caller: str) -> Iterator[None]:
        """Count one while this is open."""
        self.take(caller)
        try:
            yield
        finally:
            self.give_back(caller)


class TokenQuotas:
    """The quotas of tokens. By default there are none.

    Args:
        calls_per_second, calls, connections, subscriptions: of one token on this node; 0: unlimited. Connections are WebSockets.
    """

    def __init__(self, calls_per_second: int = 0, calls: int = 0, connections: int = 0, subscriptions: int = 0) -> None:
        self.is_limited = bool(calls_per_second or calls)
        self.rates = Rates(Limit("calls_per_second_per_token_max", "DSS_CALLS_PER_SECOND_PER_TOKEN_MAX", calls_per_second))
        self.calls = InUse(Limit("calls_per_token_max", "DSS_CALLS_PER_TOKEN_MAX", calls))
        self.connections = InUse(Limit("websockets_per_token_max", "DSS_WEBSOCKETS_PER_TOKEN_MAX", connections))
        self.subscriptions = InUse(Limit("subscriptions_per_token_max", "DSS_SUBSCRIPTIONS_PER_TOKEN_MAX", subscriptions))

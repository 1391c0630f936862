"""Failed logins and invalid tokens: counted, logged, and slowed down.

Theory of operation
-------------------
1. Each failure is a *debt* of its address, and a failed login also one of the user name. A debt goes down with time: `every_s` for each
   failure. An address or a name with `burst` debts waits until one of them is paid off. So no one is locked out for good, and a program
   that guesses passwords gets one try in `every_s`. With IPv6, one customer can have 65536 networks of `IPV6_PREFIX`, each of which counts
   as an address. So the larger network of `IPV6_SITE_PREFIX` has a debt, too.
2. A login is charged before the password is checked, and a good one gets that back: a hundred tries in parallel are not more than a hundred
   tries one after another.
3. The name's debt does not count for an address that has none itself. So a stranger who guesses passwords of `alice` does not keep Alice
   out, who comes from another address.
4. A valid token is never slowed down, whatever its address owes; only the answers to invalid ones change from 401 to 429.
5. Log lines are limited for each address. They never have a password, a token, or the name of a user that does not exist: people type
   their password into the wrong field.

Each node counts for itself, in memory. All parts may be called from several threads.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from time import monotonic
from typing import Literal, get_args

import structlog
from prometheus_client import Counter

from dss_api.errors import Refused

log = structlog.get_logger("access")

#: Failed logins from one address: so many without a pause, then one in so many seconds.
LOGINS_PER_ADDRESS_MAX = 10
LOGIN_OF_ADDRESS_EVERY_S = 60.0
#: the same for one user name, from all addresses that have failed themselves
LOGINS_PER_NAME_MAX = 20
LOGIN_OF_NAME_EVERY_S = 30.0
#: the same for one large network of IPv6. In the long run, checking these takes a sixth of the time that there is for all logins.
LOGINS_PER_NETWORK_MAX = 100
LOGIN_OF_NETWORK_EVERY_S = 2.0
#: calls with an invalid token from one address
TOKENS_PER_ADDRESS_MAX = 1_000
TOKEN_EVERY_S = 0.1
#: Addresses, or names, whose failures are remembered.
DEBTORS_MAX = 10_000
#: An address is logged at most once in this time; the next line says how many there were.
LOG_EVERY_S = 10.0
#: Prefix of an IPv6 address that counts as one: what one customer usually gets.
IPV6_PREFIX = 64
#: what a large customer gets
IPV6_SITE_PREFIX = 48

LoginResult = Literal["ok", "failed", "slowed_down", "overloaded"]
TokenFault = Literal["missing", "invalid"]

LOGINS = Counter("dss_logins_total", "Logins of users on this node, by result.", ["result"])
UNAUTHENTICATED = Counter("dss_unauthenticated_total", "Requests without a valid token, by what was wrong.", ["reason"])
for _result in get_args(LoginResult):
    LOGINS.labels(_result)
for _reason in get_args(TokenFault):
    UNAUTHENTICATED.labels(_reason)
_MISSING, _INVALID = (UNAUTHENTICATED.labels(_reason) for _reason in get_args(TokenFault))


def group_of(address: str, prefix: int = IPV6_PREFIX) -> str:
    """What counts as one address; with IPv6, the network of this prefix."""
    if ":" not in address:
        return address
    try:
        # A socket that listens on `::` shows IPv4 clients as ::ffff:192.0.2.1, which would all be in one network.
        mapped = ipaddress.IPv6Address(address).ipv4_mapped
        return str(mapped or ipaddress.ip_network(f"{address}/{prefix}", strict=False))
    except ValueError:
        return address


class Debts:
    """How much each of many has failed lately. Not thread-safe by itself.

    Args:
        burst: failures without a pause.
        every_s: how long each of them counts.
    """

    def __init__(self, burst: int, every_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._burst = burst
        self._every_s = every_s
        self._clock = clock
        #: who -> when the last debt is paid off; the one that was changed last is at the end
        self._until: dict[str, float] = {}

    def has_any(self, who: str) -> bool:
        """Whether a failure still counts."""
        return self._until.get(who, 0.0) > self._clock()

    def wait_s(self, who: str) -> float:
        """How long until the next try; 0.0: now."""
        ahead = self._until.get(who, 0.0) - self._clock()
        return max(0.0, ahead - (self._burst - 1) * self._every_s)

    def add(self, who: str) -> None:
        now = self._clock()
        until = max(self._until.pop(who, 0.0), now) + self._every_s
        if len(self._until) >= DEBTORS_MAX:
            self._make_room(now)
        self._until[who] = until

    def take_back(self, who: str) -> None:
        """The last try was no failure."""
        if who in self._until:
            self._until[who] -= self._every_s

    def _make_room(self, now: float) -> None:
        self._until = {who: until for who, until in self._until.items() if until > now}
        while len(self._until) >= DEBTORS_MAX:
            del self._until[next(iter(self._until))]


class FailureLog:
    """A log line for the failures of an address, at most one in `LOG_EVERY_S`."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        #: what counts as one address -> when it was last logged, and how many failures there were since
        self._addresses: dict[str, tuple[float, int]] = {}

    def note(self, event: str, address: str, **fields: object) -> None:
        now = self._clock()
        who = group_of(address)
        logged_s, count = self._addresses.pop(who, (now - LOG_EVERY_S, 0))
        if now < logged_s + LOG_EVERY_S:
            self._addresses[who] = (logged_s, count + 1)
            return
        if len(self._addresses) >= DEBTORS_MAX:
            del self._addresses[next(iter(self._addresses))]
        self._addresses[who] = (now, 0)
        log.warning(event, address=address, failures_since_last_line=count, **fields)


class SlowedDown(Refused):
    """A login that has to wait for `wait_s` seconds."""

    def __init__(self, detail: str, limit: str, maximum: int, wait_s: int) -> None:
        super().__init__("over_limit", detail, limit=limit, maximum=maximum)
        self.wait_s = wait_s


class FailedLogins:
    """Slows down the logins of addresses and names that have failed. See the module."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._lock = Lock()
        self._of_address = Debts(LOGINS_PER_ADDRESS_MAX, LOGIN_OF_ADDRESS_EVERY_S, clock)
        self._of_network = Debts(LOGINS_PER_NETWORK_MAX, LOGIN_OF_NETWORK_EVERY_S, clock)
        self._of_name = Debts(LOGINS_PER_NAME_MAX, LOGIN_OF_NAME_EVERY_S, clock)
        self._log = FailureLog(clock)

    @contextmanager
    def login(self, address: str, name: str, is_known: bool) -> Iterator[Callable[[], None]]:
        """One login. Inside, check the password, and call the function that is given if it is right.

        Raises:
            SlowedDown: nothing may be checked now. If the check itself raises, the login counts as not made.
        """
        who, network = group_of(address), group_of(address, IPV6_SITE_PREFIX)
        self._begin(who, network, name, address, name if is_known else "")
        result: LoginResult = "failed"

        def succeeded() -> None:
            nonlocal result
            result = "ok"

        try:
            yield succeeded
        except BaseException:
            result = "overloaded"
            raise
        finally:
            LOGINS.labels(result).inc()
            with self._lock:
                self._end(who, network, name, result)
                if result == "failed":
                    self._log.note("access.login_failed", address, user=name if is_known else "(unknown)")

    def _begin(self, who: str, network: str, name: str, address: str, shown: str) -> None:
        with self._lock:
            wait_s = self._of_address.wait_s(who)
            limit, maximum = "failed_logins_per_address_max", LOGINS_PER_ADDRESS_MAX
            if not wait_s:
                wait_s = self._of_network.wait_s(network)
                limit, maximum = "failed_logins_per_network_max", LOGINS_PER_NETWORK_MAX
            if not wait_s and self._of_address.has_any(who):
                wait_s = self._of_name.wait_s(name)
                limit, maximum = "failed_logins_per_name_max", LOGINS_PER_NAME_MAX
            if wait_s:
                LOGINS.labels("slowed_down").inc()
                self._log.note("access.login_slowed_down", address, user=shown or "(unknown)", limit=limit)
                seconds = int(wait_s) + 1
                detail = f"there were too many failed logins; try again in {seconds} seconds"
                raise SlowedDown(detail, limit, maximum, seconds)
            self._of_address.add(who)
            self._of_network.add(network)
            self._of_name.add(name)

    def _end(self, who: str, network: str, name: str, result: LoginResult) -> None:
        # A good login does not pay for earlier failures: who has an account could guess the passwords of others between two of them.
        if result != "failed":
            self._of_address.take_back(who)
            self._of_network.take_back(network)
            self._of_name.take_back(name)


class FailedTokens:
    """Counts and logs calls without a valid token, and slows down addresses that have many."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._lock = Lock()
        self._of_address = Debts(TOKENS_PER_ADDRESS_MAX, TOKEN_EVERY_S, clock)
        self._log = FailureLog(clock)

    def note(self, address: str, was_given: bool) -> None:
        """A call from `address` is about to be answered 401.

        Raises:
            Refused: `over_limit`: to be answered instead.
        """
        if not was_given:
            _MISSING.inc()
            return
        _INVALID.inc()
        who = group_of(address)
        with self._lock:
            self._log.note("access.token_invalid", address)
            if self._of_address.wait_s(who):
                raise Refused(
                    "over_limit",
                    f"too many calls with an invalid token came from {address}; valid tokens are served",
                    limit="invalid_tokens_per_address_max",
                    maximum=TOKENS_PER_ADDRESS_MAX,
                )
            self._of_address.add(who)


def logins() -> FailedLogins:
    """Those of this process."""
    return _logins


_logins = FailedLogins()

"""A lock around a view, a task or a management command.

    @lock("invoice/{invoice_id}")
    def pay(request, invoice_id): ...

The clusters are those of the setting DSS: `{"URLS": ["http://127.0.0.1:8101"], "TOKEN": …}`, or those of DSS_URLS and DSS_TOKEN.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import string
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from django.conf import settings

from dss_client import Client, LockNotHeld, LockTimeout
from dss_django.clients import client_for

F = TypeVar("F", bound=Callable[..., Any])

_token: ContextVar[int | None] = ContextVar("dss_django_fencing_token", default=None)


def client() -> Client:
    """The client of the setting DSS, shared by this process.

    Raises:
        ImproperlyConfigured: see `client_for`.
    """
    given = {name.lower(): value for name, value in getattr(settings, "DSS", {}).items()}
    return client_for(given.pop("urls", None), given)


def lock(
    name: str,
    *,
    ttl: float | None = 30,
    wait: float | None = 10,
    shared: bool = False,
    busy: Callable[..., Any] | None = None,
) -> Callable[[F], F]:
    """Let one call at a time run, in all processes together.

    Args:
        name: of the lock. `{argument}` stands for an argument of the call: "invoice/{invoice_id}"; `{obj.pk}` for its attribute, and
            `{options[day]}` for an option of a management command.
        ttl: the lease in seconds; it is renewed while the call runs.
        wait: for how many seconds a call waits for its turn; None: without a limit.
        shared: several calls may run at a time, but none beside one that is not shared.
        busy: is called instead, with the same arguments, if the call did not get its turn. Without it, `LockTimeout` is raised.

    In the call, `fencing_token()` is the token for `FencedModel.save`.

    Raises:
        TypeError: the name has an argument that the function does not have.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        _check(name, signature)

        def key(arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            return name.format_map({**named, **bound.arguments})

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded(*arguments: Any, **named: Any) -> Any:
                shared_client = client()
                turn = shared_client._client.lock(key(arguments, named), ttl=ttl, wait=wait, shared=shared)
                try:
                    held = await shared_client._await(turn.__aenter__())
                except LockTimeout:
                    if busy is None:
                        raise
                    other = busy(*arguments, **named)
                    return await other if inspect.isawaitable(other) else other
                before = _token.set(held.token)
                try:
                    result = await function(*arguments, **named)
                except BaseException as error:
                    await shared_client._await(turn.__aexit__(type(error), error, error.__traceback__))
                    raise
                finally:
                    _token.reset(before)
                await shared_client._await(turn.__aexit__(None, None, None))
                return result
        else:

            @functools.wraps(function)
            def guarded(*arguments: Any, **named: Any) -> Any:
                turn = client().lock(key(arguments, named), ttl=ttl, wait=wait, shared=shared)
                try:
                    held = turn.__enter__()
                except LockTimeout:
                    if busy is None:
                        raise
                    return busy(*arguments, **named)
                with contextlib.ExitStack() as release:
                    release.push(turn.__exit__)
                    release.callback(_token.reset, _token.set(held.token))
                    return function(*arguments, **named)

        return guarded  # type: ignore[return-value]

    return decorate


def fencing_token() -> int:
    """The token of the lock that protects the present call: of the innermost `@lock` around it.

    Raises:
        LockNotHeld: there is none.
    """
    token = _token.get()
    if token is None:
        raise LockNotHeld("no function with @lock is running here")
    return token


def _check(name: str, signature: inspect.Signature) -> None:
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in signature.parameters.values())
    for _, field, _, _ in string.Formatter().parse(name):
        argument = (field or "").partition(".")[0].partition("[")[0]
        if field is not None and argument not in signature.parameters and not takes_any:
            raise TypeError(f"the lock's name has {{{field}}}, which the function does not take")

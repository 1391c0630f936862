"""The operations that make, show, change and revoke tokens. See `replication.access_tokens`.

Who can make a token can make one for everything, so all of them need the scope `all`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from dss_api import token_text
from dss_api.caller import caller
from dss_api.errors import Refused
from dss_api.fields import DurationMs, Fields, Name, check_name
from dss_api.operation import Operation
from dss_api.request_id import RequestId
from dss_api.result import Result
from dss_api.rights import ONLY_ALL, split_scope
from dss_raft.answers import TokenMade, TokenRevoked, TokenRow, Tokens
from dss_raft.replication.access_tokens import (
    SINCE,
    AccessTokens,
    CreateToken,
    OverlapMs,
    RevokeToken,
    RotateToken,
    Scopes,
    TokenId,
    describe,
)
from dss_raft.tokens import SERVICE

if TYPE_CHECKING:
    from dss_api.guard import Guard
    from dss_api.token_text import TokenKey
    from dss_raft.node import Node


class ListTokens(Fields):
    """Call without parameters."""


class CreateTokenRequest(Fields):
    """Make a token."""

    #: for people; in the list, the log and the audit trail
    name: Name
    #: what it may do
    scopes: Scopes
    #: 0: it does not expire
    expires_in_ms: DurationMs = 0

    def __post_init__(self) -> None:
        check_name("name", self.name)
        for scope in self.scopes:
            try:
                split_scope(scope)
            except ValueError as error:
                raise ValueError(f"`scopes`: {str(error).replace('`', '')}") from None


class RotateTokenRequest(Fields):
    """Give a token another secret."""

    id: TokenId
    #: the present secret stays valid for this time
    overlap_ms: OverlapMs = 0


async def list_tokens(node: Node, request: ListTokens) -> Tokens:
    await node.read_index()
    tokens = cast(AccessTokens, node.machine("tokens")).tokens.values()
    key = _key_of(node)
    return Tokens(tokens=[TokenRow(**describe(token), old_key=key is None or token.key != key.id) for token in tokens])


async def wait_for_version(node: Node) -> None:
    """A new cluster gets its version in the moments after it was formed. If it does not come, the call is refused."""
    if node.replica.cluster_version < SINCE:
        await node.until(lambda: node.replica.cluster_version >= SINCE)


async def create(node: Node, request: CreateTokenRequest, once: RequestId | None = None) -> Result | TokenMade:
    key = _key(node)
    command = CreateToken(
        id=token_text.new_id(),
        name=request.name,
        scopes=request.scopes,
        key=key.id,
        expires_in_ms=request.expires_in_ms,
        by=caller().name,
    )
    return _made(key, await node.submit(command, once=once))


async def rotate(node: Node, request: RotateTokenRequest, once: RequestId | None = None) -> Result | TokenMade:
    key = _key(node)
    return _made(key, await node.submit(RotateToken(id=request.id, key=key.id, overlap_ms=request.overlap_ms), once=once))


async def revoke(node: Node, request: RevokeToken, once: RequestId | None = None) -> Result:
    return await node.submit(request, once=once)


def _made(key: TokenKey, result: Result) -> Result | TokenMade:
    """The answer with the secret, which is shown here only. A repeat of the call gets the same one."""
    if result.code:
        return result
    fields = dict(result.body)
    token_id = fields.pop("id")
    text = token_text.text_of(key, token_id, fields["generation"])
    return TokenMade(token=text, token_id=token_id, index=result.index, **fields)


def _key(node: Node) -> TokenKey:
    """Raises:
    Refused: `invalid`: the nodes have no secret in common.
    """
    key = _key_of(node)
    if key is None:
        raise Refused(
            "invalid", "the nodes have no secret in common: set DSS_CLUSTER_SECRET (or DSS_TOKEN_KEY) on every node first"
        )
    return key


def _key_of(node: Node) -> TokenKey | None:
    """The key of new tokens."""
    guard = cast("Guard | None", node.services.get(SERVICE))
    return guard.key if guard is not None else None


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="tokens.list",
        method="GET",
        path="/tokens",
        request=ListTokens,
        handle=list_tokens,
        answer=Tokens,
        needs=ONLY_ALL,
        summary="List the tokens",
        description="All tokens with their scopes, their end, and their last use to the hour. Secrets are never shown again.",
        tag="Access",
    ),
    Operation(
        name="tokens.create",
        method="POST",
        path="/tokens",
        request=CreateTokenRequest,
        handle=create,
        prepare=wait_for_version,
        answer=TokenMade,
        needs=ONLY_ALL,
        takes_request_id=True,
        summary="Make a token",
        description=(
            "The answer has the token, which is not shown again: no node stores it. With the first token, the cluster is closed: from "
            "then on calls need a token, also on loopback, and also when all tokens are revoked."
        ),
        tag="Access",
        example={"name": "billing", "scopes": ["queue:orders:consume", "locks:orders/"], "expires_in_ms": 7776000000},
        problems=("not_supported_yet",),
    ),
    Operation(
        name="tokens.rotate",
        method="POST",
        path="/tokens/rotate",
        request=RotateTokenRequest,
        handle=rotate,
        answer=TokenMade,
        needs=ONLY_ALL,
        takes_request_id=True,
        summary="Give a token another secret",
        description="Its id, scopes and end stay. The secret before it is valid for another `overlap_ms`, one before that is not.",
        tag="Access",
        example={"id": "3f9a1c2b7d4e", "overlap_ms": 3600000},
        problems=("not_found", "not_supported_yet"),
    ),
    Operation(
        name="tokens.revoke",
        method="DELETE",
        path="/tokens/{id}",
        request=RevokeToken,
        handle=revoke,
        answer=TokenRevoked,
        needs=ONLY_ALL,
        takes_request_id=True,
        summary="Revoke a token",
        description=(
            "Ends it on every node as soon as the node has applied the call, with its WebSockets and the calls that wait. A repeat has no "
            "effect (`revoked: false`)."
        ),
        tag="Access",
        example={"id": "3f9a1c2b7d4e"},
        problems=("not_supported_yet",),
    ),
)

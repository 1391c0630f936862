"""Access to this node: the keys of its tokens, its guard, and what it says about both at its start."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from dss_api.guard import Guard
from dss_api.quotas import TokenQuotas
from dss_api.token_text import TokenKey, token_key
from dss_cli.find_cluster import TOKEN_KEY_FILE
from dss_project import secret_files
from dss_project.config import NodeConfig

FIRST_TOKEN = "manage.py token create NAME --scope SCOPE"


def needs_key_file(config: NodeConfig) -> bool:
    """Whether the node has a key of its own. The nodes of a cluster need the same key, so they need a setting."""
    return not (config.token_key or config.cluster_secret or config.peers or config.join)


def token_keys(config: NodeConfig) -> list[TokenKey]:
    """The keys of tokens, the one for new tokens first; empty if the nodes have no secret in common."""
    first = config.token_key or config.cluster_secret
    if not first and needs_key_file(config):
        path = Path(config.data_dir) / TOKEN_KEY_FILE
        first = secret_files.read_or_make(path) if path.exists() else ""
    if not first:
        return []
    # With a key of their own, tokens do not depend on the cluster's secret, neither the present nor the previous one.
    previous = (config.token_key_previous, "" if config.token_key else config.cluster_secret_previous)
    return [token_key(secret) for secret in dict.fromkeys((first, *previous)) if secret]


def needs_secret_key_file(config: NodeConfig) -> bool:
    """Whether Django's key is the node's own: nothing that all nodes have gives one."""
    return not (config.secret_key or config.token_key or config.cluster_secret)


def django_keys(config: NodeConfig) -> list[str]:
    """Django's secret keys, the one that signs first. Nodes with a secret in common have the same ones, so a session is valid on all."""
    if config.secret_key:
        return [config.secret_key]
    if needs_secret_key_file(config):
        # Not written here: the node command writes it, so that other commands create no files.
        return [secret_files.read_or_make(Path(config.data_dir) / "secret-key")]
    return [hmac.digest(key.key, b"django's secret key", sha256).hex() for key in token_keys(config)]


def cookie_suffix(keys: Sequence[str]) -> str:
    """Part of the names of cookies: the same on all nodes, and another one for other clusters. Browsers share cookies between ports.

    During a change of the secret, the nodes may have the same keys in another order.
    """
    return min(sha256(f"cookies {key}".encode()).hexdigest()[:8] for key in keys)


def make_key_file(config: NodeConfig) -> None:
    """Write the node's own key, at its first start."""
    if needs_key_file(config):
        path = Path(config.data_dir) / TOKEN_KEY_FILE
        secret_files.keep(path, secret_files.read_or_make(path))


def make_guard(config: NodeConfig) -> Guard:
    quotas = TokenQuotas(
        calls_per_second=config.calls_per_second_per_token_max,
        calls=config.calls_per_token_max,
        connections=config.websockets_per_token_max,
        subscriptions=config.subscriptions_per_token_max,
    )
    return Guard(config.api_token, config.open or config.is_local_only, token_keys(config), quotas=quotas)


def announce(config: NodeConfig, guard: Guard, log: Any) -> None:
    """Say at the start whether calls need a token."""
    if guard.is_open and config.is_local_only:
        log.info("node.open", hint=f"calls from this machine need no token until the first one is made: {FIRST_TOKEN}")
    elif guard.is_open:
        log.warning(
            "node.open_to_the_network",
            rpc_host=config.rpc_host,
            because="DSS_OPEN=true",
            hint=f"every client that reaches this port may do everything until the first token is made: {FIRST_TOKEN}",
        )
    elif not config.api_token and not guard.has_tokens:
        log.warning(
            "node.closed",
            rpc_host=config.rpc_host,
            hint=f"every call is answered 401 until there is a token. On this machine, with the settings of this node: {FIRST_TOKEN}."
            " DSS_OPEN=true serves calls without a token",
        )

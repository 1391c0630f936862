"""What `manage.py check --deploy` says about the settings and files of this node: the checklist of docs/how-to/hardening.md.

A check looks at one thing, and names the setting that changes it. `dss.W…` are faults that the node can see. `dss.I…` are duties that it
cannot see: they are repeated until DSS_SILENCED_CHECKS names them, which says that they are done.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core import checks

from dss_api import environment, redis_url
from dss_project.config import NodeConfig

#: of a secret that cannot be guessed: `openssl rand -base64 24` has as many
SECRET_CHARACTERS = 32
DIFFERENT_CHARACTERS = 10
PASSWORD_CHARACTERS = 12
SECRETS = (
    "DSS_CLUSTER_SECRET",
    "DSS_CLUSTER_SECRET_PREVIOUS",
    "DSS_API_TOKEN",
    "DSS_TOKEN_KEY",
    "DSS_TOKEN_KEY_PREVIOUS",
    "DSS_ADMIN_PASSWORD",
    "DSS_SECRET_KEY",
)
KEY_FILES = ("DSS_TLS_KEY_FILE", "DSS_PEER_KEY_FILE")
#: settings of quotas, whose default is unlimited or as good as that
QUOTAS = {
    "DSS_CALLS_PER_SECOND_PER_TOKEN_MAX": "calls_per_second_per_token_max",
    "DSS_CALLS_PER_TOKEN_MAX": "calls_per_token_max",
    "DSS_WEBSOCKETS_PER_TOKEN_MAX": "websockets_per_token_max",
    "DSS_SUBSCRIPTIONS_PER_TOKEN_MAX": "subscriptions_per_token_max",
    "DSS_CALLS_PER_SECOND_PER_ADDRESS_MAX": "calls_per_second_per_address_max",
}

Environ = Mapping[str, str]


@dataclass(frozen=True)
class Check:
    """One line of the checklist.

    Args:
        find: what is wrong, or "".
    """

    id: str
    find: Callable[[NodeConfig, Environ], str]
    hint: str

    def run(self, config: NodeConfig, environ: Environ) -> checks.CheckMessage | None:
        found = self.find(config, environ)
        kind = checks.Warning if ".W" in self.id else checks.Info
        return kind(found, hint=self.hint, id=self.id) if found else None


def _is_weak(secret: str) -> bool:
    return len(secret) < SECRET_CHARACTERS or len(set(secret)) < DIFFERENT_CHARACTERS


def has_tls(config: NodeConfig) -> bool:
    """Whether this node or a proxy in front of it speaks TLS with clients."""
    return config.tls is not None or bool(config.trusted_proxies)


def _open_node(config: NodeConfig, _: Environ) -> str:
    if config.open:
        return "DSS_OPEN=true: until the first token is made, every client that reaches this node may do everything"
    return ""


def _open_loopback(config: NodeConfig, _: Environ) -> str:
    if config.is_local_only and not config.api_token:
        return "the node listens on loopback: until the first token is made, every process of this machine may do everything"
    return ""


def _cluster_secret(config: NodeConfig, _: Environ) -> str:
    if (config.peers or config.join) and not config.cluster_secret:
        return "members do not authenticate to each other: DSS_CLUSTER_SECRET is empty"
    if config.cluster_secret and _is_weak(config.cluster_secret):
        return f"DSS_CLUSTER_SECRET can be guessed: it has {len(config.cluster_secret)} characters"
    return ""


def _other_secrets(config: NodeConfig, _: Environ) -> str:
    given = {"DSS_API_TOKEN": config.api_token, "DSS_TOKEN_KEY": config.token_key, "DSS_SECRET_KEY": config.secret_key}
    weak = [name for name, secret in given.items() if secret and _is_weak(secret)]
    return f"{' and '.join(weak)} can be guessed" if weak else ""


def _token_for_everything(config: NodeConfig, _: Environ) -> str:
    if config.api_token:
        return "DSS_API_TOKEN may do everything, does not expire, and cannot be revoked while the node runs"
    return ""


def _previous_key(config: NodeConfig, _: Environ) -> str:
    previous = {
        "DSS_TOKEN_KEY_PREVIOUS": config.token_key_previous,
        "DSS_CLUSTER_SECRET_PREVIOUS": config.cluster_secret_previous,
    }
    left = [name for name, secret in previous.items() if secret]
    return f"{' and '.join(left)}: what knew the old secret is still let in" if left else ""


def _no_tls(config: NodeConfig, _: Environ) -> str:
    if not environment.is_loopback(config.rpc_host) and not has_tls(config):
        return "clients send their tokens and values in plain text: the node has no certificate, and no proxy is trusted"
    return ""


def _past_the_proxy(config: NodeConfig, _: Environ) -> str:
    if config.trusted_proxies and config.tls is None and environment.is_wildcard(config.rpc_host):
        return f"RPC_HOST={config.rpc_host}: clients can reach the node past the proxy, in plain text"
    return ""


def _cookies(config: NodeConfig, _: Environ) -> str:
    if config.tls is None and has_tls(config) and not config.secure_cookies:
        return "browsers also send the cookies of the admin over plain HTTP"
    return ""


def _hsts(config: NodeConfig, _: Environ) -> str:
    if has_tls(config) and not config.hsts_seconds:
        return "browsers may come back over plain HTTP: there is no Strict-Transport-Security"
    return ""


def _plain_origins(config: NodeConfig, _: Environ) -> str:
    plain = [origin for origin in config.csrf_trusted_origins if origin.startswith("http://")]
    return f"pages that anyone on the network can change may call this node: {', '.join(plain)}" if plain else ""


def _every_host(config: NodeConfig, _: Environ) -> str:
    return "DSS_ALLOWED_HOSTS=*: DNS rebinding is possible" if "*" in config.allowed_hosts else ""


def _open_paths(config: NodeConfig, _: Environ) -> str:
    if config.open_paths and not config.is_local_only:
        return f"without a token, anyone can read {', '.join(config.open_paths)}"
    return ""


def _debug(config: NodeConfig, _: Environ) -> str:
    return "DSS_DEBUG=true: error pages show settings, code and values" if config.debug else ""


def _files(config: NodeConfig, _: Environ) -> str:
    directory = Path(config.data_dir)
    loose = []
    for path in (directory, *sorted(directory.glob("*"))):
        try:
            found = path.lstat()
        except OSError:
            continue
        if not stat.S_ISLNK(found.st_mode) and stat.S_IMODE(found.st_mode) & 0o077:
            loose.append(path.name)
    return f"others of this machine can use files of DSS_DATA_DIR: {', '.join(loose[:5])}" if loose else ""


def _secret_files(config: NodeConfig, environ: Environ) -> str:
    loose = []
    for name in (*SECRETS, *KEY_FILES):
        path = environ.get(name if name.endswith("_KEY_FILE") else f"{name}_FILE", "")
        try:
            # Orchestrators mount secrets readable for a group.
            if path and Path(path).stat().st_mode & 0o007:
                loose.append(path)
        except OSError:
            continue
    return f"every user of this machine can read {', '.join(loose)}" if loose else ""


def _secrets_in_environment(config: NodeConfig, environ: Environ) -> str:
    found = [name for name in SECRETS if environ.get(name)]
    return f"in the environment, other tools and logs can see {', '.join(found)}" if found else ""


def _root(config: NodeConfig, _: Environ) -> str:
    return "this command runs as root; a node should not" if os.geteuid() == 0 else ""


def _admin_password(config: NodeConfig, _: Environ) -> str:
    if config.admin_password and len(config.admin_password) < PASSWORD_CHARACTERS:
        return f"DSS_ADMIN_PASSWORD has fewer than {PASSWORD_CHARACTERS} characters"
    return ""


def _redis_servers(config: NodeConfig) -> Iterator[tuple[str, redis_url.RedisUrl]]:
    """What keeps data of this node, and its address."""
    if config.redis_url:
        yield "the backing store", redis_url.parse(config.redis_url)
    if config.engine_url:
        yield "the engine of topics", redis_url.parse(config.engine_url)


def _plain_redis(config: NodeConfig, _: Environ) -> str:
    beyond = {
        what: [host for host, _ in url.hosts if not environment.is_loopback(host)]
        for what, url in _redis_servers(config)
        if not url.is_tls
    }
    found = [f"{what} at {', '.join(hosts)}" for what, hosts in beyond.items() if hosts]
    return f"data travels in plain text to {' and to '.join(found)}" if found else ""


def _open_redis(config: NodeConfig, _: Environ) -> str:
    found = [what for what, url in _redis_servers(config) if not url.path and not url.password]
    if found:
        return f"{' and '.join(found)}: no password is set, and a program that reaches it can read and change everything"
    return ""


def _quotas(config: NodeConfig, _: Environ) -> str:
    unset = [variable for variable, name in QUOTAS.items() if not getattr(config, name)]
    return f"one client can take all of this node: unlimited are {', '.join(unset)}" if len(unset) == len(QUOTAS) else ""


def _watchdog(config: NodeConfig, _: Environ) -> str:
    return "" if config.watchdog_ms else "DSS_WATCHDOG_MS=0: a node that is stuck stays a member and is not restarted"


def _always(text: str) -> Callable[[NodeConfig, Environ], str]:
    return lambda config, environ: text


CHECKS = (
    Check("dss.W001", _open_node, "Make a token for each program (docs/how-to/tokens.md), and remove DSS_OPEN."),
    Check(
        "dss.W002", _open_loopback, "Make the first token: manage.py token create NAME --scope SCOPE. Then silence this check."
    ),
    Check("dss.W003", _cluster_secret, "openssl rand -base64 33, the same on every node, in a file: DSS_CLUSTER_SECRET_FILE."),
    Check("dss.W004", _other_secrets, "openssl rand -base64 33"),
    Check("dss.W005", _token_for_everything, "Make tokens with scopes and an end, and remove DSS_API_TOKEN."),
    Check("dss.W006", _previous_key, "Finish the rotation, then remove it (docs/how-to/rotate-secrets.md)."),
    Check(
        "dss.W007",
        _no_tls,
        "DSS_TLS_CERT_FILE and DSS_TLS_KEY_FILE; or a proxy with TLS and DSS_TRUSTED_PROXIES (docs/how-to/behind-a-proxy.md).",
    ),
    Check(
        "dss.W008", _past_the_proxy, "Listen on the address of the proxy's network only, or let a firewall admit the proxy only."
    ),
    Check("dss.W009", _cookies, "DSS_SECURE_COOKIES=true"),
    Check("dss.W010", _hsts, "DSS_HSTS_SECONDS=31536000, once every client of this host name uses HTTPS."),
    Check("dss.W011", _plain_origins, "Name sites with https:// only in DSS_CSRF_TRUSTED_ORIGINS."),
    Check("dss.W012", _every_host, "Name the hosts that clients use."),
    Check("dss.W013", _open_paths, "Give Prometheus a token with the scope `read`, and remove DSS_OPEN_PATHS."),
    Check("dss.W014", _debug, "Remove DSS_DEBUG."),
    Check("dss.W015", _files, "Start the node: it takes these rights away. Or: chmod -R go-rwx on the directory."),
    Check("dss.W016", _secret_files, "chmod 600, and give the file to the user of the node."),
    Check("dss.W017", _secrets_in_environment, "Write each into a file, and name the file: DSS_CLUSTER_SECRET_FILE, …"),
    Check("dss.W018", _root, "Run the node, and this command, as a user of its own."),
    Check("dss.W019", _admin_password, "Leave it empty: the node makes a random one, in a file."),
    Check("dss.W020", _plain_redis, "REDIS_URL=rediss://…, DSS_ENGINE_URL=rediss://…"),
    Check("dss.W021", _open_redis, "Set a password in Redis, and in REDIS_URL or DSS_ENGINE_URL."),
    Check("dss.W022", _quotas, "Set what one program needs at most (docs/reference/limits.md)."),
    Check("dss.W023", _watchdog, "Remove DSS_WATCHDOG_MS."),
    Check(
        "dss.I001",
        _always("the audit trail is bounded: is it exported?"),
        "manage.py audit --after INDEX >> audit.jsonl, regularly. Then silence this check.",
    ),
    Check(
        "dss.I002",
        _always("the node cannot see who watches it: are there alerts?"),
        "docs/how-to/monitor.md has rules for Prometheus. Then silence this check.",
    ),
    Check(
        "dss.I003",
        _always("the node cannot see backups: is there one, elsewhere, that was restored once?"),
        "docs/how-to/backup-and-restore.md. Then silence this check.",
    ),
    Check(
        "dss.I004",
        _always("the node cannot see its network: do only members reach the peer port?"),
        "A firewall or a network policy for DSS_PEER_PORT. Then silence this check.",
    ),
)


@checks.register(checks.Tags.security, deploy=True)
def check_deployment(app_configs: Any = None, **options: Any) -> list[checks.CheckMessage]:
    """The checklist, for `manage.py check --deploy`."""
    return run(settings.NODE, os.environ)


def run(config: NodeConfig, environ: Environ) -> list[checks.CheckMessage]:
    """What the checklist says about a node with these settings."""
    return [message for check in CHECKS if (message := check.run(config, environ)) is not None]

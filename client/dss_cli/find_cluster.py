"""How a command at a terminal finds its cluster.

In this order: the addresses given with `--url`; those in DSS_URLS; the node whose settings are in the environment, as in its container;
the cluster that `make run` started in this directory; a single node's default address. `make run` writes a file to the cluster's data
directory and removes it when it stops. A stale file is ignored: no node answers, and the process that wrote it is gone.
"""

from __future__ import annotations

import hmac
import http.client
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import scrypt, sha256
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

#: where `make run` keeps its clusters, relative to the directory in which it was started
CLUSTERS = Path(".dss")
FILE_NAME = "cluster.json"
VERSION = 1
#: the addresses for programs that use the cluster
URLS_VARIABLE = "DSS_URLS"
#: if one of these is set, the environment describes the node to use
ADDRESS_VARIABLES = ("DSS_URL", "RPC_HOST", "RPC_PORT", "PEERS")
ASK_TIMEOUT_S = 1.0
#: where a token may be, in this order: that of a program, then that of the node whose settings are in the environment
TOKEN_VARIABLES = ("DSS_TOKEN", "DSS_API_TOKEN")
#: secrets of a cluster from which the keys of its tokens are derived; the first that is set counts
KEY_VARIABLES = ("DSS_TOKEN_KEY", "DSS_CLUSTER_SECRET")
#: the cluster secret of `make run`, in the directory of its clusters
LOCAL_SECRET = "cluster-secret"
#: the authority of the certificates of `make run TLS=1`, there too
LOCAL_AUTHORITY = "tls/ca.pem"
#: the certificate of the node whose settings are in the environment
NODE_CERTIFICATE_VARIABLE = "DSS_TLS_CERT_FILE"
#: in the data directory of a node that has no secret in common with others
TOKEN_KEY_FILE = "token-key"
NODE_ID = "node-1"
RPC_HOST = "127.0.0.1"
RPC_PORT = "8201"
_WILDCARDS = ("0.0.0.0", "::")
#: the same line is not printed again within this time
REPEAT_AFTER_S = 30.0

URL_HELP = "address of a node; repeat it, or separate several with commas (default: the cluster of `make run` in this directory)"

Say = Callable[[str], None]


class CannotChoose(Exception):
    """Several clusters run here (the text lists them), or one is run by a newer release."""


class LocalMember(msgspec.Struct, frozen=True):
    id: str
    url: str
    pid: int


class LocalClusterFile(msgspec.Struct, frozen=True):
    """A cluster of `make run`, as its file describes it."""

    version: int
    #: the process that started the nodes, follows their logs and stops them
    pid: int
    nodes: list[LocalMember]

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]


class _Versioned(msgspec.Struct):
    """The part of the file that is read first."""

    version: int


def write_file(directory: Path, nodes: Sequence[LocalMember]) -> None:
    """Describe the cluster that this process runs in `directory`."""
    described = LocalClusterFile(VERSION, os.getpid(), list(nodes))
    temporary = directory / f"{FILE_NAME}.new"
    temporary.write_bytes(msgspec.json.encode(described))
    temporary.replace(directory / FILE_NAME)


def remove_file(directory: Path) -> None:
    (directory / FILE_NAME).unlink(missing_ok=True)


def running_clusters(clusters: Path = CLUSTERS) -> dict[Path, LocalClusterFile]:
    """The clusters of `make run` in `clusters` that answer; if none does, those that are starting."""
    described = {path.parent: cluster for path in sorted(clusters.glob(f"*/{FILE_NAME}")) if (cluster := _read(path))}
    authority = clusters / LOCAL_AUTHORITY
    answering = {
        directory: cluster for directory, cluster in described.items() if any(_answers(url, authority) for url in cluster.urls)
    }
    return answering or {directory: cluster for directory, cluster in described.items() if _is_alive(cluster.pid)}


def without_repeats(say: Say) -> Say:
    """A `say` that suppresses repeated lines, from one client or from several."""
    said_at: dict[str, float] = {}

    def say_once(line: str) -> None:
        now = time.monotonic()
        if now - said_at.get(line, -REPEAT_AFTER_S) >= REPEAT_AFTER_S:
            said_at[line] = now
            say(line)

    return say_once


def cluster_urls(given: Sequence[str], say: Say, clusters: Path = CLUSTERS, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The addresses to try, in this order. `say` gets a line with the cluster and how it was found.

    Args:
        given: the values of `--url`.

    Raises:
        CannotChoose: several clusters run here.
    """
    if urls := [url for text in given for url in _separated(text)]:
        say(f"cluster at {urls[0]}")
        return urls
    if urls := _separated(environ.get(URLS_VARIABLE, "")):
        say(f"cluster at {urls[0]} (from {URLS_VARIABLE})")
        return urls
    own = node_addresses(environ)
    if variables := [name for name in ADDRESS_VARIABLES if environ.get(name, "").strip()]:
        say(f"cluster at {own[0]} (from {variables[0]})")
        return own
    running = running_clusters(clusters)
    if len(running) > 1:
        listed = "".join(f"\n  --url {cluster.urls[0]}   {directory}" for directory, cluster in running.items())
        raise CannotChoose(f"Several clusters run here. Choose one:{listed}")
    for directory, cluster in running.items():
        say(f"cluster at {cluster.urls[0]} ({directory})")
        return cluster.urls
    say(f"cluster at {own[0]} (the default: no cluster of `make run` runs in {clusters.absolute()})")
    return own


def node_addresses(environ: Mapping[str, str]) -> list[str]:
    """The address of the node whose settings are in the environment, then those of the other members in PEERS."""

    def read(name: str, default: str = "") -> str:
        return environ.get(name, "").strip() or default

    node_id, host = read("NODE_ID", NODE_ID), read("RPC_HOST", RPC_HOST)
    peers = {peer_id: url for url, _, peer_id in (text.rpartition("/") for text in _separated(read("PEERS")))}
    host = node_id if host in _WILDCARDS else f"[{host}]" if ":" in host else host
    scheme = "https" if read(NODE_CERTIFICATE_VARIABLE) else "http"
    url = read("DSS_URL").rstrip("/") or peers.get(node_id) or f"{scheme}://{host}:{read('RPC_PORT', RPC_PORT)}"
    return [url, *(peer for peer_id, peer in peers.items() if peer_id != node_id)]


def token_of(clusters: Path = CLUSTERS, environ: Mapping[str, str] = os.environ) -> str:
    """The token that the environment has for the cluster. If it has none, but a secret of the cluster: a proof of that. "" for neither.

    Raises:
        OSError: a file that the environment names cannot be read.
    """
    if token := _from_environment(TOKEN_VARIABLES, environ):
        return token
    secret = _from_environment(KEY_VARIABLES, environ)
    if not secret and not any(environ.get(name, "").strip() for name in ADDRESS_VARIABLES) and running_clusters(clusters):
        secret = _content(clusters / LOCAL_SECRET)
    node_id = environ.get("NODE_ID", "").strip() or NODE_ID
    directory = environ.get("DSS_DATA_DIR", "").strip() or CLUSTERS / node_id
    secret = secret or _content(Path(directory) / TOKEN_KEY_FILE)
    return key_holder_token(secret, int(time.time())) if secret else ""


def tls_of(urls: Sequence[str], clusters: Path = CLUSTERS, environ: Mapping[str, str] = os.environ) -> ssl.SSLContext | None:
    """Whom to trust at these addresses; None: none of them is https.

    Trusted are the authorities of the system and of DSS_CA_FILE, the certificate of the node whose settings are in the environment, and
    the authority of a cluster of `make run`.

    Raises:
        WrongUse: a file cannot be used.
    """
    from dss_client.errors import WrongUse
    from dss_client.tls import default_context, trouble_of

    if not any(url.startswith(("https:", "wss:")) for url in urls):
        return None
    context = default_context(environ)
    own = environ.get(NODE_CERTIFICATE_VARIABLE, "").strip()
    authority = clusters / LOCAL_AUTHORITY
    is_local = authority.exists() and any(url in cluster.urls for cluster in running_clusters(clusters).values() for url in urls)
    for file in (own, str(authority) if is_local else ""):
        try:
            if file:
                context.load_verify_locations(file)
        except OSError as error:
            raise WrongUse(f"cannot read the certificate {file}: {trouble_of(error)}") from None
    if own:
        # The node's own certificate is trusted itself, not because of its authority.
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context


def key_holder_token(secret: str, now_s: int) -> str:
    """Proves for some minutes that its sender has this secret of the cluster, and does not tell the secret."""
    key = scrypt(secret.encode(), salt=b"dss token key 1", n=2**14, r=8, p=1, dklen=32)
    token_id = f"key{now_s:x}"
    return f"dss1_{token_id}_{hmac.digest(key, f'token {token_id} 0'.encode(), sha256).hex()}"


def _from_environment(names: Sequence[str], environ: Mapping[str, str]) -> str:
    """The first of the variables that is set, or the content of the file that NAME_FILE names."""
    for name in names:
        if text := environ.get(name, "").strip():
            return text
        if file := environ.get(f"{name}_FILE", "").strip():
            return Path(file).read_text().strip()
    return ""


def _content(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _separated(text: str) -> list[str]:
    return [url.strip().rstrip("/") for url in text.split(",") if url.strip()]


def _read(path: Path) -> LocalClusterFile | None:
    """Raises:
    CannotChoose: a newer release wrote the file.
    """
    with suppress(OSError, msgspec.MsgspecError):
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_Versioned).version
        if version > VERSION:
            raise CannotChoose(
                f"{path} has format {version}, and this release reads formats up to {VERSION}: use the release that runs this cluster, "
                "or name an address with --url"
            )
        cluster = msgspec.json.decode(data, type=LocalClusterFile)
        return cluster if cluster.nodes else None
    return None


def _answers(url: str, authority: Path) -> bool:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    connection = http.client.HTTPConnection(host, port, timeout=ASK_TIMEOUT_S)
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=str(authority))
            connection = http.client.HTTPSConnection(host, port, timeout=ASK_TIMEOUT_S, context=context)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

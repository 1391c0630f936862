"""Where a request comes from: only trusted proxies are believed, whatever a client writes into its headers."""

from __future__ import annotations

import pytest

from dss_api.proxies import HOPS_MAX, Origin, TrustedProxies
from dss_project.config import ConfigError, NodeConfig

PROXIES = TrustedProxies(["10.0.0.5", "10.1.0.0/16", "fd00::/8"])
PROXY = "10.0.0.5"


def client(forwarded_for: str, peer: str = PROXY) -> str:
    return PROXIES.origin(peer, [(b"x-forwarded-for", forwarded_for.encode("latin-1"))]).address


def test_a_stranger_is_not_believed() -> None:
    headers = [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"evil")]
    assert PROXIES.origin("203.0.113.9", headers) == Origin("203.0.113.9")
    assert TrustedProxies().origin(PROXY, headers) == Origin(PROXY)
    scope = {"type": "http", "client": ("203.0.113.9", 1), "scheme": "http", "headers": headers}
    assert PROXIES.scope(scope) is scope


@pytest.mark.parametrize(
    ("forwarded_for", "expected"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7", "203.0.113.7"),
        ("6.6.6.6, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
        ("10.1.2.4, 10.1.2.3", "10.1.2.4"),
        ("203.0.113.7:51234", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, fd00::1", "203.0.113.7"),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy(forwarded_for: str, expected: str) -> None:
    assert client(forwarded_for) == expected


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        ",",
        "unknown",
        "<script>",
        "203.0.113.7,",
        "1" * 10_000,
        "999.1.1.1",
        "fe80::1%eth0",
        "\xff\x00",
        "203.0.113.7, _hidden",
        "[",
        "[]:",
    ],
)
def test_garbage_leaves_the_proxys_address(garbage: str) -> None:
    assert client(garbage) == PROXY


def test_an_address_before_garbage_is_not_read() -> None:
    assert client("203.0.113.7, garbage, 10.1.2.3") == "10.1.2.3"


def test_several_headers_are_one_list() -> None:
    headers = [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"203.0.113.7"), (b"x-forwarded-for", b"10.1.2.3")]
    assert PROXIES.origin(PROXY, headers).address == "203.0.113.7"


def test_many_hops_end() -> None:
    hops = [f"10.1.{number // 250}.{number % 250}" for number in range(5000)]
    assert client(",".join(hops)) == hops[-HOPS_MAX]


@pytest.mark.parametrize(
    ("value", "scheme"),
    [
        (b"https", "https"),
        (b"HTTPS", "https"),
        (b"http, https", "https"),
        (b"https,http", "http"),
        (b"javascript", ""),
        (b"", ""),
    ],
)
def test_the_scheme(value: bytes, scheme: str) -> None:
    assert PROXIES.origin(PROXY, [(b"x-forwarded-proto", value)]).scheme == scheme


@pytest.mark.parametrize(("kind", "scheme"), [("http", "https"), ("websocket", "wss")])
def test_the_scope_is_as_the_client_made_it(kind: str, scheme: str) -> None:
    headers = [
        (b"host", b"inner"),
        (b"host", b"second"),
        (b"x-forwarded-host", b"evil, dss.example.org"),
        (b"x-forwarded-proto", b"https"),
        (b"x-forwarded-for", b"203.0.113.7"),
    ]
    scope = PROXIES.scope({"type": kind, "client": (PROXY, 1), "scheme": "http", "headers": headers})
    assert scope["client"][0] == "203.0.113.7"
    assert scope["scheme"] == scheme
    assert [value for name, value in scope["headers"] if name == b"host"] == [b"dss.example.org"]


def test_a_mapped_peer_is_its_ipv4_address() -> None:
    assert PROXIES.trusts("::ffff:10.0.0.5")
    assert not PROXIES.trusts("")
    assert not PROXIES.trusts("10.0.0.6")


@pytest.mark.parametrize("variable", ["DSS_TRUSTED_PROXIES", "DSS_CSRF_TRUSTED_ORIGINS"])
@pytest.mark.parametrize("value", ["proxy", "10.0.0.0/99", "0.0.0.0/0", "::/0", "https://host/path", "*", "host"])
def test_settings_that_cannot_be_meant_are_refused(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        NodeConfig.from_env({variable: value})


def test_settings() -> None:
    config = NodeConfig.from_env(
        {"DSS_TRUSTED_PROXIES": "10.0.0.5, 10.1.0.0/16", "DSS_CSRF_TRUSTED_ORIGINS": "https://dss.example.org,https://[::1]:8443"}
    )
    assert TrustedProxies(config.trusted_proxies).trusts("10.1.255.1")
    assert config.csrf_trusted_origins == ("https://dss.example.org", "https://[::1]:8443")

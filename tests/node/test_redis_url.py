"""The address of Redis in a setting: every form, and faults that never show a part of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dss_api.redis_url import SCHEMES, RedisUrl, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://localhost:6379/0", RedisUrl(kind="server", hosts=(("localhost", 6379),), is_tls=False)),
        ("redis://", RedisUrl(kind="server", hosts=(("localhost", 6379),), is_tls=False)),
        ("redis://:7000/2", RedisUrl(kind="server", hosts=(("localhost", 7000),), is_tls=False, database=2)),
        ("REDISS://Cache.Example:1", RedisUrl(kind="server", hosts=(("cache.example", 1),), is_tls=True)),
        (
            "redis://:p%40%2F%3F%23@h/3",
            RedisUrl(kind="server", hosts=(("h", 6379),), is_tls=False, password="p@/?#", database=3),
        ),
        (
            "redis://u:p:q@h?db=4",
            RedisUrl(kind="server", hosts=(("h", 6379),), is_tls=False, username="u", password="p:q", database=4),
        ),
        ("redis://[::1]:7000", RedisUrl(kind="server", hosts=(("::1", 7000),), is_tls=False)),
        ("unix:///run/redis.sock?db=1", RedisUrl(kind="server", hosts=(), is_tls=False, path="/run/redis.sock", database=1)),
        (
            "redis+cluster://dss:secret@h1:7000,h2,[::1]:7002/0",
            RedisUrl(
                kind="cluster",
                hosts=(("h1", 7000), ("h2", 6379), ("::1", 7002)),
                is_tls=False,
                username="dss",
                password="secret",
            ),
        ),
        (
            "rediss+sentinel://:secret@h1,h2:26380/values/5?sentinel_username=s&sentinel_password=t%26&socket_timeout=0.5",
            RedisUrl(
                kind="sentinel",
                hosts=(("h1", 26379), ("h2", 26380)),
                is_tls=True,
                service="values",
                database=5,
                password="secret",
                sentinel_username="s",
                sentinel_password="t&",
                options={"socket_timeout": 0.5},
            ),
        ),
        (
            "rediss+cluster://h?ssl_cert_reqs=none&ssl_check_hostname=false&max_connections=7",
            RedisUrl(
                kind="cluster",
                hosts=(("h", 6379),),
                is_tls=True,
                options={"ssl_cert_reqs": "none", "ssl_check_hostname": False, "max_connections": 7},
            ),
        ),
    ],
)
def test_an_address(text: str, expected: RedisUrl) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("localhost:6379", "must begin with redis://"),
        ("sentinel://h/x", "redis\\+sentinel://"),
        ("redis://h1,h2", "several hosts"),
        ("redis://h/zero", "number of a database"),
        ("redis://h/0/1", "number of a database"),
        ("redis://h:0", "not a valid URL"),
        ("redis://h:70000", "not a valid URL"),
        ("redis://[::1", "not a valid URL"),
        ("redis://[::1]7000", "not a valid URL"),
        ("redis+cluster://", "not a valid URL"),
        ("redis+cluster://h1,,h2", "not a valid URL"),
        ("redis+cluster://h/1", "only database 0"),
        ("redis+cluster://h?db=1", "only database 0"),
        ("redis+sentinel://h", "must name the primary"),
        ("redis+sentinel://h/x/y", "number of a database"),
        ("redis://h?sentinel_password=x", "begin with redis\\+sentinel"),
        ("redis://h?ssl_ca_certs=/dev/null", "needs TLS"),
        ("rediss://h?ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs, which names a file that cannot be read"),
        ("rediss://h?ssl_certfile=/dev/null", "both ssl_certfile and ssl_keyfile"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs, which must be one of required, optional, none"),
        ("redis://h?socket_timeout=soon", "socket_timeout, which must be seconds"),
        ("redis://h?max_connections=0", "max_connections, which must be from 1"),
        ("redis://h?decode_responses=true", "unknown parameter; known are client_name, db"),
        ("unix://", "must name a socket file"),
    ],
)
def test_a_fault(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster", "redis+sentinel", "http"])
@pytest.mark.parametrize("password", ["geheim#1", "geheim/1", "geheim?a=1", "geheim?geheim", "ge@heim:geheim", "geheim:,geheim"])
@pytest.mark.parametrize("rest", ["h:x/service", "h:1,h:geheim"])
def test_no_fault_shows_a_password(scheme: str, password: str, rest: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse(f"{scheme}://user:{password}@{rest}")
    assert "heim" not in str(caught.value)


@given(st.sampled_from(sorted(SCHEMES)), st.text("hdbs_0179:/@,?=&#%[]. \x00é²", max_size=30))
def test_any_text_is_an_address_or_a_fault(scheme: str, rest: str) -> None:
    try:
        url = parse(f"{scheme}://{rest}")
    except ValueError:
        return
    assert url.path or url.hosts
    assert all(host and 1 <= port <= 65_535 for host, port in url.hosts)
    assert bool(url.service) == (url.kind == "sentinel")


def test_what_was_read_does_not_show_passwords() -> None:
    url = parse("redis+sentinel://dss:geheim@h/values?sentinel_username=wache&sentinel_password=parole")
    assert not any(word in repr(url) for word in ("dss", "geheim", "wache", "parole"))


def test_files_of_certificates(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    assert parse(f"rediss://h?ssl_ca_certs={file}").options == {"ssl_ca_certs": str(file)}

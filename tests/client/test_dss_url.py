"""URLs of clusters for kombu, Celery and tooz."""

from __future__ import annotations

import ssl

import pytest

from dss_client import WrongUrl, WrongUse
from dss_client.dss_url import DssUrl


def test_hosts_path_and_options() -> None:
    url = DssUrl.parse("dss://host-a:8101,host-b,[::1]:8103/shop/?timeout=30")
    assert url.hosts == ("host-a:8101", "host-b:8101", "[::1]:8103")
    assert (url.path, url.token, url.options) == ("shop", None, {"timeout": "30"})
    options = url.client_options({})
    assert options["urls"] == ["http://host-a:8101", "http://host-b:8101", "http://[::1]:8103"]
    assert options["timeout"] == 30.0


def test_without_hosts_the_client_takes_them_from_the_environment() -> None:
    assert "urls" not in DssUrl.parse("dss://").client_options({})


@pytest.mark.parametrize("text", ["dss://:se%2Fcret@host", "dss://se%2Fcret@host", "dss://user:se%2Fcret@host"])
def test_the_token_is_the_password_and_is_not_shown(text: str) -> None:
    url = DssUrl.parse(text)
    assert url.client_options({})["token"] == "se/cret"
    assert url.without_token() == "dss://:**@host:8101/"


def test_a_token_among_the_options_is_not_shown() -> None:
    url = DssUrl.parse("dss://host?token=secret&timeout=3")
    assert url.client_options({})["token"] == "secret"
    assert "secret" not in url.without_token()


def test_what_the_program_gives_counts_more() -> None:
    context = ssl.create_default_context()
    options = DssUrl.parse("dss://a@host?timeout=3").client_options({"token": "b", "timeout": 4, "tls": context})
    assert (options["token"], options["timeout"], options["tls"]) == ("b", 4.0, context)
    assert options["urls"] == ["https://host:8101"]


def test_tls() -> None:
    options = DssUrl.parse("dss://host?tls=true").client_options({})
    assert isinstance(options["tls"], ssl.SSLContext)
    assert options["urls"] == ["https://host:8101"]
    with pytest.raises(WrongUse, match=r"/missing\.pem"):
        DssUrl.parse("dss://host?ca_file=/missing.pem").client_options({})


@pytest.mark.parametrize(
    "text", ["http://host", "dss://host:port", "dss://host#part", "dss://host:99999", "dss://a:1,:2", "dss://host?tls"]
)
def test_what_is_no_such_url(text: str) -> None:
    with pytest.raises(WrongUrl, match="a URL must be like dss://"):
        DssUrl.parse(text)


@pytest.mark.parametrize(
    ("options", "field"), [({"timeout": "soon"}, "timeout"), ({"timeout": 0}, "timeout"), ({"tls": "perhaps"}, "tls")]
)
def test_an_option_with_a_wrong_value_is_named(options: dict[str, object], field: str) -> None:
    with pytest.raises(WrongUse, match=f"`{field}`"):
        DssUrl.parse("dss://host").client_options(options)

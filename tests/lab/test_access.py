"""Who may use the lab."""

from __future__ import annotations

from dss_dev.lab.access import SESSIONS_MAX, Access

OWN = {"host": "127.0.0.1:8100", "origin": "http://127.0.0.1:8100"}


def token_of(access: Access) -> str:
    return access.link.partition("#t=")[2]


def test_a_link_opens_the_lab_once() -> None:
    access = Access(8100)
    token = token_of(access)
    session = access.enter(token)
    assert access.is_known({"cookie": f"other=1; {access.cookie}={session}"})
    assert access.enter(token) == ""
    assert access.enter("") == ""
    # The next link is another one.
    assert token_of(access) != token
    assert access.enter(token_of(access)) not in ("", session)


def test_a_cookie_that_the_lab_has_not_made_opens_nothing() -> None:
    access = Access(8100)
    access.enter(token_of(access))
    for cookie in ("", f"{access.cookie}=", f"{access.cookie}=guess", "a=b", f"{access.cookie}=ü", '"'):
        assert not access.is_known({"cookie": cookie}), cookie
    assert not access.is_known({})


def test_a_cookie_of_another_site_does_not_hide_that_of_the_lab() -> None:
    access = Access(8100)
    own = f"{access.cookie}={access.enter(token_of(access))}"
    for other in ('a={"b": 1}', "a[b]=c d", "a=b c", "alone", "=", "", 'a="', "ü=ü"):
        assert access.is_known({"cookie": f"{other}; {own}"}), other
        assert access.is_known({"cookie": f"{own}; {other}"}), other


def test_the_oldest_of_many_browsers_is_forgotten() -> None:
    access = Access(8100)
    sessions = [access.enter(token_of(access)) for _ in range(SESSIONS_MAX + 1)]
    known = [access.is_known({"cookie": f"{access.cookie}={session}"}) for session in sessions]
    assert known == [False] + [True] * SESSIONS_MAX


def test_only_its_own_host_and_origin_count() -> None:
    access = Access(8100)
    assert access.has_own_host(OWN)
    assert access.has_own_host({"host": "localhost:8100"})
    for host in ("", "127.0.0.1", "127.0.0.1:8101", "evil.example:8100", "127.0.0.1:8100.evil.example"):
        assert not access.has_own_host({"host": host}), host
    assert access.has_own_origin(OWN)
    for origin in ("", "null", "http://localhost:8100", "https://127.0.0.1:8100", "http://evil.example"):
        assert not access.has_own_origin({**OWN, "origin": origin}), origin


def test_two_labs_in_one_browser_do_not_replace_each_other_s_cookie() -> None:
    assert Access(8100).cookie != Access(9100).cookie

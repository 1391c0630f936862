"""`examples/shop` starts by one command, sells something, and ends without leaving anything behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, build_opener

import msgspec
import pytest

from dss_dev.local_cluster import ROOT

pytestmark = pytest.mark.cluster

PATIENCE_S = 60.0
PIECES_OF_TOTES = 3


class Browser:
    """A customer: cookies, forms and redirects."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._cookies = CookieJar()
        self._opener = build_opener(HTTPCookieProcessor(self._cookies))
        self.status = 0
        self.path = ""

    def get(self, path: str) -> str:
        return self._open(path, None)

    def post(self, path: str, **fields: Any) -> str:
        token = next((cookie.value for cookie in self._cookies if cookie.name == "csrftoken"), "")
        return self._open(path, urlencode({**fields, "csrfmiddlewaretoken": token}).encode())

    def _open(self, path: str, data: bytes | None) -> str:
        try:
            answer = self._opener.open(f"{self._url}{path}", data, PATIENCE_S)
        except HTTPError as error:
            answer = error
        with answer:
            self.status, self.path = answer.status, answer.url.removeprefix(self._url)
            text: str = answer.read().decode()
            return text

    def order(self, slug: str, quantity: int) -> str:
        """Order a product. The path of the order's page."""
        self.get("/")
        self.post(f"/cart/{slug}", quantity=quantity)
        self.post("/checkout", email="ada@example.com")
        assert self.path.startswith("/orders/")
        return self.path


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its address, and the directory of its mails."""
    data = tmp_path_factory.mktemp("shop")
    command = [sys.executable, str(ROOT / "examples/shop/run.py"), "--own-node", "--port=0", f"--data={data}"]
    log = data / "output"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        until(lambda: process.poll() is not None or "Stop: Ctrl-C" in log.read_text())
        found = re.search(r"Shop: +(http\S+)/\n(?:.*\n)*Mails: +(\S+)", log.read_text())
        assert found is not None, log.read_text()
        yield found[1], Path(found[2])
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert not [one for one in Path("/proc").glob("[0-9]*/cmdline") if names(one, data)], "a process is left"


def names(command_line: Path, data: Path) -> bool:
    try:
        return bytes(data) in command_line.read_bytes()
    except OSError:
        # The process has ended.
        return False


def test_buying(shop: tuple[str, Path]) -> None:
    url, mails = shop
    browser = Browser(url)
    assert "24 in stock" in browser.get("/")
    assert browser.post("/cart/unknown", quantity=1)
    assert browser.status == 404
    assert "Leader mug" in browser.post("/cart/leader-mug", quantity=2)
    assert "28.00 €" in browser.get("/cart")
    assert "enter your address" in browser.post("/checkout", email="nobody")
    page = browser.post("/checkout", email="ada@example.com")
    order = browser.path
    assert "Pay 28.00 €" in page
    assert "Your order" in page

    # Two windows, one payment.
    with ThreadPoolExecutor(2) as threads:
        pages = list(threads.map(lambda _: browser.post(f"{order}/pay"), range(2)))
    assert all("Thank you" in page for page in pages)
    assert "22 in stock" in browser.get("/"), "the catalogue is new in the cache"

    state = until(lambda: (found := msgspec.json.decode(browser.get(f"{order}/status")))["mailed"] and found)
    assert (state["task"], state["attempts"], state["invoice"]) == ("SUCCESSFUL", 1, True)
    assert state["token"] > 0
    assert "2  Leader mug" in browser.get(f"{order}/invoice")
    (mail,) = mails.iterdir()
    assert "To: ada@example.com" in mail.read_text()
    assert "28.00" in mail.read_text()


def test_the_last_pieces(shop: tuple[str, Path]) -> None:
    """Two customers order all of them, and pay at the same time."""
    customers = [Browser(shop[0]) for _ in range(2)]
    orders = [customer.order("quorum-tote", PIECES_OF_TOTES) for customer in customers]
    with ThreadPoolExecutor(2) as threads:
        pages = list(threads.map(lambda one: one[0].post(f"{one[1]}/pay"), zip(customers, orders, strict=True)))
    assert sorted(customer.status for customer in customers) == [200, 409]
    assert sum("Thank you" in page for page in pages) == 1
    assert sum("Quorum tote is sold out" in page for page in pages) == 1
    assert "Sold out" in customers[0].get("/")

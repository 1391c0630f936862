"""The cluster page on a real cluster, in a browser: what it says when nodes die, hang and come back, and what it costs.

The seconds that the page promises are deadlines of waiting here, with room for a busy machine. Tests in tests/console check the limits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dss_dev.browser import ALL_LOOKS, AXE_MISSING, TWO_LOOKS, axe_source, faults_of_look, headless_chromium, watch_console
from dss_dev.local_cluster import LocalCluster, LocalNode, free_ports
from dss_dev.prepared_pages import ENVIRONMENT, prepare_pages

pytestmark = pytest.mark.cluster

PAGES = ("/", "/ui/lock?name=orders%2F42", "/ui/locks", "/ui/queues", "/ui/cache", "/ui/topic?name=orders", "/ui/key?name=price")
#: For what the page says within seconds. What it does not say after this time it never says, even on a busy machine.
SAYS_MS = 60_000
#: of an observer, for the changes that one event makes
CALLBACKS_MAX = 3
#: longer than nodes take from one report to the next
QUIET_MS = 2000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with headless_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def cluster(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three nodes with a lock that is waited for, a topic and a cached key. Each test leaves them running."""
    found = LocalCluster(tmp_path_factory.mktemp("page"), free_ports(3), ENVIRONMENT)
    prepare_pages(found)
    found.start()
    try:
        found.wait_ready()
        fill(found.nodes[0])
        yield found
    finally:
        found.stop()


def fill(node: LocalNode) -> None:
    for path, body in (
        ("/lock/acquire", {"key": "orders/42", "client": "alice", "ttl_ms": 0}),
        ("/lock/acquire", {"key": "<b>", "client": "<script>alert(1)</script>", "ttl_ms": 0}),
        ("/queue/publish", {"topic": "orders", "value": 1}),
        ("/queue/consume", {"topic": "orders", "group": "billing", "visibility_ms": 60_000}),
        ("/cache/put", {"key": "price", "value": 1}),
    ):
        assert node.call("POST", path, body).status == 200


class Visit:
    """A page in a browser, with everything that it complained about."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.faults: list[str] = []
        self.requests: list[str] = []
        watch_console(page, self.faults)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda socket: self.requests.append(socket.url))

    def open(self, path: str = "/", *, live: bool = True) -> None:
        self.page.goto(self.url + path)
        if live:
            self.page.wait_for_selector("html[data-live=live][data-batches]", timeout=SAYS_MS)

    def says(self, selector: str, text: str) -> None:
        """Wait until the element has this text."""
        self.page.locator(selector, has_text=re.compile(text, re.DOTALL)).first.wait_for(timeout=SAYS_MS)

    def until(self, expression: str) -> None:
        """Wait until the expression is true. (The policy of the page forbids what Playwright has for this.)"""
        deadline = time.monotonic() + SAYS_MS / 1000
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, expression
            self.page.wait_for_timeout(50)

    def text(self, selector: str) -> str:
        found: str = self.page.locator(selector).first.inner_text()
        return found


def until_healthy(visit: Visit) -> None:
    """Load the page until it says so, without its scripts."""
    deadline = time.monotonic() + SAYS_MS / 1000
    visit.open(live=False)
    while (said := visit.text(".verdict")).split()[0] != "HEALTHY":
        assert time.monotonic() < deadline, said
        visit.open(live=False)


@pytest.fixture
def visit(chromium: Any, cluster: LocalCluster) -> Iterator[Visit]:
    """A page of the first node."""
    context = chromium.new_context()
    try:
        yield Visit(context.new_page(), cluster.nodes[0].url)
    finally:
        context.close()


def live_frames(cluster: LocalCluster) -> float:
    """Frames of the live view that the nodes have sent to each other."""
    total = 0.0
    for node in cluster.nodes:
        text = node.call("GET", "/metrics").body.decode()
        total += sum(float(value) for value in re.findall(r"^dss_live_frames_total\{.*\} (\S+)$", text, flags=re.MULTILINE))
    return total


def other(cluster: LocalCluster, *, leads: bool) -> LocalNode:
    """A node that is not the viewed one: the leader, or one that does not lead."""
    leader = cluster.nodes[0].call("GET", "/raft/leader").json["leader_id"]
    return next(node for node in cluster.nodes[1:] if (node.id == leader) == leads)


def lead_elsewhere(cluster: LocalCluster) -> None:
    """Have a node lead that is not the viewed one."""
    first = cluster.nodes[0]
    if first.call("GET", "/raft/leader").json["leader_id"] == first.id:
        assert first.call("POST", "/raft/transfer", {"to": cluster.nodes[1].id}).status == 200


# --------------------------------------------------------------- what it looks like


def test_it_is_complete_without_javascript(chromium: Any, cluster: LocalCluster) -> None:
    context = chromium.new_context(java_script_enabled=False)
    visit = Visit(context.new_page(), cluster.nodes[0].url)
    try:
        # On a busy machine, a node may seem silent for a moment.
        until_healthy(visit)
        assert visit.page.locator(".node").count() == 3
        assert sorted(visit.page.locator(".shape").all_inner_texts()) == ["FOLLOWER", "FOLLOWER", "LEADER"]
        assert "alice" in visit.text("[data-part=locks] tbody")
        assert "orders/billing" in visit.text("[data-part=queues] tbody")
        assert "price" in visit.text("[data-part=cache] tbody")
        assert "leads in term" in visit.text("[data-part=events]")
        visit.open("/ui/lock?name=orders%2F42", live=False)
        assert "Held exclusive by alice, fencing token" in visit.text("[data-part=lock] .lead")
        visit.open("/ui/key?name=price", live=False)
        assert visit.page.locator("[data-list=lines] tr").count() == 3
        assert not visit.faults
    finally:
        context.close()


def test_every_page_fits_and_passes_axe(chromium: Any, cluster: LocalCluster) -> None:
    """No horizontal scroll, no violation of WCAG 2.2 AA, no request to another host, and no complaint of the policy or the console."""
    script = axe_source()
    context = chromium.new_context(bypass_csp=False)
    visit = Visit(context.new_page(), cluster.nodes[0].url)
    try:
        if script:
            visit.page.add_init_script(script)
        # All pages once in each width and each scheme, the two largest in all four combinations.
        for path in PAGES:
            visit.open(path)
            assert faults_of_look(visit.page, script, ALL_LOOKS if path in PAGES[:2] else TWO_LOOKS) == [], path
        assert visit.page.locator("main script").count() == 0
        host = visit.url.removeprefix("http://")
        assert {re.sub(r"^\w+://([^/]+)/.*", r"\1", url) for url in visit.requests} == {host}
        assert visit.faults == []
    finally:
        context.close()
    if not script:
        pytest.skip(AXE_MISSING)


def test_keyboard_and_reduced_motion(chromium: Any, cluster: LocalCluster) -> None:
    context = chromium.new_context(reduced_motion="reduce")
    visit = Visit(context.new_page(), cluster.nodes[0].url)
    page = visit.page
    try:
        visit.open()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.locator("[data-part=locks] tbody a").first.focus()
        key = page.evaluate("document.activeElement.textContent")
        before = int(page.evaluate("document.documentElement.dataset.batches"))
        visit.until(f"Number(document.documentElement.dataset.batches) >= {before + 3}")
        assert page.evaluate("document.activeElement.textContent") == key, "an update has taken the focus away"
        assert page.evaluate("document.getAnimations().length") == 0
        page.keyboard.press("Enter")
        page.wait_for_url("**/ui/lock?name=*")
    finally:
        context.close()


# ------------------------------------------------------------------ what it costs


def test_it_changes_at_most_twice_a_second_under_load(cluster: LocalCluster, visit: Visit) -> None:
    visit.open()
    node = cluster.nodes[1]
    changes = "() => { window.changes = []; new MutationObserver(() => changes.push(document.documentElement.dataset.batches))"
    visit.page.evaluate(
        changes + ".observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true}) }"
    )
    started = visit.page.evaluate("performance.now()")
    for number in range(300):
        node.call("POST", "/queue/publish", {"topic": "orders", "value": number})
        node.call("POST", "/cache/put", {"key": f"k{number % 20}", "value": number})
    visit.until(f"performance.now() > {started} + 2500")
    took_ms, changed = visit.page.evaluate(f"[performance.now() - {started}, changes]")
    # On a busy machine, the browser may take events late that were sent before.
    assert 1 <= len(set(changed)) <= took_ms / 500 + 3
    assert len(changed) <= CALLBACKS_MAX * len(set(changed)), "it changes between two events"


def test_nothing_is_sent_between_nodes_while_the_page_is_paused_or_gone(cluster: LocalCluster, visit: Visit) -> None:
    visit.open()
    before = live_frames(cluster)
    visit.until("Number(document.documentElement.dataset.batches) >= 5")
    assert live_frames(cluster) > before
    for leave in ("hide", "pause"):
        if leave == "hide":
            visit.page.evaluate(
                "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
                "document.dispatchEvent(new Event('visibilitychange'))"
            )
            visit.page.wait_for_selector("html[data-live=off]", timeout=SAYS_MS)
        else:
            visit.page.get_by_role("button", name="Pause").click()
            visit.says(".dss-banner", "Paused")
        # Reports that were due arrive; then the count stands still for longer than the nodes report.
        deadline = time.monotonic() + SAYS_MS / 1000
        quiet = -1.0
        while quiet != (quiet := live_frames(cluster)):
            assert time.monotonic() < deadline, leave
            visit.page.wait_for_timeout(QUIET_MS)
        if leave == "hide":
            visit.page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
            visit.page.wait_for_selector("html[data-live=live]", timeout=SAYS_MS)


# ------------------------------------------------------------- what it says of faults


def test_a_paused_node_is_named_and_comes_back(cluster: LocalCluster, visit: Visit) -> None:
    lead_elsewhere(cluster)
    node = other(cluster, leads=False)
    visit.open()
    visit.says(".verdict h1", "HEALTHY")
    node.pause()
    try:
        visit.says(".verdict", f"DEGRADED.*{node.id} has been silent")
        visit.says(".node[data-shape=silent]", f"{node.id}.*SILENT")
    finally:
        node.resume()
    visit.says(".verdict h1", "HEALTHY")


def test_a_connection_that_no_one_answers_is_given_up(visit: Visit) -> None:
    """The node hangs between the page and its connection: the page says so, and connects again."""
    connections: list[Any] = []

    def connected(socket: Any) -> None:
        connections.append(socket)
        if len(connections) > 1:
            socket.connect_to_server()

    visit.page.route_web_socket("**/ws", connected)
    visit.open(live=False)
    visit.says(".dss-banner", "No contact with .* since \\d\\d:\\d\\d:\\d\\d UTC")
    visit.page.wait_for_selector("html[data-live=live][data-batches]", timeout=SAYS_MS)
    assert len(connections) == 2


def test_two_of_three_dead_and_back(cluster: LocalCluster, visit: Visit) -> None:
    visit.open()
    visit.says(".verdict h1", "HEALTHY")
    dead = cluster.nodes[1:]
    for node in dead:
        node.kill()
    try:
        visit.says(".verdict", "REFUSING WRITES.*a write needs 2")
        visit.says(".checks", "1 of 3 voters answer; a write needs 2")
        # Every other page says so, too.
        elsewhere = Visit(visit.page.context.new_page(), visit.url)
        elsewhere.open("/admin/login/", live=False)
        elsewhere.says(".dss-banner", "REFUSING WRITES")
        assert elsewhere.text(".dss-node a") == cluster.nodes[0].id
    finally:
        for node in dead:
            node.start()
        cluster.wait_ready()
    visit.says(".verdict h1", "HEALTHY")
    elsewhere.page.wait_for_selector("html[data-live=live]", timeout=SAYS_MS)
    elsewhere.page.locator(".dss-banner").wait_for(state="hidden", timeout=SAYS_MS)


def test_the_viewed_node_dies(cluster: LocalCluster, visit: Visit) -> None:
    visit.open()
    # The other nodes are shown as they were seen last.
    visit.says(".verdict h1", "HEALTHY")
    first = cluster.nodes[0]
    first.kill()
    try:
        visit.says(".dss-banner", f"No contact with {first.id} since \\d\\d:\\d\\d:\\d\\d UTC")
        links = visit.page.locator(".dss-banner a.other:visible")
        assert sorted(links.all_inner_texts()) == [node.id for node in cluster.nodes[1:]]
        visit.page.context.set_default_timeout(SAYS_MS)
        links.first.click()
        visit.page.wait_for_selector("html[data-live=live]")
        visit.says(".verdict", f"{first.id} has been silent")
    finally:
        first.start()
        cluster.wait_ready()
    visit.says(".verdict h1", "HEALTHY")

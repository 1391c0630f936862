"""The lab of `make run` in a browser: a person plays the scenes, stops and cuts nodes, and reads replays.

All tests share one `make run` and one browser. The seconds are deadlines of waiting. The last test ends `make run` the hard way.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dss_dev.browser import ALL_LOOKS, AXE_MISSING, TWO_LOOKS, axe_source, faults_of_look, headless_chromium, watch_console
from dss_dev.lab.relays import NODES_MAX, links_of
from dss_dev.local_cluster import HOST, ROOT, free_ports, is_in_use, ports_in_use

pytestmark = pytest.mark.cluster

WAIT_S = 60.0
#: in place of a minute
ABSENCE_S = 3.0
#: Linux takes ports from here on for outgoing connections
OUTGOING_FROM = 32_768
SCENES = ("election", "deadlock", "dead-letter", "fencing", "mesi", "bug")


def wait_until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Run:
    """`make run` with three nodes on free ports, and what it has printed."""

    def __init__(self, directory: Path) -> None:
        self.port = self._free_port()
        self.directory = directory
        self.log = directory / "terminal.log"
        command = [sys.executable, "manage.py", "cluster", "--port", str(self.port), "--lab-absence", str(ABSENCE_S)]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--directory", str(directory)], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )

    @staticmethod
    def _free_port() -> int:
        """Of the first node, with its lab below, and relays above. All are of one hundred: no other worker of the tests takes them."""
        while True:
            (first,) = free_ports(1)
            ports = [first - 1, first, first + 1, first + 2, *(link.port for link in links_of(first, [1, 2, 3]))]
            of_one_hundred = 1 <= first % 100 <= 100 - NODES_MAX
            if of_one_hundred and max(ports) < OUTGOING_FROM and not any(map(is_in_use, ports)):
                return first

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, text: str) -> None:
        wait_until(lambda: text in self.said or self.process.poll() is not None, text)
        assert text in self.said, self.said

    @property
    def link(self) -> str:
        """The latest link to the lab that it has printed."""
        return re.findall(r"http://\S+#t=\S+", self.said)[-1]

    def url(self, number: int) -> str:
        return f"http://{HOST}:{self.port + number - 1}"

    def node(self, number: int) -> psutil.Process:
        """Forked nodes show the environment that their process began with, so they are found by their port."""
        port = self.port + number - 1
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if any(each.laddr.port == port for each in child.net_connections("tcp") if each.status == psutil.CONN_LISTEN):
                return child
        raise AssertionError(f"no process listens on {port}:\n{self.said}")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with headless_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def run(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    running = Run(tmp_path_factory.mktemp("lab"))
    try:
        running.until("Ctrl-C")
        yield running
    finally:
        running.process.send_signal(signal.SIGINT)
        running.process.wait(60)


#: the labels of the stage that touch a line, a box, or another label
TOUCHING = """() => {
  const around = (shape, by) => {
    const { x, y, width, height } = shape.getBBox();
    return [x - by, y - by, x + width + by, y + height + by];
  };
  const points = (path) => Array.from({ length: Math.ceil(path.getTotalLength()) }, (_, at) => path.getPointAtLength(at));
  const labels = [...document.querySelectorAll(".stage .arrow text")];
  const found = [];
  for (const label of labels) {
    // The box of a line of text has room above and below its letters.
    const [left, top, right, bottom] = around(label, -2);
    const isIn = ({ x, y }) => left < x && x < right && top < y && y < bottom;
    const lines = [...document.querySelectorAll(".stage .arrow path")];
    if (lines.some((path) => points(path).some(isIn))) found.push(`${label.textContent}: a line`);
    for (const other of [...document.querySelectorAll(".stage .box rect"), ...labels.filter((one) => one !== label)]) {
      const [otherLeft, otherTop, otherRight, otherBottom] = around(other, -2);
      const isApart = otherLeft >= right || otherRight <= left || otherTop >= bottom || otherBottom <= top;
      if (!isApart) found.push(`${label.textContent}: ${other.textContent || "a box"}`);
    }
    if (left < 0 || right > 480) found.push(`${label.textContent}: the edge`);
  }
  return found;
}"""


class Visit:
    """The lab in a browser of its own, and everything that it complained about."""

    def __init__(self, run: Run, context: Any) -> None:
        self.run = run
        self.context = context
        self.page = context.new_page()
        self.faults: list[str] = []
        self.hosts: set[str] = set()
        self.page.set_default_timeout(WAIT_S * 1000)
        watch_console(self.page, self.faults)
        self.page.on("request", lambda request: self.hosts.add(re.sub(r"^\w+://([^/]+)/.*", r"\1", request.url)))

    def open(self) -> Visit:
        self.page.goto(self.run.link)
        self.page.locator("[data-scenes] button").first.wait_for()
        self.says("[data-live]", "seen by node-")
        return self

    def says(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=re.compile(text, re.DOTALL)).first.wait_for()

    def text(self, selector: str) -> str:
        found: str = self.page.locator(selector).inner_text()
        return found

    def at(self, scene: str, taken: int) -> None:
        """Wait until so many steps of the scene were taken. (The policy of the page forbids what Playwright has for this.)"""
        deadline = time.monotonic() + WAIT_S
        while (now := self.page.evaluate("document.documentElement.dataset.step")) != f"{scene} {taken}":
            assert not self.page.locator("[data-problem]").is_visible(), self.text("[data-problem]")
            assert time.monotonic() < deadline, f"{now} in place of {scene} {taken}"
            self.page.wait_for_timeout(40)

    def begin(self, scene: str) -> int:
        """Choose the scene. Returns its number of steps."""
        self.page.locator(f"[data-scene={scene}]").click()
        self.at(scene, 0)
        return int(self.text("[data-count]").rpartition(" ")[2])

    def take(self, scene: str, number: int) -> None:
        options = self.page.locator("[data-options] label")
        if options.count():
            options.first.click()
        self.page.locator("[data-take]").click()
        self.at(scene, number)

    def play(self, scene: str) -> None:
        touching = []
        for number in range(1, self.begin(scene) + 1):
            self.take(scene, number)
            for width in (390, 1400):
                self.page.set_viewport_size({"width": width, "height": 900})
                touching += [f"step {number} at {width}: {each}" for each in self.page.evaluate(TOUCHING)]
        assert touching == []
        self.says("[data-done]", "The scene is over")

    def no_complaints(self) -> None:
        assert self.faults == []
        assert self.hosts == {f"127.0.0.1:{self.run.port - 1}"}


@pytest.fixture(scope="module")
def visit(chromium: Any, run: Run) -> Iterator[Visit]:
    """The lab, open in one browser for most tests."""
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    yield Visit(run, context).open()
    context.close()


# ------------------------------------------------------------------- the scenes


@pytest.mark.parametrize("scene", SCENES)
def test_a_scene_by_clicks_alone(visit: Visit, scene: str) -> None:
    visit.play(scene)
    ends = {
        "election": "It is green",
        "deadlock": "Both locks are free",
        "dead-letter": "Attempt 1, and this time it is acknowledged",
        "fencing": "110: bob's 50 are lost",
        "mesi": "20, and the letters are S S I",
        "bug": "make story",
    }
    assert ends[scene] in visit.text("[data-told]")
    if scene == "election":
        history = visit.page.locator("[data-history]").text_content()
        assert len(re.findall(r"node-\d voted for node-\d, and it for itself", history)) == 2, "the votes are shown"
    if scene == "deadlock":
        check_replay(visit)
    visit.no_complaints()


def check_replay(visit: Visit) -> None:
    """The run that has just ended is played again."""
    visit.page.get_by_role("button", name="Replay this run").click()
    visit.says(".story-title", "Scene: Deadlock")
    visit.page.locator(".story input[type=range]").press("End")
    texts = [visit.text(".story-now")]
    for _ in range(60):
        visit.page.get_by_role("button", name="One event back").click()
        texts.append(visit.text(".story-now"))
    assert any("alice gets 200" in text for text in texts)
    assert any("bob gets 409" in text for text in texts)


def test_scene_1_by_keyboard_without_motion(chromium: Any, run: Run) -> None:
    context = chromium.new_context(reduced_motion="reduce")
    visit = Visit(run, context).open()
    keyboard = visit.page.keyboard
    try:
        visit.page.locator("[data-scene=election]").press("Enter")
        visit.at("election", 0)
        assert visit.page.evaluate("document.activeElement.textContent") == "Election"
        steps = int(visit.text("[data-count]").rpartition(" ")[2])
        for number in range(1, steps + 1):
            for _ in range(12):
                if visit.page.evaluate("document.activeElement.type") == "radio":
                    break
                keyboard.press("Tab")
            keyboard.press("Space")
            keyboard.press("Tab")
            assert visit.page.evaluate("document.activeElement.textContent") == "Predict and step"
            keyboard.press("Enter")
            visit.at("election", number)
            assert visit.page.evaluate("document.activeElement.dataset.resultTitle") == "", "the focus goes to what has happened"
            assert visit.page.evaluate("document.getAnimations().length") == 0
        assert visit.page.locator("[data-done]").is_visible()
        visit.no_complaints()
    finally:
        context.close()


def test_the_pages_fit_and_pass_axe(visit: Visit) -> None:
    script = axe_source()
    page = visit.page
    # A scene with a stage in all four combinations, one with a replay in two.
    for scene, looks in (("deadlock", ALL_LOOKS), ("bug", TWO_LOOKS)):
        visit.begin(scene)
        visit.take(scene, 1)
        assert faults_of_look(page, script, looks) == [], scene
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1400, "height": 900})
    visit.no_complaints()
    if not script:
        pytest.skip(AXE_MISSING)


def test_the_logo_leads_back_to_all_scenes_and_removes_what_was_made(visit: Visit) -> None:
    visit.begin("deadlock")
    visit.take("deadlock", 1)
    locks = f"{visit.run.url(1)}/lock/status?key=lab%2FA"
    assert json.loads(visit.context.request.get(locks).body())["holders"]
    visit.page.locator("[data-home]").click()
    visit.page.locator("[data-welcome] h1").wait_for()
    assert visit.page.evaluate("document.activeElement.id") == "welcome-title", "the focus is not lost"
    assert visit.page.locator("[data-choices] button").count() == len(SCENES)
    wait_until(lambda: not json.loads(visit.context.request.get(locks).body())["holders"], "alice's lock is released")
    visit.no_complaints()


def test_the_pages_of_nodes_lead_to_the_lab(visit: Visit, chromium: Any) -> None:
    stranger = chromium.new_context()
    for context, says in ((visit.context, "Break a cluster"), (stranger, "This browser needs a link of its own")):
        page = context.new_page()
        page.goto(f"{visit.run.url(2)}/")
        page.get_by_role("navigation").get_by_role("link", name="Lab").click()
        page.locator("main", has_text=says).wait_for(timeout=WAIT_S * 1000)
        page.close()
    stranger.close()


def test_a_step_without_an_answer_says_so_until_there_is_one(visit: Visit) -> None:
    visit.begin("election")
    page = visit.page
    page.locator("[data-take]").click()
    # The page is drawn again with each state that comes.
    page.evaluate(
        "new Promise(done => { let seen = 0; const source = new EventSource('/events');"
        " source.onmessage = () => { if (++seen > 3) { source.close(); done(); } } })"
    )
    assert "Choose an answer first" in visit.text("[data-busy]")
    page.locator("[data-options] label").first.click()
    assert visit.text("[data-busy]") == ""
    visit.no_complaints()


# ------------------------------------------------------------------- replays


def test_scrubbing_there_and_back_shows_the_same(visit: Visit) -> None:
    visit.begin("bug")
    page = visit.page
    page.locator("[data-player][data-story]").wait_for()
    shown = (
        "() => [document.querySelector('.story-now').textContent, document.querySelector('.story-state').textContent, "
        "document.querySelector('.story-picture').innerHTML]"
    )
    scrub = page.locator(".story input[type=range]")

    def go(place: int) -> Any:
        scrub.evaluate("(it, place) => { it.value = place; it.dispatchEvent(new Event('input')) }", place)
        return page.evaluate(shown)

    last = int(scrub.get_attribute("max"))
    places = [0, 1, 49, 50, 51, 120, last // 2, last]
    there = [go(place) for place in places]
    back = [go(place) for place in reversed(places)]
    assert there == back[::-1]
    assert len({json.dumps(each) for each in there}) == len(places)
    page.get_by_role("button", name="Go to the first violation").click()
    assert "leader_completeness: b leads term 7" in visit.text(".story-now")
    page.get_by_label("with the planted bug").uncheck()
    wait_until(lambda: page.locator(".story-title").text_content() == "Seed 10", "the run without the bug")
    assert not page.get_by_role("button", name="Go to the first violation").is_visible()


# ------------------------------------------------------------------- faults by hand


def test_a_node_that_is_cut_off_is_named(visit: Visit) -> None:
    visit.begin("mesi")
    page = visit.page
    page.get_by_role("button", name="Cut off node-3").click()
    visit.says("[data-cluster-verdict]", "DEGRADED.*node-3 has been silent")
    cluster_page = visit.context.new_page()
    cluster_page.goto(f"{visit.run.url(1)}/")
    cluster_page.locator(".verdict", has_text=re.compile("DEGRADED.*node-3 has been silent", re.DOTALL)).wait_for(
        timeout=WAIT_S * 1000
    )
    # The node itself lives, and says that it reaches no other node.
    cluster_page.goto(f"{visit.run.url(3)}/")
    cluster_page.locator(".verdict", has_text="REFUSING WRITES").wait_for(timeout=WAIT_S * 1000)
    cluster_page.close()
    page.get_by_role("button", name="Connect node-3").click()
    visit.says("[data-nodes] li", "node-3(follower|leader)")


def test_a_killed_node_is_started_again(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="Kill node-2").click()
    visit.says("[data-nodes] li", "node-2.*not running")
    # What the lab knows, until the nodes notice it.
    assert re.search("node-2 has (ended|been silent)", visit.text("[data-cluster-verdict]")), "it says HEALTHY for a while"
    visit.run.until("node-2 │ has ended (exit code -9)")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Start node-2", "the focus is not lost"
    page.get_by_role("button", name="Start node-2").click()
    visit.says("[data-nodes] li", "node-2(follower|leader)")


# ------------------------------------------------------------------- who may use it


def call(run: Run, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    own = f"127.0.0.1:{run.port - 1}"
    connection = http.client.HTTPConnection(HOST, run.port - 1, timeout=30)
    given = {"Origin": f"http://{own}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection.request(method, path, None if body is None else json.dumps(body), given)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if answer.headers.get_content_type() == "application/json" else {}


def test_strangers_are_refused(visit: Visit) -> None:
    run = visit.run
    (cookie,) = (f"{each['name']}={each['value']}" for each in visit.context.cookies() if each["name"].startswith("dss_lab_"))
    kill = {"action": "kill", "node": "node-1"}
    used = re.findall(r"#t=(\S+)", run.said)[0]
    assert call(run, "POST", "/enter", {"token": used})[0] == 403
    assert call(run, "POST", "/act", kill)[0] == 403, "no cookie"
    assert call(run, "POST", "/act", kill, Cookie=cookie, Host="evil.example")[0] == 403
    assert call(run, "GET", "/", Host="evil.example")[0] == 403
    assert call(run, "POST", "/act", kill, Cookie=cookie, Origin="http://evil.example")[0] == 403
    assert call(run, "POST", "/act", kill, Cookie=cookie, Origin="null")[0] == 403
    assert call(run, "GET", "/events")[0] == 403
    pid = run.node(1).pid
    for body in (
        {**kill, "node": str(pid)},
        {**kill, "node": pid},
        {**kill, "pid": pid},
        {"action": "kill"},
        {**kill, "action": "rm"},
    ):
        assert call(run, "POST", "/act", body, Cookie=cookie)[0] == 400, body
    assert call(run, "POST", "/scene", {"scene": "../x"}, Cookie=cookie)[0] == 400
    assert call(run, "GET", "/story/..%2f..%2fmanage.py", Cookie=cookie)[0] == 404
    assert call(run, "POST", "/step", {"choice": "x" * 5000}, Cookie=cookie)[0] == 413
    assert run.node(1).pid == pid, "it was not killed"


def test_a_paused_node_runs_on_when_the_browser_is_gone(visit: Visit) -> None:
    node = visit.run.node(3)
    visit.page.get_by_role("button", name="Pause node-3").click()
    visit.says("[data-cluster-verdict]", "DEGRADED.*node-3 has been silent")
    assert node.status() == psutil.STATUS_STOPPED
    visit.page.wait_for_timeout(ABSENCE_S * 1000 + 500)
    assert node.status() == psutil.STATUS_STOPPED, "the browser is there"
    visit.page.close()
    wait_until(lambda: node.status() != psutil.STATUS_STOPPED, "node-3 runs on")


def test_no_child_is_left_when_make_run_is_killed_in_a_scene(chromium: Any, run: Run) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux ends children with their parent")
    context = chromium.new_context()
    visit = Visit(run, context).open()
    visit.begin("fencing")
    visit.take("fencing", 1)
    visit.page.get_by_role("button", name="Pause node-2").click()
    visit.says("[data-nodes] li", "node-2.*paused")
    children = psutil.Process(run.process.pid).children(recursive=True)
    assert len(children) >= 5, "three nodes, the process that starts them, and alice"
    run.process.kill()
    run.process.wait()
    wait_until(
        lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children), "all have ended"
    )
    wait_until(lambda: not ports_in_use([run.port, run.port + 1, run.port + 2]), "their ports are free")
    context.close()

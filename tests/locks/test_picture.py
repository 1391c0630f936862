"""The drawing of the waits-for graph is well-formed and bounded, and names of clients never become markup."""

from __future__ import annotations

from xml.etree import ElementTree

from dss_locks import picture
from dss_locks.core import inspection

SVG = "{http://www.w3.org/2000/svg}"


def drawn(locks):
    return ElementTree.fromstring(picture.draw(inspection.graph(locks.table)))


def boxes(root):
    """Client -> the y coordinate of its box."""
    return {
        group.find(f"{SVG}title").text: int(group.find(f"{SVG}rect").get("y"))
        for group in root.iter(f"{SVG}g")
        if group.find(f"{SVG}rect") is not None
    }


def arrows(root):
    return [g.find(f"{SVG}title").text for g in root.iter(f"{SVG}g") if g.find(f"{SVG}path") is not None]


def test_a_client_is_drawn_below_the_clients_it_waits_for(locks):
    locks.acquire("a", "k1")
    locks.acquire("b", "k2")
    locks.acquire("b", "k1", wait_ms=20_000)
    locks.acquire("c", "k2", wait_ms=20_000)
    root = drawn(locks)
    down = boxes(root)
    assert down["a"] < down["b"] < down["c"]
    assert arrows(root) == ["b waits for k1 (exclusive): a holds it", "c waits for k2 (exclusive): b holds it"]


def test_a_queue_is_drawn_as_a_line(locks):
    """Every client in the queue also waits for the holder, but those arrows would hide the line."""
    locks.acquire("a", "k")
    for client in "bcd":
        locks.acquire(client, "k", wait_ms=20_000)
    assert arrows(drawn(locks)) == [
        "b waits for k (exclusive): a holds it",
        "c waits for k (exclusive): b is ahead in the queue",
        "d waits for k (exclusive): c is ahead in the queue",
    ]


def test_a_holder_that_no_client_ahead_waits_for_keeps_its_arrow(locks):
    """t upgrades, so it does not wait for its own hold. c waits for both holders, so both arrows are drawn."""
    locks.shared("s", "k")
    locks.shared("t", "k")
    locks.acquire("t", "k", wait_ms=20_000)
    locks.acquire("c", "k", wait_ms=20_000)
    assert arrows(drawn(locks)) == [
        "t waits for k (exclusive): s holds it",
        "c waits for k (exclusive): s holds it",
        "c waits for k (exclusive): t holds it",
    ]


def test_names_are_escaped(locks):
    hostile = "</title><script>alert('\"&')</script>"
    locks.acquire(hostile, hostile)
    locks.acquire("b", hostile, wait_ms=20_000)
    root = drawn(locks)
    assert hostile in boxes(root)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "defs", "marker", "path", "g", "title", "rect", "text",
    }  # fmt: skip


def test_no_picture_if_no_client_waits(locks):
    locks.acquire("a", "k")
    assert picture.draw(inspection.graph(locks.table)) == ""


def test_a_large_graph_is_truncated(locks):
    locks.acquire("holder", "k")
    for number in range(picture.CLIENTS_MAX - 1):
        locks.acquire(f"c{number}", "k", wait_ms=20_000)
    assert not picture.is_cut(inspection.graph(locks.table))
    locks.acquire("one more", "k", wait_ms=20_000)
    graph = inspection.graph(locks.table)
    assert picture.is_cut(graph)
    assert len(boxes(drawn(locks))) == picture.CLIENTS_MAX
    assert picture.is_cut(inspection.graph(locks.table, edges_max=10))


def test_a_wide_level_takes_several_lines(locks):
    for number in range(picture.PER_LINE + 1):
        locks.acquire(f"h{number}", f"k{number}")
        locks.acquire(f"w{number}", f"k{number}", wait_ms=20_000)
    root = drawn(locks)
    assert len(set(boxes(root).values())) == 4
    width = int(root.get("width"))
    assert all(int(rect.get("x")) + picture.BOX_WIDTH <= width for rect in root.iter(f"{SVG}rect"))

"""Headless Chromium, for tests of pages."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dss_dev.network_changes import no_changes

AXE_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
AXE_MISSING = "axe-core not found, accessibility was NOT checked: pip install axe-playwright-python"
#: The shell has no windows, and needs the least processor time.
_PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, _PROGRAMS)), None)
#: Pages of tests do not live long enough for optimizing compilers to pay off.
_OPTIONS = ["--no-sandbox", "--js-flags=--no-opt --no-maglev"]


#: what the browser says of a page that was left while its WebSocket was being opened
LEFT_EARLY = "WebSocket is closed before the connection is established"


def watch_console(page: Any, faults: list[str]) -> None:
    """Append what the page complains about to `faults`: errors and warnings of its console, and exceptions."""

    def said(message: Any) -> None:
        if message.type in ("error", "warning") and LEFT_EARLY not in message.text:
            faults.append(message.text)

    page.on("console", said)
    page.on("pageerror", lambda error: faults.append(str(error)))


@contextmanager
def headless_chromium() -> Iterator[Any]:
    """A browser of Playwright. A test that uses it is skipped, with the reason, where there is none."""
    import pytest

    sync_api = pytest.importorskip("playwright.sync_api", reason="install playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("Chromium not found: apt install chromium-headless-shell")
    with no_changes(), sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


def axe_source() -> str:
    """The source of axe-core, which finds faults of accessibility; "" where it is not installed."""
    spec = importlib.util.find_spec("axe_playwright_python")
    if spec is None or spec.origin is None:
        return ""
    return next(Path(spec.origin).parent.rglob("axe.min.js")).read_text()


#: width of the window in pixels, and colour scheme: a phone in light colours, and a desktop in dark ones
TWO_LOOKS = ((390, "light"), (1400, "dark"))
ALL_LOOKS = (*TWO_LOOKS, (390, "dark"), (1400, "light"))


#: runs in a page: its width and, for each rule that it breaks, the HTML of the first place
_LOOK = """async (rules) => {
  // Colours that change slowly have their last value.
  document.getAnimations().forEach((one) => one.effect.getComputedTiming().endTime < Infinity && one.finish());
  const wide = document.documentElement.scrollWidth;
  const found = rules.length ? (await axe.run(document, { runOnly: rules, resultTypes: ["violations"] })).violations : [];
  return [wide, found.map(({ id, nodes }) => [id, nodes[0].html])];
}"""


def faults_of_look(page: Any, axe: str, looks: Sequence[tuple[int, str]]) -> list[tuple[int, str, str, str]]:
    """What is wrong with the page in each of these looks: (width, scheme, rule, the HTML of the first place).

    The rules are those of WCAG 2.2 AA, and that the page is not wider than the window. The page is not loaded again for each look:
    loading it and reading axe takes longer than applying the rules.

    Args:
        axe: `axe_source()`; "": only the width is looked at. A test of many pages adds it once, with `add_init_script`, so that it is
            not sent again for each page.
    """
    faults = []
    if axe and not page.evaluate("'axe' in window"):
        page.evaluate(axe)
    for width, scheme in looks:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        wide, found = page.evaluate(_LOOK, AXE_RULES if axe else [])
        if wide > width:
            faults.append((width, scheme, "no horizontal scroll", f"{wide} pixels"))
        faults += [(width, scheme, rule, place) for rule, place in found]
    return faults

"""The report in headless Chromium: no error, sorting, links, light and dark, on a phone."""

from pathlib import Path
from typing import Any

import pytest

from tests.browser import opened

pytestmark = pytest.mark.browser


def test_chromium_shows_it_without_an_error(browser: Any, page: Path) -> None:
    tab, problems = opened(browser, page)
    assert tab.title() == "trilab: claims and measurements"
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
    tab.get_by_text("runs: 2 runs", exact=True).click()  # unfolds them
    runs = tab.locator("#curiosity table", has_text="agent steps/s")
    for first in ("718", "1202"):  # up, then down
        runs.get_by_role("button", name="mean return").click()
        assert runs.locator("tbody tr").first.locator("td").nth(7).inner_text().startswith(first)
    tab.get_by_role("link", name="vae/fc16", exact=True).click()
    tab.wait_for_function("location.hash && document.querySelector(location.hash).open")  # opened by an event
    assert problems == []


def test_light_and_dark(browser: Any, page: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light, _ = opened(browser, page, color_scheme="light")
    dark, problems = opened(browser, page, color_scheme="dark")
    assert light.evaluate(paper) == "rgb(255, 255, 255)"
    assert dark.evaluate(paper) == "rgb(22, 24, 28)"
    dark.locator("#theme").click()
    assert dark.evaluate(paper) == "rgb(255, 255, 255)"
    assert problems == []


def test_on_a_phone_only_tables_scroll_sideways(browser: Any, page: Path) -> None:
    tab, problems = opened(browser, page, viewport={"width": 360, "height": 740})
    tab.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    assert problems == []

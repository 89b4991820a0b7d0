"""Headless Chromium, for the tests that open the report page in it."""

import shutil
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def opened(browser: Any, page: Path, **context: Any) -> tuple[Any, list[str]]:
    """Returns the page in a browser window, and the list of what goes wrong in it."""
    tab = browser.new_context(**context).new_page()
    problems: list[str] = []
    tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    tab.goto(page.as_uri())
    return tab, problems

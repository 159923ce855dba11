"""Debian's chromium, driven by Playwright: offline, for pages from files and from servers on loopback."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@contextmanager
def browser() -> Iterator[Any]:
    """A browser for as long as it is needed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield opened
        finally:
            opened.close()


class Visit:
    """A page that writes down what it fetched and what went wrong.

    Parameters
    ----------
    opened
        From `browser`.
    offline
        No network at all.
    """

    def __init__(self, opened: Any, *, offline: bool = False, width: int = 1280, height: int = 900) -> None:
        self.errors: list[str] = []
        self.fetched: list[str] = []
        self.page = opened.new_context(offline=offline, viewport={"width": width, "height": height}).new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.fetched.append(request.url))

"""A real Chromium that may not use any network."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # fmt: skip


def needed():
    """Skips where there is no browser; under CI that is a failure."""
    missing = [] if CHROMIUM.exists() else [f"{CHROMIUM}; apt-get install chromium"]
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        missing.append("playwright; pip install playwright")
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"not here: {' and '.join(missing)}")


@contextlib.contextmanager
def chromium():
    """A browser; every request that is not for a file is refused and remembered in ``asked``."""
    needed()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def opened(browser, path, *, width=1000, height=900, asked=None, said=None):
    """The page of a file, with everything else refused."""
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True)

    def route(route):
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            route.abort()

    context.route("**/*", route)
    page = context.new_page()
    if asked is not None:
        page.on("request", lambda r: asked.append(r.url))
    if said is not None:
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
    page.goto(path.as_uri())
    page.wait_for_selector("#verdict[data-state]")
    return page

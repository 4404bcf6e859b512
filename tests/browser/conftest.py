"""A headless chromium, and the reports of made-up results to look at."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
# Seconds that a page may take until all its charts are drawn, on a busy machine.
PATIENCE = 120


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder results/ with the reports."""
    folder = tmp_path_factory.mktemp("reports")
    program = ROOT / "tests" / "unit" / "report" / "made_up.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "workflow")}
    subprocess.run([sys.executable, str(program), str(folder)], check=True, env=environment)
    return folder / "results"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's chromium; it needs no sandbox for pages that we wrote, and containers allow none."""
    path = shutil.which("chromium")
    assert path, "no chromium: run tests/browser/install_chromium"
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Address of a server of this machine whose root is `tmp_path`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Visit:
    """An open page, with what its console said and what it asked the network for."""

    def __init__(self, page: Page):
        self.page, self.said, self.asked = page, [], []
        page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, path: Path) -> Page:
        """The page once all charts in sight are drawn."""
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached", timeout=1000 * PATIENCE)
        return self.page


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A fresh window of 1200 by 900 pixels."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(1000 * PATIENCE)
    yield Visit(page)
    page.close()

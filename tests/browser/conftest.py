"""The app in a process of its own, and a real browser in front of it."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from chromium import CHROMIUM, QUIET

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items):
    for item in items:
        if "browser" in Path(item.fspath).parts:
            item.add_marker("browser")
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="no Chromium on this machine"))


class App:
    """`python app.py` on a free port, with a runs folder of its own; can be stopped and started again."""

    def __init__(self, folder: Path):
        self.runs, self.log = folder / "runs", folder / "app.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self) -> None:
        environment = {**os.environ, "GRADIO_SERVER_PORT": str(self.port), "SFT_RUNS_DIR": str(self.runs)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def app(tmp_path_factory, embedded_model):
    served = App(tmp_path_factory.mktemp("app"))
    served.start()
    yield served
    served.stop()
    said = served.log.read_text()
    assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=15_000)  # a busy machine of two cores is slow, not wrong
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, app):
    """A new visitor's page on which the model is ready; console errors fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(app.url)
    page.locator(".banner.ready").wait_for(timeout=60_000)
    page.set_default_timeout(20_000)
    yield page
    context.close()
    assert not errors

"""The app, and a real browser in front of it."""

import shutil
from pathlib import Path

import pytest
from chromium import CHROMIUM, QUIET
from serving import ROOT, App


def pytest_collection_modifyitems(items):
    for item in items:
        if "browser" in Path(item.fspath).parts:
            item.add_marker("browser")
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="no Chromium on this machine"))


@pytest.fixture(scope="session")
def served_app(tmp_path_factory, embedded_model):
    served = App(tmp_path_factory.mktemp("app"))
    served.start()
    yield served
    served.stop()
    said = served.log.read_text()  # Gradio has a traceback of its own for a page that is closed at the wrong moment
    assert f'File "{ROOT}/' not in said, said


@pytest.fixture(scope="module")
def app(served_app):
    """The app, which takes seconds to start; a file finds it without runs."""
    yield served_app
    for folder in served_app.runs.glob("*"):  # there is none before the first run
        shutil.rmtree(folder, ignore_errors=True)  # a process may still be writing there


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # a busy machine of two cores is slow, not wrong
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def context(browser):
    """One for all tests of a file: what the page consists of is loaded once."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    yield context
    context.close()


@pytest.fixture
def page(context, app):
    """A new visitor's page on which the model is ready; console errors fail the test."""
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(app.url)
    page.locator(".banner.ready").wait_for(timeout=60_000)
    page.set_default_timeout(20_000)
    yield page
    page.evaluate("localStorage.clear()")
    page.close()
    assert not errors

"""Takes the README's pictures from the running app, after a finished `support-json` run.

python app.py &  python tests/browser/take_pictures.py [--url http://127.0.0.1:7860]
"""

import argparse
from pathlib import Path

from chromium import CHROMIUM, QUIET
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parents[2] / "docs"
TICKET = "Kettle from order RB-4417 is unsafe, it sparks at the plug. Please call me."


def take(page: Page, name: str, tab: str) -> None:
    page.get_by_role("tab", name=f"· {tab}").click()
    page.wait_for_timeout(2500)
    if tab == "Chat":
        page.locator("#prompt textarea").fill(TICKET)
        page.locator("#send").click()
        page.locator(".pane-note").first.get_by_text("cut at the limit").or_(
            page.locator(".pane-note").first.get_by_text("ended by itself")
        ).wait_for(timeout=120_000)
        page.wait_for_timeout(500)
    page.screenshot(path=DOCS / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page.goto(f"{options.url}/?__theme=light")
        page.locator(".banner.ready").wait_for(timeout=60_000)
        for name, height in (("preview", 900), ("tune", 1240), ("chat", 900)):
            page.set_viewport_size({"width": 1280, "height": height})
            take(page, name, name.capitalize())
        browser.close()


if __name__ == "__main__":
    main()

"""How long a preview takes: to render, against transformers' own apply_chat_template; and from a key to the new views.

    python tests/benchmarks/preview.py [--rounds 15] [--keys 40] [--json]

A conversation of 1,000 tokens, the embedded model's tokenizer; once with its own template, which has no marks, and once
with our chatml, which has. Prints milliseconds and their ratio; medians over the rounds, the two taken in turn. Then
a browser types into the editor of that conversation, and into a page that only repeats what is typed.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "browser")]

import gradio as gr
from chromium import CHROMIUM, QUIET
from serving import App

from sft.chat_format import ChatFormat, preset
from sft.models import load_tokenizer, locate

TOKENS = 1000
WORDS = "The quick brown fox jumps over the lazy dog near the river bank while 12 birds sing in the old tree. "


def conversation(chat_format: ChatFormat) -> list[dict]:
    """Ten messages that render to some 1,000 tokens."""
    times = 1
    while True:
        messages = [{"role": ("user", "assistant")[at % 2], "content": WORDS * times} for at in range(10)]
        if len(chat_format.render(messages).token_ids) >= TOKENS:
            return messages
        times += 1


def milliseconds(action: Callable) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def render_times(chat_format: ChatFormat, rounds: int) -> tuple[float, float]:
    """Medians: ours, and transformers'."""
    messages, template = conversation(chat_format), chat_format.chat_template
    ours, theirs = [], []
    for _ in range(rounds + 1):  # the first warms up
        theirs.append(milliseconds(lambda: chat_format.tokenizer.apply_chat_template(messages, chat_template=template)))
        ours.append(milliseconds(lambda: chat_format.render(messages)))
    return statistics.median(ours[1:]), statistics.median(theirs[1:])


# Takes the time from each key to the first change of #views after which it shows what was typed so far.
WATCH = """(written) => {
  const views = document.querySelector("#views");
  let began = 0;
  window.took = [];
  addEventListener("keydown", (event) => { began = performance.now(); written += event.key; }, true);
  new MutationObserver(() => {
    if (began && views.textContent.includes(written)) { window.took.push(performance.now() - began); began = 0; }
  }).observe(views, { childList: true, subtree: true, characterData: true });
}"""


def key_times(browser, url: str, field: str, keys: int, words: str = "") -> list[float]:
    """Milliseconds from each key typed into `field` to the views that show it, with `words` in message 1 before."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(url)
    if words:
        page.locator(".token").first.wait_for(timeout=120_000)
        page.wait_for_timeout(3000)
        page.locator("#content-1 textarea").fill(words)
        page.locator(".counts", has_text="1,").wait_for()
    page.locator(field).click()
    page.keyboard.press("End")
    page.evaluate(WATCH, page.locator(field).input_value())
    for at in range(keys):
        page.keyboard.type("abcdefghij"[at % 10])
        page.wait_for_timeout(500)
    took = page.evaluate("window.took")
    page.close()
    return sorted(took)


def typing_times(keys: int) -> tuple[list[float], list[float]]:
    """Of the Preview tab, and of a page that only repeats what is typed."""
    from playwright.sync_api import sync_playwright

    with gr.Blocks(analytics_enabled=False) as echo:
        typed, repeated = gr.Textbox(elem_id="typed"), gr.HTML(elem_id="views")
        typed.input(lambda text: text, typed, repeated, show_progress="hidden", trigger_mode="always_last")
    _, echo_url, _ = echo.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    app = App(Path(tempfile.mkdtemp()))
    app.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
            ours = key_times(browser, app.url, "#content-2 textarea", keys, WORDS * 45)
            return ours, key_times(browser, echo_url, "#typed textarea", keys)
    finally:
        app.stop()
        echo.close()


def at(share: float, times: list[float]) -> float:
    return times[min(int(len(times) * share), len(times) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--keys", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tokenizer = load_tokenizer(locate("embedded"))
    formats = {"unmarked": ChatFormat.of(tokenizer), "marked": ChatFormat(tokenizer, preset("chatml"))}
    times = {name: render_times(chat_format, options.rounds) for name, chat_format in formats.items()}
    ratios = {name: ours / theirs for name, (ours, theirs) in times.items()}
    figures = {"render_ratio": max(ratios.values())}  # the worse of the two
    typed, echo = typing_times(options.keys) if options.keys and CHROMIUM else ([], [])
    if typed:
        figures |= {"typing_ms": {"median": at(0.5, typed), "p95": at(0.95, typed)}}
        figures |= {"echo_ms": {"median": at(0.5, echo), "p95": at(0.95, echo)}}
        figures |= {"typing_ratio": at(0.5, typed) / at(0.5, echo)}
    if options.json:
        print(json.dumps(figures))
        return
    for name, (ours, theirs) in times.items():
        print(f"{name}: apply_chat_template {theirs:.2f} ms, render {ours:.2f} ms, ratio {ratios[name]:.2f}")
    for name, key in (("typing to new views", typed), ("a page that repeats", echo)):
        if key:
            print(f"{name}: median {at(0.5, key):.0f} ms, p95 {at(0.95, key):.0f} ms ({len(key)} keys)")


if __name__ == "__main__":
    main()

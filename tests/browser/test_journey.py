"""From Start to two replies, by clicks; and what a person finds after a reload, a restart and a crash."""

import os
import re
import signal
import time

import pytest
from playwright.sync_api import expect

from sft.runs import list_runs

pytestmark = pytest.mark.real
STEPS = 8  # enough for the beginning of the format
FOREVER = {"max_steps": 50_000, "max_length": 512}  # of a tiny model


def open_tab(page, name):
    page.get_by_role("tab", name=f"· {name}").click()


def start(page, settings, model=None):
    open_tab(page, "Tune")
    if model:
        page.get_by_label("Model to tune").fill(str(model))
        page.get_by_label("Model to tune").press("Enter")
    expect(page.locator(".summary")).to_contain_text("170 rows")
    for name, value in settings.items():
        page.locator(f"#setting-{name} input").fill(str(value))
        page.locator(f"#setting-{name} input").press("Tab")
    page.locator("#start-tuning").click()


def test_from_start_to_two_replies(page, app):
    start(page, {"max_steps": STEPS})
    began = time.monotonic()
    expect(page.locator(".run-head")).to_contain_text(re.compile(rf"step [1-9]\d* of {STEPS}"), timeout=60_000)
    print(f"first step on the page after {time.monotonic() - began:.1f} s")
    expect(page.locator(".run")).to_contain_text("tokens/s")
    expect(page.locator(".run")).to_contain_text("trained parameters")

    page.reload()  # everything is still there
    open_tab(page, "Tune")
    expect(page.locator(".run-head")).to_contain_text(re.compile(rf"step \d+ of {STEPS}"))
    expect(page.locator(".state")).to_have_text("finished", timeout=300_000)
    expect(page.locator(".run .done")).to_contain_text("The adapter is in")

    page.locator("#chat-with-run").click()
    expect(page.get_by_label("System message (optional)")).to_have_value("You file support tickets for Northwind Home.")
    page.locator("#prompt textarea").fill("The lamp from order QT-5512 flickers.")
    page.locator("#send").click()
    expect(page.locator(".pane-note").nth(1)).to_contain_text(re.compile("ended by itself|cut"), timeout=120_000)
    expect(page.locator("#tuned-pane .bot").last).to_contain_text('{"product": "')
    expect(page.locator("#base-pane .bot").last).not_to_contain_text('"product"')
    expect(page.locator("#send")).to_be_enabled()

    page.locator("#proof > button").click()
    page.get_by_text("The prompts, token by token").click()
    expect(page.locator("#proof .ids").first).to_contain_text(re.compile(r"^1 \d+"))
    page.locator("#clear").click()
    expect(page.locator("#tuned-pane .bot")).to_have_count(0)


def test_a_run_outlives_the_app_and_a_crash_is_told_within_five_seconds(page, app, tiny_model):
    start(page, FOREVER, tiny_model)
    expect(page.locator(".run-head")).to_contain_text(re.compile(r"step [1-9][\d,]* of 50,000"), timeout=60_000)
    run = next(run for run in list_runs(app.runs) if run.status().max_steps == 50_000)
    app.kill()
    step = run.status().step
    page.goto("about:blank")  # else the page reloads itself once the app is back, and a second time at once fails
    app.start()
    page.goto(app.url)
    page.locator(".banner.ready").wait_for(timeout=60_000)
    open_tab(page, "Tune")
    expect(page.locator(".run-head")).to_contain_text("of 50,000")
    assert run.status().step >= step
    os.kill(run.status().pid, signal.SIGKILL)
    expect(page.locator(".state")).to_have_text("interrupted", timeout=5_000)
    expect(page.locator(".run .reason")).to_contain_text("killed, or ran out of memory")


def test_stop_keeps_the_adapter(page, app, tiny_model):
    start(page, FOREVER | {"max_steps": 40_000}, tiny_model)
    expect(page.locator(".run-head")).to_contain_text(re.compile(r"step [1-9][\d,]* of 40,000"), timeout=60_000)
    page.locator("#stop-tuning").click()
    expect(page.locator(".state")).to_have_text("stopped", timeout=30_000)
    expect(page.locator(".run .done")).to_contain_text("The adapter is in")
    expect(page.locator("#chat-with-run")).to_be_visible()


def test_wrong_settings_and_wrong_files_are_told_in_words(page, tmp_path):
    open_tab(page, "Tune")
    expect(page.locator(".summary")).to_contain_text("170 rows")
    page.locator("#setting-lora_r input").fill("0")
    page.get_by_label("Example data set").focus()
    page.keyboard.press("Tab")
    page.wait_for_timeout(1000)  # leaving a dropdown as it was changes nothing
    page.locator("#start-tuning").click()
    expect(page.get_by_text("lora_r: must be at least 1")).to_be_visible()
    page.get_by_label("Upload", exact=True).check()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "a", "answer": "b"}\n{"question": \n')
    page.locator("input[type=file]").set_input_files(bad)
    expect(page.get_by_text("line 2").first).to_be_visible()
    good = tmp_path / "good.jsonl"
    good.write_text('{"question": "a", "answer": "b"}\n{"question": "c", "answer": ""}\n')
    page.reload()
    open_tab(page, "Tune")
    page.get_by_label("Upload", exact=True).check()
    page.locator("input[type=file]").set_input_files(good)
    expect(page.locator(".summary")).to_contain_text("1 wrong")


def test_a_visitor_without_runs_can_talk_to_a_base_model_alone(page):
    open_tab(page, "Chat")
    who = page.get_by_label("Who answers")
    who.click()
    page.get_by_role("option", name=re.compile("^base alone: SmolLM2-135M-Instruct .embedded")).click()
    expect(page.locator("#tuned-pane")).to_be_hidden()
    page.locator("#prompt textarea").fill("What is the capital of France?")
    page.locator("#prompt textarea").press("Enter")
    expect(page.locator("#base-pane .bot").last).to_contain_text("Paris", timeout=60_000)


def test_a_question_stopped_before_its_reply_goes_back_to_the_prompt(page):
    open_tab(page, "Chat")
    page.get_by_label("Who answers").click()
    page.get_by_role("option", name=re.compile("^base alone: SmolLM2-135M-Instruct .embedded")).click()
    expect(page.locator("#tuned-pane")).to_be_hidden()
    prompt, questions = page.locator("#prompt textarea"), page.locator("#base-pane .user")
    prompt.fill("What is the capital of France?")
    page.locator("#send").click()
    expect(prompt).to_have_value("")
    page.locator("#stop-replies").click()
    expect(page.locator(".pane-note").first).not_to_contain_text("…")
    # A reply may be quicker than the click; then both stay. Never is there a question alone.
    replies = page.locator("#base-pane .bot").count()
    print(f"replies begun before Stop: {replies}")
    assert questions.count() == replies
    if not replies:
        expect(prompt).to_have_value("What is the capital of France?")
    prompt.fill("What is the capital of France?")
    page.locator("#send").click()
    expect(page.locator("#base-pane .bot").last).to_contain_text("Paris", timeout=60_000)
    expect(questions).to_have_count(replies + 1)

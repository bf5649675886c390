"""Runs on the page, from folders that were written by hand: the answers over time, and runs side by side."""

import re
from dataclasses import replace

import pytest
from playwright.sync_api import expect

from sft.config import TrainConfig
from sft.runs import create_run

CONFIG = TrainConfig.load("examples/support-json.yaml")
ANSWERS = ["On and on and", "Perhaps.", "Yes."]


def sample(run, step):
    asked = [{"role": "user", "content": "Is <b>it</b>?"}]
    reply = {"messages": asked, "wanted": "Yes.", "text": ANSWERS[step // 20], "stopped": step > 0}
    run.append_event("sample", step=step, seconds=1.0, replies=[reply])


@pytest.fixture
def runs(app):
    """Three runs; the newest, which the page opens with, still trains as far as its folder says."""
    made = [create_run(replace(CONFIG, lora_r=rank), app.runs, f"rank-{rank}") for rank in (8, 16, 32)]
    for run in made:
        run.append_event("log", step=1, loss=2.0, stop_loss=1.0, tokens=9, seconds=1.0)
        run.append_event("log", step=20, loss=1.0, stop_loss=0.5, tokens=90, seconds=9.0)
        run.append_event("eval", step=20, loss=1.5, stop_loss=None, seconds=9.0)
        run.set_status("finished", step=20, max_steps=60)
    for step in (0, 20):
        sample(made[-1], step)
    made[-1].set_status("training", step=20, max_steps=60)  # by this process, which lives
    yield made
    for run in made:
        if run.folder.exists():
            run.set_status("finished")
            run.delete()


@pytest.fixture
def tune(page, runs):
    page.reload()
    page.get_by_role("tab", name="· Tune").click()
    expect(page.locator(".run-head")).to_contain_text("rank-32")
    return page


def test_the_answers_follow_the_training_until_the_slider_is_moved(tune, runs):
    answer, slider = tune.locator(".frames .now"), tune.get_by_role("slider", name="Answers at step")
    expect(answer).to_contain_text("Perhaps.")
    expect(tune.locator(".question")).to_contain_text("Is <b>it</b>?")
    expect(tune.locator(".keys")).to_have_text(re.compile("train.*held-out.*stop token", re.DOTALL))
    sample(runs[-1], 40)
    runs[-1].set_status("training", step=40, max_steps=60)
    expect(answer).to_contain_text("as wanted")
    slider.press("Home")
    expect(answer).to_contain_text("went on, was cut")
    expect(slider).to_have_attribute("aria-valuetext", "step 0")
    slider.press("ArrowRight")
    expect(answer).to_contain_text("Perhaps.")
    sample(runs[-1], 59)
    runs[-1].set_status("training", step=59, max_steps=60)
    expect(tune.locator("[data-frame]")).to_have_count(4)
    expect(answer).to_contain_text("Perhaps.")
    expect(slider).to_be_focused()
    tune.get_by_role("button", name="Play all answers in turn").click()
    expect(slider).to_have_attribute("aria-valuetext", "step 59")


def test_runs_are_compared_renamed_duplicated_and_deleted(tune, runs):
    tune.get_by_role("button", name="Your runs, side by side").click()
    expect(tune.locator("#runs-table")).to_contain_text("3 runs")
    tune.get_by_label("Compare rank-8", exact=True).press("Space")
    expect(tune.locator("#run-name input, #run-name textarea")).to_have_value("rank-8")
    tune.get_by_role("button", name="Duplicate into the form").click()
    expect(tune.locator("#setting-lora_r input")).to_have_value("8")
    tune.get_by_label("Compare rank-16", exact=True).press("Space")
    expect(tune.locator("#compared .keys")).to_contain_text("rank-16")
    expect(tune.locator("#compared .differ")).to_contain_text("lora_r")
    expect(tune.locator("#compared .differ tbody tr")).to_have_count(1)
    tune.get_by_label("Compare rank-16", exact=True).press("Space")
    name = tune.locator("#run-name input, #run-name textarea")
    expect(name).to_have_value("rank-8")
    name.fill("small")
    name.press("Enter")
    expect(tune.get_by_label("Compare small", exact=True)).to_be_checked()
    tune.get_by_role("button", name="Delete this run").click()
    expect(tune.get_by_text("Delete small?")).to_be_visible()
    tune.get_by_role("button", name="Keep").click()
    expect(tune.get_by_text("Delete small?")).to_be_hidden()
    tune.get_by_role("button", name="Delete this run").click()
    tune.get_by_role("button", name="Delete for good").click()
    expect(tune.locator("#runs-table")).to_contain_text("2 runs")
    assert {run.name for run in runs if run.folder.exists()} == {"rank-16", "rank-32"}
    assert not (runs[0].folder.parent / "small").exists()

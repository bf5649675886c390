"""Prompt or tune? and the blind vote on the page, from a run folder that was written by hand: no model answers."""

import re

import pytest
from evaluations import evaluation
from playwright.sync_api import expect

from sft import votes
from sft.config import TrainConfig
from sft.evaluation import keep, reporting
from sft.runs import create_run
from sft.votes import Vote

CONFIG = TrainConfig.load("examples/support-json.yaml")


@pytest.fixture
def run(app):
    made = create_run(CONFIG, app.runs, "measured")
    made.adapter.mkdir()
    made.set_status("finished", step=60, max_steps=60)
    keep(made, evaluation())
    yield made
    made.delete()


@pytest.fixture
def chat(run, page):
    """A page that finds the run when it opens."""
    page.get_by_role("tab", name="· Chat").click()
    expect(page.get_by_label("Who answers")).to_have_value("measured")
    return page


def test_how_far_a_measurement_is_then_the_verdict_and_its_rows(chat, run):
    panel = chat.locator("#verdict")
    with reporting(run) as report:
        report("prompted model", 0.4)
        chat.get_by_role("button", name="Prompt or tune?").click()
        expect(panel.locator(".measuring")).to_contain_text("Prompted model")
        expect(panel.get_by_role("button", name="Start")).to_be_disabled()
        expect(panel.get_by_role("button", name="Stop")).to_be_visible()
        report("tuned model", 0.9)
        expect(panel.locator(".measuring")).to_contain_text("Tuned model")
        keep(run, evaluation())
    expect(panel.get_by_role("button", name="Start")).to_be_enabled()  # the timer has seen that it ended
    expect(panel.locator(".measuring")).to_have_count(0)

    expect(panel.locator(".verdict-sentence")).to_contain_text("Tune: 95 % against 20 %")
    instruction = panel.get_by_label("Instruction for the prompted arm")
    expect(instruction).to_have_value(re.compile("^You file support tickets for Northwind Home."))
    expect(panel.get_by_role("row", name="Exactly as wanted")).to_contain_text("95 %")
    expect(panel.locator(".evaluated article")).to_have_count(8)
    panel.get_by_role("button", name="Next").click()
    expect(panel.locator(".evaluated h4").first).to_have_text("Row 9")
    panel.get_by_label("Arms disagree").check()
    expect(panel.locator(".evaluated h4").nth(1)).to_have_text("Row 3")
    expect(panel.locator(".evaluated")).to_contain_text("<b>base</b> errs")
    panel.get_by_label("All wrong").check()
    expect(panel).to_contain_text("No row is like that.")
    chat.get_by_label("Beside them").focus()
    chat.keyboard.press("Tab")  # leaving a dropdown as it was
    chat.get_by_role("button", name="Template matters").click()
    chat.get_by_label("None: plain continuation").check()
    expect(chat.locator("#template")).to_contain_text("No template, no markers")
    chat.wait_for_timeout(1000)  # what follows a turn has followed
    expect(panel).to_contain_text("No row is like that.")
    expect(panel.get_by_label("All wrong")).to_be_checked()


def test_the_votes_so_far_are_told_and_where_nobody_can_answer_it_says_why(chat, run):
    for at in range(3):
        votes.append(run, Vote(str(at), [], "a", "b", "base", {}, 60, "me", "tuned"))
    chat.get_by_role("button", name="Blind vote").click()
    panel = chat.locator("#blind-vote")
    expect(panel.locator(".tally")).to_contain_text("1 more deciding vote would tell")
    expect(panel.get_by_role("button", name="A is better")).to_be_hidden()
    panel.locator("#vote-question textarea").fill("Hello?")
    panel.get_by_role("button", name="Ask both").click()
    expect(panel.locator(".problem")).to_contain_text("adapter")  # the folder is empty
    expect(panel.get_by_role("button", name="A is better")).to_be_hidden()

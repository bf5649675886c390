"""What the page shows of a run: card, curve, the answers over time, and the buttons that can be pressed."""

import dataclasses
import re

import pytest

from sft.config import TrainConfig
from sft.errors import RunError
from sft.runs import create_run
from sft.ui import curves, run_card, run_view, strip

CONFIG = TrainConfig.from_dict({"dataset": "examples/support-json.jsonl", "max_steps": 40})
START = {"time": 100.0, "trainable_parameters": 1, "total_parameters": 2, "resumed_from": 0}
STOP, RESUME, CHAT = 3, 4, 5  # where the buttons are in what show_run returns


@pytest.fixture
def run(runs):
    return create_run(CONFIG, runs, "one")


def reply(text, stopped, wanted="Yes."):
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Is it?"}]
    return {"messages": messages, "wanted": wanted, "text": text, "stopped": stopped}


# ---- the card ----


def test_time_counts_from_the_last_start_of_training(run, monkeypatch):
    assert "elapsed" not in run_card.run_card(run)
    monkeypatch.setattr(run_card.time, "time", lambda: 130.0)
    training = dataclasses.replace(run.status(), state="training", step=12)
    run.append_event("start", **START | {"time": 1.0})
    run.append_event("log", step=9, loss=1, tokens=9, seconds=90.0)
    run.append_event("start", **START | {"resumed_from": 10})
    for step in (11, 12):
        run.append_event("log", step=step, loss=1, tokens=9, seconds=step - 9.0)
    card = run_card.run_card(run, training)
    assert "<dt>elapsed since Resume</dt><dd>0:30</dd>" in card
    assert "<dt>remaining</dt><dd>about 0:28</dd>" in card  # a second a step, as since the resume
    finished = dataclasses.replace(training, state="finished")
    run.append_event("end", time=142.0)
    assert "<dt>took since Resume</dt><dd>0:42</dd>" in run_card.run_card(run, finished)


def test_the_figures_tell_the_stop_token_apart(run):
    run.append_event("log", step=1, loss=2.0, stop_loss=0.75, tokens=9, seconds=1.0, memory=1_640_000_000)
    run.append_event("log", step=2, loss=1.0, stop_loss=None, tokens=18, seconds=2.0, memory=1_640_000_000)
    run.append_event("eval", step=2, loss=1.5, stop_loss=0.25, seconds=3.0)
    card = run_card.run_card(run)
    for name, value in (
        ("train loss", "1.000"), ("held-out loss", "1.500"), ("stop-token loss", "0.750"),
        ("held-out stop token", "0.250"), ("peak memory", "1.6 GB"), ("tokens/s", "9"),
    ):  # fmt: skip
        assert f"<dt>{name}</dt><dd>{value}</dd>" in card


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_a_run_that_broke_off_says_what_happened_and_where_resume_begins(run, state):
    run.set_status(state, message="The disk is <full>.")
    run.log_file.write_text("step 7\nNo space left on device")
    card = run_card.run_card(run)
    assert "The disk is &lt;full&gt;." in card
    assert "No space left on device" in card
    assert "the run begins again, for no checkpoint was written yet" in card
    (run.folder / "checkpoint-20").mkdir()
    (run.folder / "checkpoint-20" / "trainer_state.json").write_text("{}")
    assert "Press Resume: the run goes on from step 20" in run_card.run_card(run)


@pytest.mark.parametrize(
    ("ahead", "said"), [(0, "It is next"), (1, "1 training is ahead"), (2, "2 trainings are ahead")]
)
def test_the_place_in_line_is_told_in_words_without_names(runs, ahead, said):
    for number in range(ahead):
        create_run(CONFIG, runs, f"hers-{number}", owner="alice")
    card = run_card.run_card(create_run(CONFIG, runs, "mine"))
    assert said in card
    assert (">starting<" if ahead == 0 else ">in line<") in card
    assert "hers" not in card


# ---- the curve ----


def test_a_long_curve_is_thinned_and_keeps_its_ends(run):
    for step in range(1, 3001):
        run.append_event("log", step=step, loss=1 / step)
    (line,) = curves.lines_of(run.events())
    few = curves.thinned(line.points)
    assert len(few) <= curves.POINTS + 1
    assert (few[0], few[-1]) == ((1, 1.0), (3000, 1 / 3000))
    assert len(curves.curve([line], 3000)) < 20_000


def test_train_held_out_and_stop_token_are_lines_of_their_own():
    events = [
        {"kind": "log", "step": 1, "loss": 2.0, "stop_loss": 0.5},
        {"kind": "log", "step": 2, "loss": 1.0, "stop_loss": None},
        {"kind": "log", "step": 3, "loss": 0.5, "stop_loss": 0.1},
        {"kind": "eval", "step": 2, "loss": float("nan"), "stop_loss": None},
        {"kind": "eval", "step": 3, "loss": 1.5, "stop_loss": 0.4},
    ]
    lines = {line.name: line.points for line in curves.lines_of(events)}
    assert lines == {
        "train": [(1, 2.0), (2, 1.0), (3, 0.5)],
        "held-out": [(3, 1.5)],
        "stop token": [(1, 0.5), (3, 0.1)],
    }


def test_a_curve_of_one_point_is_a_dot_in_its_place():
    drawn = curves.curve([curves.Line("held-out", "held-out", [(10, 1.0)]), curves.Line("a", "train", [(0, 2.0)])], 40)
    assert '<g class="held-out"><path d="M250 500"/><path class="dots" d="M250 500h0"/></g>' in drawn


@pytest.mark.parametrize(("most", "ticks"), [(2.5, [0, 1, 2]), (0.03, [0, 0.01, 0.02, 0.03]), (60, [0, 20, 40, 60])])
def test_axes_have_round_numbers(most, ticks):
    assert curves._ticks(most) == pytest.approx(ticks)


# ---- the answers ----


def test_each_answer_has_a_mark_and_the_wanted_one_stands_beside():
    samples = [
        {"step": 0, "replies": [reply("On & on & on", False)]},
        {"step": 20, "replies": [reply("No.", True)]},
        {"step": 40, "replies": [reply(" Yes.\n", True)]},
    ]
    html = strip.strip("one", samples, 40)
    first, second, third = re.findall(r'<div data-frame="\d">(.*?)</div></div>', html, re.DOTALL)
    assert "went on" in first
    assert "On &amp; on &amp; on" in first
    assert "stopped by itself" in second
    assert "as wanted" not in first + second
    assert "as wanted" in third
    assert 'data-steps="0 20 40" data-of="40"' in html
    assert html.count("<h4>Wanted</h4>") == 1
    assert "Is it?" in html
    assert "Be short." not in html


def test_the_answers_are_sent_only_when_there_are_new_ones(run):
    run.append_event("sample", step=0, replies=[reply("a", False)])
    *_, seen = run_view.show_run("local", "one")
    run.set_status("training", step=1, max_steps=40)
    shown = run_view.refresh("local", "one", seen)
    assert "step 1 of 40" in shown[0]
    assert "value" not in shown[2]
    run.append_event("sample", step=1, replies=[reply("b", True)])
    run.set_status("training", step=2, max_steps=40)
    assert 'data-steps="0 1"' in run_view.refresh("local", "one", shown[-1])[2]


def test_a_run_without_answers_has_no_strip():
    assert strip.strip("one", [], 40) == ""
    assert strip.strip("one", [{"step": 0, "replies": []}], 40) == ""


# ---- buttons ----


def buttons(run):
    shown = run_view.show_run("local", run.name)
    return [shown[STOP]["value"] if shown[STOP]["visible"] else None, shown[RESUME]["visible"], shown[CHAT]["visible"]]


def test_buttons_are_there_in_the_states_in_which_they_do_something(run):
    assert buttons(run) == ["Withdraw", False, False]
    for state in ("preparing", "training", "saving"):
        run.set_status(state)
        assert buttons(run) == ["Stop", False, False]
    run.ask_to_stop()
    assert buttons(run) == ["Stopping …", False, False]
    for state in ("stopped", "failed", "interrupted"):
        run.set_status(state)
        assert buttons(run) == [None, True, False]
    run.adapter.mkdir()
    run.set_status("finished")
    assert buttons(run) == [None, False, True]


def test_many_pages_cost_one_painting_a_second_and_none_while_nothing_changes(run, monkeypatch):
    read, now = [], [1000.0]
    events = type(run).events
    monkeypatch.setattr(type(run), "events", lambda self, *kinds: read.append(1) or events(self, *kinds))
    monkeypatch.setattr(run_view.time, "time", lambda: now[0])
    run.set_status("training")
    *_, seen = run_view.show_run("local", "one")
    once = len(read)
    for _ in range(20):
        assert run_view.show_run("local", "one")[-1] == seen
        assert "one" in run_view.refresh("local", "one", seen)[0]  # it is active: its clock moves on
    assert len(read) == once
    now[0] += 1
    for _ in range(20):
        assert "one" in run_view.refresh("local", "one", seen)[0]
    assert len(read) == once + 1
    run.set_status("finished")
    *_, seen = run_view.refresh("local", "one", seen)
    assert "finished" in run_view.show_run("local", "one")[0]
    once = len(read)
    now[0] += 1
    assert all("value" not in part for part in run_view.refresh("local", "one", seen)[:3])
    assert len(read) == once


@pytest.mark.parametrize("act", [run_view.stop, run_view.resume])
def test_nobody_stops_or_resumes_the_run_of_another(runs, act):
    hers = create_run(CONFIG, runs, "hers", owner="alice")
    hers.set_status("stopped" if act is run_view.resume else "queued")
    before = hers.status()
    with pytest.raises(RunError, match="There is no run 'hers'") as told:
        act("bob", "hers")
    assert "hers" not in told.value.hint
    assert (hers.status(), hers.stop_asked) == (before, False)


def test_a_run_in_line_is_withdrawn_and_can_be_resumed(run):
    run_view.stop("local", "one")
    card, *_ = run_view.show_run("local", "one")
    assert "Withdrawn from the line." in card
    assert buttons(run) == [None, True, False]

"""The panel Prompt or tune?: what is told of an evaluation, in which state what can be pressed, and whose it is."""

import os
import subprocess
from dataclasses import replace

import gradio as gr
import pytest
from evaluations import RIGHT, evaluation

from sft import launch
from sft.config import TrainConfig
from sft.errors import RunError
from sft.evaluation import BESIDE, Settings, claim, keep, read_progress, reporting
from sft.runs import create_run
from sft.ui import verdict_events, verdict_rows, verdict_view
from sft.ui.verdict_events import Filled, fill, follow, look, start, stop, tick, turn

CONFIG = TrainConfig.load("examples/support-json.yaml")
STATE, RESULT, START, STOP, TIMER, ROWS, FILTER, AT, LIST, BACK, ON, SEEN = range(
    12
)  # where what is in `look`'s answer


@pytest.fixture
def run(runs):
    made = create_run(CONFIG, runs, "one")
    write_adapter(made, 1)
    made.set_status("finished", step=60)
    return made


def write_adapter(run, written: int):
    """A result, written so many nanoseconds after 1970."""
    run.adapter.mkdir(exist_ok=True)
    path = run.adapter / "adapter_model.safetensors"
    path.touch()
    os.utime(path, ns=(written, written))


@pytest.fixture
def sleeper():
    """A process that evaluates as far as the run's folder says."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def buttons(shown):
    return shown[START]["interactive"], shown[STOP]["visible"], shown[TIMER].active


# ---- states ----


def test_without_a_run_the_panel_says_which_to_choose(runs):
    create_run(CONFIG, runs, "trains")  # which has no result yet
    for name in (None, "trains", "base alone: embedded", "../one"):
        shown = look("local", name)
        assert verdict_events.NO_RUN in shown[STATE]
        assert buttons(shown) == (False, False, False)


def test_a_run_that_was_not_measured_yet_can_be(run):
    shown = look("local", "one")
    assert verdict_events.NOTHING_YET in shown[STATE]
    assert buttons(shown) == (True, False, False)
    assert not shown[ROWS]["visible"]


def test_while_it_is_measured_it_says_how_far_it_is_and_can_be_stopped(run, monkeypatch):
    with reporting(run) as report:
        report("prompted model", 0.25)
        began = read_progress(run)["started"]
        monkeypatch.setattr(verdict_view.time, "time", lambda: began + 60)
        shown = look("local", "one")
        assert buttons(shown) == (False, True, True)
        assert "Prompted model" in shown[STATE]
        assert 'aria-valuenow="25"' in shown[STATE]
        assert "1:00 so far, about 3:00 left" in shown[STATE]
        report("tuned model", 0.5)
        again = tick("local", "one", shown[SEEN])
        assert "about 1:00 left" in again[STATE]
        assert again[1:] == (gr.skip(),) * 12
        keep(run, evaluation())
    shown = tick("local", "one", shown[SEEN])
    assert verdict_events.STOPPED not in shown[STATE]
    assert buttons(shown) == (True, False, False)
    assert "Tune: 95 %" in shown[RESULT]
    assert tick("local", "one", shown[SEEN]) == (gr.skip(),) * 13  # one that comes late undoes no browsing


def test_a_page_that_turns_to_the_same_run_leaves_the_panel_as_it_is(run):
    keep(run, evaluation())
    shown = follow("local", "one", None)
    assert "Tune: 95 %" in shown[RESULT]
    nothing_new = (gr.skip(),) * len(shown)
    assert follow("local", "one", shown[-1]) == nothing_new
    with reporting(run) as report:
        report("prompted model", 0.25)
        shown = follow("local", "one", shown[-1])
        assert buttons(shown) == (False, True, True)
        keep(run, evaluation(rows=19))
    shown = tick("local", "one", shown[SEEN])
    assert buttons(shown) == (True, False, False)
    assert follow("local", "one", shown[-1]) == nothing_new
    for other in (None, "base alone: embedded"):
        assert verdict_events.NO_RUN in follow("local", other, shown[-1])[STATE]


def test_stop_ends_the_process_and_keeps_the_earlier_result(run, sleeper):
    keep(run, evaluation())
    claim(run, sleeper.pid)
    before = look("local", "one")
    assert buttons(before) == (False, True, True)
    shown = stop("local", "one")
    sleeper.wait(10)
    assert tick("local", "one", before[SEEN])[:TIMER] == shown[:TIMER]  # which may reach the page after it
    assert verdict_events.STOPPED in shown[STATE]
    assert "Tune: 95 %" in shown[RESULT]
    assert buttons(shown) == (True, False, False)


def test_a_measurement_that_failed_or_was_killed_says_why(run, sleeper):
    with pytest.raises(RunError), reporting(run):
        raise RunError("It is <broken>.", "Mend it.")
    shown = tick("local", "one", 0.0)
    assert "It is &lt;broken&gt;." in shown[STATE]
    assert "→ Mend it." in shown[STATE]
    assert buttons(shown) == (True, False, False)
    claim(run, sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    (run.folder / "evaluate.log").write_text("loading\nValueError: <odd>")
    shown = tick("local", "one", 0.0)
    assert "was killed, or ran out of memory" in shown[STATE]
    assert "ValueError: &lt;odd&gt;" in shown[STATE]


def test_a_training_on_the_same_cores_is_told_but_not_whose(run, runs):
    other = create_run(CONFIG, runs, "alices", owner="alice")
    other.set_status("training", step=1)  # by this process, which lives
    assert BESIDE in look("local", "one")[STATE]
    with reporting(run):
        assert BESIDE in look("local", "one")[STATE]
        assert "alices" not in str(look("local", "one"))
    other.set_status("finished")
    assert BESIDE not in look("local", "one")[STATE]


def test_a_result_from_before_the_run_was_trained_further_says_so(run):
    told = evaluation()
    told["settings"]["written"] = 1
    keep(run, told)
    assert verdict_events.OLD not in look("local", "one")[STATE]
    write_adapter(run, 2)
    assert verdict_events.OLD in look("local", "one")[STATE]


# ---- the form ----


def test_the_form_begins_with_what_the_data_set_provides_once_it_is_open(run):
    assert fill("local", "one", False, Filled(), "") == (gr.skip(),) * 5
    filled, system, limit, *_ = fill("local", "one", True, Filled(), "")
    assert system.startswith("You file support tickets for Northwind Home.\n")
    assert '"category" is one of "fault"' in system
    assert (filled.run, filled.system) == ("one", system)
    assert (limit["value"], limit["label"]) == (40, "Rows (of 48 held out)")
    assert fill("local", "one", True, filled, "") == (gr.skip(),) * 5  # what was written since stays


def test_what_was_written_for_a_run_comes_back_with_it(run, runs):
    create_run(CONFIG, runs, "two").adapter.mkdir()
    filled, provided, *_ = fill("local", "one", True, Filled(), "")
    filled, system, *_ = fill("local", "two", True, filled, "My own.")
    assert system == provided
    assert fill("local", "one", True, filled, system)[1] == "My own."


def test_a_run_that_held_nothing_back_cannot_be_measured(runs, write_rows):
    rows = write_rows([{"question": "a", "answer": "b"}] * 4)
    run = create_run(TrainConfig.from_dict({"dataset": str(rows), "max_steps": 4}), runs, "all")
    run.adapter.mkdir()
    *_, state, button = fill("local", "all", True, Filled(), "")
    assert verdict_events.NO_ROWS in state
    assert not button["interactive"]
    rows.unlink()
    assert "Its rows cannot be read" in fill("local", "all", True, Filled(), "")[3]


@pytest.mark.parametrize(
    ("written", "limit", "settings"),
    [
        ("as provided", 12, Settings(limit=12, seed=3)),
        (" \n", None, Settings(seed=3)),
        (" My own. ", 12, Settings(limit=12, system="My own.", seed=3)),
    ],
)
def test_start_measures_what_the_form_says(run, monkeypatch, written, limit, settings):
    asked = []
    monkeypatch.setattr(launch, "evaluate", lambda *given: asked.append(given))
    start("local", "one", Filled("one", "as provided"), written, 3, limit, 3)
    start("local", "one", Filled("another", "of that one"), written, 3, limit, 3)
    assert asked == [(run, settings), (run, replace(settings, system=None))]


@pytest.mark.parametrize("act", [stop, lambda *who: start(*who, Filled(), "", 3, 4, 0)])
def test_nobody_measures_stops_or_reads_the_run_of_another(run, act, sleeper):
    keep(run, evaluation())
    claim(run, sleeper.pid)
    with pytest.raises(RunError, match="There is no run 'one'"):
        act("bob", "one")
    assert sleeper.poll() is None
    assert look("bob", "one")[RESULT] == ""
    assert turn(None, "bob", "one", "all", 0)[1] == ""
    assert fill("bob", "one", True, Filled(), "") == (gr.skip(),) * 5


# ---- the result ----


def test_the_result_has_the_sentence_the_arms_and_their_intervals():
    html = verdict_view.result(evaluation())
    assert '<p class="verdict-sentence">Tune: 95 % against 20 %' in html
    assert html.count('class="interval"') == 3 * len(verdict_view.RATES)
    assert 'class=decisive><th scope="row">Exactly as wanted' in html
    assert "95 % intervals" in html
    assert "20 held-out rows" in html
    assert "The prompt of &lt;i&gt;prompted&lt;/i&gt;" in html
    assert "one &lt;of&gt; the labels" in html


def test_a_measure_that_nobody_has_and_an_arm_that_is_missing_leave_the_rest():
    told = evaluation()
    for arm in told["arms"].values():
        arm["valid_format"] = arm["loss"] = None
    told["arms"]["tuned"]["loss"] = 0.5
    del told["arms"]["prompted"]
    html = verdict_view.result(told)
    assert "Valid format</th>" not in html
    assert "<td>–</td>" in html
    assert "prompted" not in html


@pytest.mark.parametrize(
    ("prompted", "tuned", "words"),
    [
        (482, 70, "reads 70, 412 fewer, 412,000 in a thousand requests"),
        (70, 70, "reads 70, as many, and"),
        (70, 82, "reads 82, 12 more"),
    ],
)
def test_the_running_cost_is_said_in_words(prompted, tuned, words):
    arms = [{"prompt_tokens": tokens, "reply_tokens": 5, "seconds": 61.0} for tokens in (prompted, tuned)]
    assert words in verdict_view.cost(*arms)
    assert "took 1:01 with the prompt" in verdict_view.cost(*arms)


# ---- the rows ----


@pytest.mark.parametrize(
    ("kind", "found"),
    [("all", range(20)), ("disagree", [0, *range(2, 20)]), ("tuned", range(4, 20)), ("prompted", []), ("wrong", [])],
)
def test_a_filter_leaves_the_rows_that_it_names(kind, found):
    assert verdict_rows.matching(evaluation(), kind) == list(found)


def test_a_filter_finds_what_prompted_alone_gets_right_and_what_nobody_does():
    told = evaluation(right={**RIGHT, "prompted": (0, 4), "tuned": (1,)})
    assert verdict_rows.matching(told, "prompted") == [4]
    assert verdict_rows.matching(told, "wrong") == [2, 3, *range(5, 20)]


def test_right_is_what_the_verdict_rests_on():
    told = evaluation()
    told["arms"]["base"]["valid"] = [True] * 20
    assert verdict_rows.matching(told, "tuned")
    told["verdict"]["measure"] = "valid_format"
    assert not verdict_rows.matching(told, "tuned")
    assert "right means in the right format" in verdict_rows.rows(told, "all", 0)[0]


def test_open_answers_are_neither_right_nor_wrong_and_disagree_in_their_words():
    told = evaluation()
    told["verdict"]["measure"] = "loss"
    for arm in told["arms"].values():
        arm["replies"][:2] = ["the same"] * 2
    html, *_ = verdict_rows.rows(told, "all", 0)
    assert "✓ right" not in html and "✗ wrong" not in html
    assert verdict_rows.matching(told, "disagree") == list(range(2, 20))


def test_rows_are_painted_a_page_at_a_time_with_all_replies_beside_the_wanted_one():
    told = evaluation()
    told["rows"] *= 20
    for arm in told["arms"].values():
        arm["replies"], arm["exact"] = arm["replies"] * 20, arm["exact"] * 20
    html, page, pages = verdict_rows.rows(told, "all", 1)
    assert (page, pages) == (1, 50)
    assert html.count("<article>") == verdict_rows.PAGE
    assert html.count("<h5>") == 4 * verdict_rows.PAGE
    assert "<h4>Row 9</h4>" in html
    assert "400 of 400 rows" in html
    assert "&lt;b&gt;question&lt;/b&gt; 8" in html
    assert "<b>base</b> errs" not in html
    assert len(html) < 20_000
    assert verdict_rows.rows(told, "all", 99)[1] == 49
    assert "No row is like that" in verdict_rows.rows(told, "prompted", 3)[0]


def test_pages_are_turned_as_far_as_there_are_some(run):
    keep(run, evaluation())
    at, html, back, on = turn(None, "local", "one", "all", 2)
    assert (at, back["interactive"], on["interactive"]) == (0, False, True)
    at, html, back, on = turn(1, "local", "one", "all", 1)
    assert (at, back["interactive"], on["interactive"]) == (2, True, False)
    assert html.count("<article>") == 4
    assert turn(1, "local", "one", "disagree", 0)[0] == 1


def test_long_texts_are_cut(run):
    told = evaluation()
    told["rows"][0]["wanted"] = "long " * 10_000
    assert len(verdict_rows.rows(told, "all", 0)[0]) < 20_000

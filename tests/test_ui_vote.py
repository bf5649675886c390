"""The blind vote: nothing on the page tells whose reply is whose before the vote, and a vote counts once."""

import json
import os
import re
import urllib.request
from dataclasses import replace

import gradio as gr
import pytest
from tiny_models import save_tiny_run

from sft import votes
from sft.config import TrainConfig
from sft.errors import DataError, RunError
from sft.run import Run
from sft.runs import create_run
from sft.ui import ballot, vote
from sft.ui.floor import Floor
from sft.ui.talk import Talk
from sft.votes import Tally, Vote

NASTY = '<img src=x onerror="alert(1)">'
CONFIG = TrainConfig.from_dict({"dataset": "examples/support-json.jsonl", "max_steps": 4})
GREEDY = (0, 1, 12, 0)
VOTE = Vote(
    ballot="0", messages=[{"role": "user", "content": "Hello?"}], base="on and on", tuned="Paris.", first="tuned",
    sampling={"seed": 0}, step=4, voter="v",
)  # fmt: skip


@pytest.fixture
def run(runs):
    made = create_run(CONFIG, runs, "one")
    made.set_status("finished", step=4, max_steps=4)
    return made


@pytest.fixture(scope="module")
def tiny_runs(tiny_model, tmp_path_factory):
    """A folder with the run `tiny`, whose replies differ from its base model's."""
    folder = tmp_path_factory.mktemp("runs")
    save_tiny_run(folder, "tiny", tiny_model, seed=1)
    return folder


# ---- asking ----


class Visitor:
    """Clicks in the panel as a browser does, by HTTP, and keeps every byte that comes back."""

    def __init__(self, demo, url: str):
        self.demo, self.url, self.sent = demo, url, ""

    def click(self, elem_id: str, *data) -> list:
        """What the page shows in the end."""
        button = next(each for each in self.demo.blocks.values() if getattr(each, "elem_id", "") == elem_id)
        index = next(at for at, fn in self.demo.fns.items() if (button._id, "click") in fn.targets)
        body = json.dumps({"data": data, "fn_index": index, "session_hash": "me"}).encode()
        headers = {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(f"{self.url}gradio_api/queue/join", body, headers)).close()
        with urllib.request.urlopen(f"{self.url}gradio_api/queue/data?session_hash=me") as stream:
            text = stream.read().decode()
        self.sent += text
        messages = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
        return next(message for message in messages if message["msg"] == "process_completed")["output"]["data"]


@pytest.fixture(scope="module")
def page(tiny_runs):
    """The panel alone, served."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_RUNS_DIR", str(tiny_runs))
        with gr.Blocks() as demo:
            owner_st, run_dd, system_tb = gr.State("local"), gr.Dropdown(["tiny"], value="tiny"), gr.Textbox()
            vote.build(
                owner_st, run_dd, gr.State(Talk(controls=("tiny",))), system_tb, [gr.Number(value) for value in GREEDY]
            )
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
        yield demo, url
        demo.close()


@pytest.mark.parametrize("first", ["base", "tuned"])
def test_whose_reply_is_whose_does_not_leave_the_server_before_the_vote(page, tiny_runs, monkeypatch, first):
    monkeypatch.setattr(vote.secrets, "choice", lambda sides: first)
    visitor = Visitor(*page)
    told = visitor.click("vote-ask", None, None, None, "tiny", "", f"What is the capital of France? {first}", *GREEDY)
    before = visitor.sent
    visitor.click("vote-a", None, {"vote": "what a stranger sends as state is passed over"})
    (cast,) = [each for each in votes.read(Run(tiny_runs / "tiny"))[0] if each.first == first]
    assert cast.choice == first
    assert cast.base != cast.tuned
    shown = (cast.base, cast.tuned) if first == "base" else (cast.tuned, cast.base)
    assert told[:2] == [None, ballot.replies(*shown)]
    assert 'class=\\"pair ballot' in before
    assert not re.search("tuned|base|first", before)
    assert "the tuned model" in visitor.sent[len(before) :]
    with urllib.request.urlopen(f"{page[1]}config") as config:
        assert cast.ballot not in config.read().decode()


def test_no_reply_is_shown_before_both_have_ended(tiny_runs, monkeypatch):
    monkeypatch.setenv("SFT_RUNS_DIR", str(tiny_runs))
    *while_they_write, last = vote.ask("local", "tiny", "", "Hello?", *GREEDY)
    assert len(while_they_write) > 2
    assert all(now is None and html.startswith('<div role="status">') for now, html, *_ in while_they_write)
    now, html, stop, buttons, *_ = last
    assert html == ballot.replies(*vote._in_order(now.vote))
    assert (stop["visible"], buttons["visible"]) == (False, True)


def test_both_answer_the_same_prompt_with_the_settings_of_the_tab(tiny_runs, monkeypatch):
    monkeypatch.setenv("SFT_RUNS_DIR", str(tiny_runs))
    *_, (now, *_) = vote.ask("local", "tiny", "Be short.", "Hello?", 1, 0.9, 8.0, 7)
    assert now.vote.messages == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello?"}]
    assert now.vote.sampling == {"temperature": 1, "top_p": 0.9, "max_new_tokens": 8, "seed": 7}
    assert [type(value) for value in now.vote.sampling.values()] == [float, float, int, int]
    assert now.vote.step == 8
    assert now.vote.voter == votes.voter_of("local")


@pytest.mark.parametrize(("owner", "name", "words"), [
    ("local", "none", "There is no run"), ("bob", "tiny", "There is no run"), ("local", None, "nobody to be compared"),
    ("local", "base alone: embedded", "nobody to be compared"),
])  # fmt: skip
def test_why_nobody_answers_is_said(tiny_runs, monkeypatch, owner, name, words):
    monkeypatch.setenv("SFT_RUNS_DIR", str(tiny_runs))
    *_, (now, html, stop, buttons, *_) = vote.ask(owner, name, "", "Hello?", *GREEDY)
    assert now is None
    assert words in html
    assert not stop["visible"]
    assert not buttons["visible"]


def test_a_question_that_is_too_long_is_told_and_leaves_nothing_to_vote_on(tiny_runs, monkeypatch):
    monkeypatch.setenv("SFT_RUNS_DIR", str(tiny_runs))
    *_, (now, html, stop, buttons, *_) = vote.ask("local", "tiny", "", "fox " * 600, *GREEDY)
    assert (now, stop["visible"], buttons["visible"]) == (None, False, False)
    assert "No replies" in html


def test_nobody_is_asked_while_the_page_turns_or_they_still_answer(tiny_runs, monkeypatch):
    monkeypatch.setenv("SFT_RUNS_DIR", str(tiny_runs))
    told, floor, about = [], Floor(), ("local", "tiny", "", "Hello?", *GREEDY)
    monkeypatch.setattr(gr, "Info", told.append)
    ((*_, again),) = asked = list(vote.ask_once(floor, Talk(controls=("another",)), *about))
    assert again and "still turning" in asked[0][1]
    first = vote.ask_once(floor, Talk(controls=("tiny",)), *about)
    next(first)
    assert list(vote.ask_once(floor, Talk(controls=("tiny",)), *about)) == [(*[gr.skip()] * 6, False)]
    assert "still answering" in told.pop()
    assert list(first)[-1][0].run == "tiny"


def test_a_training_on_the_same_machine_is_told(run, monkeypatch):
    assert ballot.TRAINING not in ballot.waiting(0, training=False)
    assert ballot.TRAINING in ballot.waiting(0, training=True)
    run.set_status("training", step=1, pid=os.getpid())
    assert ballot.TRAINING in next(vote.ask("local", "one", "", "Hello?", *GREEDY))[1]


def test_an_empty_question_is_not_asked(run):
    assert list(vote.ask("local", "one", "", "  ", *GREEDY)) == [(gr.skip(),) * 6]


# ---- voting ----


@pytest.mark.parametrize(("first", "side", "choice"), [
    ("base", "A", "base"), ("base", "B", "tuned"), ("tuned", "A", "tuned"), ("tuned", "B", "base"),
    ("base", "tie", "tie"), ("tuned", "bad", "bad"),
])  # fmt: skip
def test_a_vote_is_for_whoever_was_shown_on_that_side(run, first, side, choice):
    now, html, buttons, tally = vote.cast(side, "local", vote.Ballot("one", replace(VOTE, first=first)))
    (written,), _ = votes.read(run)
    assert (written.choice, written.first) == (choice, first)
    assert written.time > 0
    assert now is None
    assert not buttons["visible"]
    order = ["the base model", "the tuned model"][:: 1 if first == "base" else -1]
    assert re.findall(r"<h4>(.): (.*?)</h4>", html) == [("A", order[0]), ("B", order[1])]
    assert ("deciding vote for the tuned" in tally) == (choice in ("base", "tuned"))


def test_a_second_click_a_reload_and_a_retry_write_nothing(run):
    now = vote.Ballot("one", VOTE)
    vote.cast("A", "local", now)
    assert vote.cast("B", "local", now) == (gr.skip(),) * 4
    assert vote.cast("A", "local", None) == (gr.skip(),) * 4
    assert [each.choice for each in votes.read(run)[0]] == ["tuned"]


def test_nobody_votes_on_or_reads_the_votes_of_anothers_run(run, runs):
    votes.append(run, replace(VOTE, choice="tuned"))
    with pytest.raises(RunError, match="There is no run 'one'"):
        vote.cast("A", "bob", vote.Ballot("one", replace(VOTE, ballot="1")))
    assert vote.NOBODY in vote.counted("bob", "one")
    assert len(votes.read(run)[0]) == 1


def test_votes_from_before_a_resumed_training_are_told_and_not_counted(run):
    votes.append(run, replace(VOTE, choice="tuned", step=2))
    votes.append(run, replace(VOTE, ballot="1", choice="base"))
    (run.folder / "votes.jsonl").open("a").write('{"torn')
    html = vote.counted("local", "one")
    assert "0 %</b> of 1 deciding vote" in html
    assert "1 vote from before" in html
    assert "1 line of votes.jsonl could not be read" in html


def test_the_question_with_the_fewest_votes_is_next(runs, write_rows):
    rows = [{"question": f"q{at}", "answer": "a"} for at in range(30)]
    config = replace(CONFIG, dataset=str(write_rows(rows)), eval_share=0.1)
    run = create_run(config, runs, "small")
    asked = []
    for at in range(3):
        asked.append(vote.next_question("local", "small", "")[0])
        messages = [{"role": "user", "content": asked[-1]}]
        votes.append(run, replace(VOTE, ballot=str(at), messages=messages, choice="tie"))
    assert len(set(asked)) == 3
    assert vote.next_question("local", "small", "")[0] in asked


def test_a_run_that_held_nothing_back_has_no_question(run):
    with pytest.raises(DataError, match="no held-out rows"):
        vote.next_question("local", "one", "")


# ---- what is painted ----


def test_what_models_wrote_is_never_markup():
    nasty = replace(VOTE, base=NASTY, tuned=NASTY, choice="tie")
    assert "<img" not in ballot.replies(NASTY, NASTY) + ballot.revealed(nasty)


def test_of_two_equal_replies_none_can_be_better(run):
    same = vote.Ballot("one", replace(VOTE, base="Paris."))
    assert "the same, word for word" in ballot.replies("Paris.", "Paris.")
    *_, a, b = vote._open(same, "")
    assert (a["interactive"], b["interactive"]) == (False, False)


@pytest.mark.parametrize(
    ("tally", "words"),
    [
        (Tally(), "It takes 4 to tell"),
        (Tally(tie=2, bad=1), "Besides, 2 ties, and 1 both bad."),
        (Tally(base=3, tuned=3), "no number of votes tells them apart"),
        (Tally(tuned=3), "1 more deciding vote would tell"),
        (Tally(base=1, tuned=9), "Enough to tell: people prefer the tuned model"),
        (Tally(base=9, tuned=1), "Enough to tell: people prefer the base model"),
        (Tally(base=5, tuned=15), "<b>75 %</b> of 20 deciding votes for the tuned model; 95 % interval: 53 to 89 %."),
    ],
)
def test_the_tally_says_what_the_votes_say(tally, words):
    assert words in ballot.tally(tally, 0, 0)

"""The panel Blind vote: both models answer, a person says which reply is better, and only then learns whose it is.

Which side is whose stays on the server until the vote is written; the replies are sent when both have ended, for the
speed of a stream would tell them apart.
"""

import random
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import NamedTuple

import gradio as gr

from sft import votes
from sft.errors import RunError, UserError
from sft.run import Run
from sft.runs import runs_dir, training_in
from sft.ui import ballot, paint
from sft.ui.asking import TURNING
from sft.ui.floor import Floor, quiet
from sft.ui.inputs import user_errors
from sft.ui.talk import Talk, Who, contest_of
from sft.ui.visitors import run_of
from sft.ui.who import BASE_ALONE, held_out_questions, stages, told_with

ABOUT = (
    "Which reply is better, when you don't know whose it is? Settle beforehand how many votes you will cast: who stops "
    "as soon as it looks clear is wrong more often than the interval says."
)
ASK = "Ask something, or take a row that the run was never trained on."
NOBODY = "Choose a run under Who answers. A base model alone has nobody to be compared with."
# The buttons that were pressed vanish with the vote, and the focus with them.
_FOCUS = "() => document.querySelector('#vote-row').focus({preventScroll: true})"
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
BUTTONS = {"A": "A is better", "B": "B is better", "tie": "Tie", "bad": "Both bad"}


class Ballot(NamedTuple):
    """What is being voted on: the run, and the vote but for its choice."""

    run: str
    vote: votes.Vote


def build(
    owner_st: gr.State, run_dd: gr.Dropdown, talk_st: gr.State, system_tb: gr.Textbox, sampling: list
) -> list[dict]:
    """Builds and wires the panel. `run_dd` says who answers; system message and sampling are those of the tab.

    Returns what follows when the page has turned to that run.
    """
    ballot_st, floor_st = gr.State(None), gr.State(Floor())
    with gr.Accordion("Blind vote", open=False, elem_id="blind-vote") as panel:
        gr.Markdown(ABOUT)
        tally_html = gr.HTML()
        with gr.Row(equal_height=True):
            question_tb = gr.Textbox(
                label="Question", show_label=False, placeholder="Write to both and press Enter", scale=8, lines=1,
                max_lines=8, elem_id="vote-question", container=False,
            )  # fmt: skip
            ask_btn = gr.Button("Ask both", min_width=110, scale=1, elem_id="vote-ask")
        with gr.Row():
            row_btn = gr.Button("Ask a held-out row", size="sm", min_width=150, elem_id="vote-row")
            stop_btn = gr.Button("Stop", visible=False, size="sm", min_width=80, elem_id="vote-stop")
        again_cb = gr.Checkbox(visible=False)  # whether to ask again a moment later
        replies_html = gr.HTML(paint.empty(ASK), elem_id="vote-replies")
        with gr.Row(visible=False, elem_id="vote-buttons") as buttons_row:
            buttons = [gr.Button(name, min_width=110, elem_id=f"vote-{side.lower()}") for side, name in BUTTONS.items()]
    shown = [ballot_st, replies_html, stop_btn, buttons_row, *buttons[:2]]

    about = [floor_st, talk_st, owner_st, run_dd]
    asking = {"fn": ask_once, "inputs": [*about, system_tb, question_tb, *sampling], "outputs": [*shown, again_cb]}
    asking |= {"concurrency_limit": 32, "trigger_mode": "multiple", **_QUIET}
    row = row_btn.click(
        user_errors(next_question), [owner_st, run_dd, system_tb], [question_tb, system_tb], trigger_mode="once",
        **_QUIET,
    )  # fmt: skip
    for asked in (gr.on([ask_btn.click, question_tb.submit], **asking), row.success(**asking)):
        asked.then(None, again_cb, None, js="(again) => again && sendSoon('#vote-ask')", **_QUIET)
    silence, none = quiet(floor_st), {"fn": none_asked, "inputs": None, "outputs": shown, **_QUIET}
    stop_btn.click(**silence).then(**none)
    for side, button in zip(BUTTONS, buttons, strict=True):
        button.click(
            user_errors(partial(cast, side)), [owner_st, ballot_st], [ballot_st, replies_html, buttons_row, tally_html],
            trigger_mode="once", **_QUIET,
        ).success(None, None, None, js=_FOCUS, **_QUIET)  # fmt: skip
    counting = {"fn": counted, "inputs": [owner_st, run_dd], "outputs": tally_html, **_QUIET}
    panel.expand(**counting)
    run_dd.change(**silence).then(**none)
    return [{**counting, "trigger_mode": "always_last", "concurrency_limit": 8}]


def ask_once(floor: Floor, talk: Talk, owner, name, *values) -> Iterator[tuple]:
    """`ask`, where the page has turned to that run, so that its system message is in the box, and nobody answers.

    Ends in whether to ask again a moment later.
    """
    if not talk.controls or talk.controls[0] != name:
        yield *_open(None, paint.loading(TURNING)), True
    elif (steps := floor.speak(ask(owner, name, *values))) is None:
        gr.Info("They are still answering. Wait for their replies, or press Stop.")
        yield *[gr.skip()] * 6, False
    else:
        yield from ((*shown, False) for shown in steps)


def ask(owner, name, system, question, *sampling) -> Iterator[tuple]:
    """Both answer. Until both have ended the page learns no more than how far they are."""
    if not (question or "").strip():
        yield (gr.skip(),) * 6
        return
    head = [{"role": "system", "content": system}] if (system or "").strip() else []
    messages, training = [*head, {"role": "user", "content": question}], training_in(runs_dir())
    yield _open(None, ballot.waiting(0, training), asking=True)
    try:
        for now in _answers(owner, name, messages, *sampling):
            if isinstance(now, Ballot):
                yield _open(now, ballot.replies(*_in_order(now.vote)))
            else:
                yield _open(None, ballot.waiting(now, training), asking=True)
    except UserError as error:
        yield _open(None, paint.problem("No replies", error.message, error.hint))
    except Exception:
        yield none_asked()  # or the page would wait for ever
        raise


def _answers(owner, name, messages, temperature, top_p, max_new_tokens, seed) -> Iterator[float | Ballot]:
    """How far the longer reply is at most, again and again; at the end the ballot."""
    run = _voted_on(owner, name)
    contest = contest_of(owner, Who(run=name))
    from sft import chat  # takes seconds the first time, and who cannot answer is told sooner

    sampling = chat.Sampling(float(temperature), float(top_p), int(max_new_tokens), int(seed or 0))
    prompts = [contest.chat_format.prompt_ids(messages)] * 2
    for replies in chat.stream(contest, prompts, sampling):
        yield max(len(reply.token_ids) for reply in replies) / sampling.max_new_tokens
    base, tuned = (reply.text for reply in replies)
    vote = votes.Vote(
        ballot=secrets.token_hex(8), messages=messages, base=base, tuned=tuned,
        first=secrets.choice(["base", "tuned"]), sampling=asdict(sampling), step=stages(run)[-1],
        voter=votes.voter_of(owner),
    )  # fmt: skip
    yield Ballot(run.name, vote)


def _voted_on(owner, name) -> Run:
    if not name or str(name).startswith(BASE_ALONE):
        raise RunError("There is nobody to be compared with the base model.", "Choose a run under Who answers.")
    return run_of(owner, name)


def _in_order(vote: votes.Vote) -> tuple[str, str]:
    return (vote.base, vote.tuned) if vote.first == "base" else (vote.tuned, vote.base)


def _open(now: Ballot | None, html: str, asking: bool = False) -> tuple:
    """What the panel shows. Which of two equal replies is better cannot be said."""
    differ = now is not None and now.vote.base != now.vote.tuned
    voting = gr.update(visible=now is not None)
    return now, html, gr.update(visible=asking), voting, *[gr.update(interactive=differ)] * 2


def none_asked() -> tuple:
    return _open(None, paint.empty(ASK))


def cast(side: str, owner, now: Ballot | None) -> tuple:
    """Writes the vote, once, and tells the names."""
    if now is None:
        return (gr.skip(),) * 4
    run = run_of(owner, now.run)
    sides = {"A": now.vote.first, "B": "tuned" if now.vote.first == "base" else "base"}
    vote = replace(now.vote, choice=sides.get(side, side), time=time.time())
    if not votes.append(run, vote):
        return (gr.skip(),) * 4
    return None, ballot.revealed(vote), gr.update(visible=False), _tally(run)


def counted(owner, name) -> str:
    """What the votes of the visitor's run say."""
    try:
        return _tally(run_of(owner, name))
    except UserError:
        return paint.empty(NOBODY)


def _tally(run: Run) -> str:
    """Votes about what the run was before it was trained on say nothing about what it is now."""
    found, unreadable = votes.read(run)
    step = stages(run)[-1]
    now = [vote for vote in found if vote.step == step]
    return ballot.tally(votes.tally(now), unreadable, len(found) - len(now))


def next_question(owner, name, system) -> tuple:
    """A held-out question with as few votes as any, for a second vote on the same says little new; and the system
    message of its row."""
    run = _voted_on(owner, name)
    questions = held_out_questions(run)
    had = Counter(vote.messages[-1]["content"] for vote in votes.read(run)[0])
    fewest = min(had[question] for question in questions)
    question = random.choice([question for question in questions if had[question] == fewest])
    return question, told_with(questions, question, system)

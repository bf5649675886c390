"""The panel that colours each token of a reply by how much more, or less, likely tuning has made it."""

from collections.abc import Iterator

import gradio as gr

from sft.errors import UserError
from sft.ui import paint, shifts_view
from sft.ui.proof_view import names, tuned_panes
from sft.ui.talk import Talk, contest_of

EMPTY = "Ask something first: the colours are those of the replies."
ALONE = "It takes two models: choose a run under Who answers."
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def build(owner_st: gr.State, talk_st: gr.State) -> dict:
    """Builds and wires the panel. Returns what is to be emptied when the talk changes, and what then shows it anew,
    which does so where the panel is open."""
    open_st, latest_st = gr.State(False), gr.State([])
    with gr.Accordion("What changed, token by token", open=False, elem_id="shifts") as panel:
        with gr.Row():
            reply_rd = gr.Radio(
                [("Tuned model", 1)], value=1, label="Whose reply", visible=False, elem_id="whose-reply"
            )
            turn_dd = gr.Dropdown([], label="To which question", visible=False, elem_id="which-turn")
        shifts_html = gr.HTML()
    refresh = {
        "fn": coloured, "inputs": [open_st, owner_st, talk_st, reply_rd, latest_st],
        "outputs": [reply_rd, turn_dd, shifts_html], "concurrency_limit": 4, "trigger_mode": "multiple", **_QUIET,
    }  # fmt: skip
    panel.expand(lambda: True, None, open_st, **_QUIET).then(**refresh)
    panel.collapse(lambda: False, None, open_st, **_QUIET)
    of_turn = {**refresh, "inputs": [*refresh["inputs"], turn_dd]}
    for choice in (reply_rd, turn_dd):
        choice.input(**of_turn)
    return {"clear": [shifts_html], "refresh": refresh}


def coloured(is_open: bool, owner: str, talk: Talk, at, latest: list, turn: int | None = None) -> Iterator[tuple]:
    """The reply of pane `at` to the question number `turn`, the last where none is given, as base and tuned model find
    it. `latest` is as in `proof.proven`."""
    latest[:] = mark = [object()]
    known = [number for number, said in enumerate(talk.panes[0].turns) if said] if talk.panes else []
    if not is_open or not known:
        yield gr.skip(), gr.skip(), paint.empty(EMPTY) if is_open else ""
        return
    tuned = tuned_panes(talk.who)
    if not tuned:
        yield gr.update(visible=False), gr.update(visible=False), paint.empty(ALONE)
        return
    at = at if at in range(len(talk.panes)) else tuned[0]
    turn = turn if turn in known else known[-1]
    panes = [(name, place) for place, name in enumerate(names(talk.who))]
    questions = [(f"{number + 1}. {talk.questions[number][:60]}", number) for number in known]
    yield (
        gr.update(choices=panes, value=at, visible=True),
        gr.update(choices=questions, value=turn, visible=len(known) > 1),
        paint.loading("Both models read this reply …"),
    )
    try:
        html = _painted(owner, talk, at, turn, at if at in tuned else tuned[0])
        yield gr.skip(), gr.skip(), html if latest == mark else gr.skip()
    except UserError as error:
        yield gr.skip(), gr.skip(), paint.problem("Not to be measured", error.message, error.hint)


def _painted(owner: str, talk: Talk, at: int, turn: int, tuned: int) -> str:
    contest = contest_of(owner, talk.who)
    from sft import compare  # torch takes seconds to import, and who cannot be read is told sooner

    replies = [pane.turns[turn][1] for pane in talk.panes]
    found = compare.shifts(compare.pair(contest, tuned), talk.panes[at].turns[turn][0], replies[at])
    other = tuned if at == 0 else 0
    parts = compare.parting(replies[at], replies[other])
    return shifts_view.painted(found, names(talk.who)[tuned], parts, names(talk.who)[other])

"""The panel that colours each token of a reply by how much more, or less, likely tuning has made it."""

from collections.abc import Iterator

import gradio as gr

from sft.errors import UserError
from sft.ui import paint, shifts_view
from sft.ui.proof_view import names, tuned_panes
from sft.ui.talk import Talk, contest_of

EMPTY = "Ask something first: the colours are those of the last replies."
ALONE = "It takes two models: choose a run under Who answers."
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def build(owner_st: gr.State, talk_st: gr.State) -> dict:
    """Builds and wires the panel. Returns what is to be emptied when the talk changes, and what then shows it anew,
    which does so where the panel is open."""
    open_st, latest_st = gr.State(False), gr.State([])
    with gr.Accordion("What changed, token by token", open=False, elem_id="shifts") as panel:
        reply_rd = gr.Radio([("Tuned model", 1)], value=1, label="Whose reply", visible=False, elem_id="whose-reply")
        shifts_html = gr.HTML()
    refresh = {
        "fn": coloured, "inputs": [open_st, owner_st, talk_st, reply_rd, latest_st],
        "outputs": [reply_rd, shifts_html], "concurrency_limit": 4,
        "trigger_mode": "multiple", **_QUIET,
    }  # fmt: skip
    panel.expand(lambda: True, None, open_st, **_QUIET).then(**refresh)
    panel.collapse(lambda: False, None, open_st, **_QUIET)
    reply_rd.input(**refresh)
    return {"clear": [shifts_html], "refresh": refresh}


def coloured(is_open: bool, owner: str, talk: Talk, at, latest: list) -> Iterator[tuple]:
    """The reply of pane `at`, as base and tuned model find it. `latest` is as in `proof.proven`."""
    latest[:] = mark = [object()]
    if not is_open or not any(pane.reply for pane in talk.panes):
        yield gr.skip(), paint.empty(EMPTY) if is_open else ""
        return
    tuned = tuned_panes(talk.who)
    if not tuned:
        yield gr.update(visible=False), paint.empty(ALONE)
        return
    at = at if at in range(len(talk.panes)) else tuned[0]
    choices = [(name, place) for place, name in enumerate(names(talk.who))]
    yield gr.update(choices=choices, value=at, visible=True), paint.loading("Both models read this reply …")
    try:
        html = _painted(owner, talk, at, at if at in tuned else tuned[0])
        yield gr.skip(), html if latest == mark else gr.skip()
    except UserError as error:
        yield gr.skip(), paint.problem("Not to be measured", error.message, error.hint)


def _painted(owner: str, talk: Talk, at: int, tuned: int) -> str:
    from sft import compare  # torch takes seconds to import

    replies = [pane.reply.token_ids if pane.reply else [] for pane in talk.panes]
    contest = compare.pair(contest_of(owner, talk.who), tuned)
    found = compare.shifts(contest, talk.panes[at].prompt, replies[at])
    other = tuned if at == 0 else 0
    parts = compare.parting(replies[at], replies[other])
    return shifts_view.painted(found, names(talk.who)[tuned], parts, names(talk.who)[other])

"""The panel that says what made the last replies, and proves that the adapter is on in one pane, off in the other."""

from collections.abc import Iterator

import gradio as gr

from sft.contest import Contest
from sft.errors import UserError
from sft.ui import paint, proof_view
from sft.ui.talk import Talk, contest_of

EMPTY = "Ask something first: the proof is about the last replies."
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def build(owner_st: gr.State, talk_st: gr.State) -> dict:
    """Builds and wires the panel. Returns what is to be emptied when the talk changes, and what then shows it anew,
    which does so where the panel is open."""
    open_st, latest_st = gr.State(False), gr.State([])
    with gr.Accordion("Proof: what made these replies", open=False, elem_id="proof") as panel:
        proof_html = gr.HTML()
    refresh = {
        "fn": proven, "inputs": [open_st, owner_st, talk_st, latest_st], "outputs": proof_html,
        "concurrency_limit": 4, "trigger_mode": "multiple", **_QUIET,
    }  # fmt: skip
    panel.expand(lambda: True, None, open_st, **_QUIET).then(**refresh)
    panel.collapse(lambda: False, None, open_st, **_QUIET)
    return {"clear": [proof_html], "refresh": refresh}


def proven(is_open: bool, owner: str, talk: Talk, latest: list) -> Iterator[str]:
    """First what is known, then what is measured in each pane in which a run's weights answer.

    `latest` is the same list in all events of a page: a measurement takes seconds, and is not shown where a later
    event has put its mark there meanwhile.
    """
    latest[:] = mark = [object()]
    if not is_open or not any(pane.reply for pane in talk.panes):
        yield paint.empty(EMPTY) if is_open else ""
        return
    try:
        contest = contest_of(owner, talk.who)
        known, prompts = proof_view.made(contest, talk), proof_view.prompts(talk)
        yield known + paint.loading("Measuring how far the models lie apart …") + prompts
        measured = "".join(_measured(contest, talk, at) for at in proof_view.tuned_panes(talk.who))
        measured = measured or paint.empty("A base model alone has no adapter to prove.")
        yield known + measured + prompts if latest == mark else gr.skip()
    except UserError as error:
        yield paint.problem("No proof", error.message, error.hint)


def _measured(contest: Contest, talk: Talk, at: int) -> str:
    from sft.causes import likely_causes  # torch takes seconds to import
    from sft.compare import pair, proof

    prompt, two = talk.panes[at].prompt, pair(contest, at)
    shown = proof(two, prompt)
    causes = [] if shown.measurable else likely_causes(two, prompt, shown)
    return proof_view.measured(proof_view.names(talk.who)[at], shown, causes, prompt != talk.panes[0].prompt)

"""The panel Prompt or tune?: held-out rows through base, prompted base and tuned model, and a verdict.

`python -m sft evaluate` measures, in a process of its own; a timer reads how far it is, only while it works.
"""

from functools import partial

import gradio as gr

from sft.ui import paint
from sft.ui.inputs import user_errors
from sft.ui.verdict_events import NO_RUN, Filled, fill, follow, look, start, stop, tick, turn
from sft.ui.verdict_rows import FILTERS
from sft.verdict import ENOUGH

ABOUT = (
    "Would a better prompt have done? Rows that the run was never trained on go through three arms: the base model, "
    "the base model with the best prompt that you can write, and the tuned model."
)
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def build(owner_st: gr.State, run_dd: gr.Dropdown) -> list[dict]:
    """Builds and wires the panel. `run_dd` says which run. Returns what follows when the page has turned to it."""
    open_st, filled_st = gr.State(False), gr.State(Filled())
    at_st, before_st = gr.State(0), gr.State(None)  # the page of rows, and when the result before was written
    seen_st = gr.State(None)  # what the panel was made of
    with gr.Accordion("Prompt or tune?", open=False, elem_id="verdict") as panel:
        gr.Markdown(ABOUT)
        form = _form()
        with gr.Row():
            start_btn = gr.Button("Start", interactive=False, min_width=110, scale=0, elem_id="verdict-start")
            stop_btn = gr.Button("Stop", visible=False, min_width=110, scale=0, elem_id="verdict-stop")
        state_html = gr.HTML(paint.empty(NO_RUN), elem_id="verdict-state")
        result_html = gr.HTML(elem_id="verdict-result")
        with gr.Column(visible=False, elem_id="verdict-rows") as rows_col:
            filter_rd = gr.Radio(
                [(name, kind) for kind, name in FILTERS.items()], value="all", label="Rows",
                info="Arms disagree where some are right and some are not; on open answers, where their words differ.",
            )  # fmt: skip
            with gr.Row():
                back_btn = gr.Button("← Previous", size="sm", min_width=110, elem_id="verdict-previous")
                on_btn = gr.Button("Next →", size="sm", min_width=110, elem_id="verdict-next")
            rows_html = gr.HTML()
    timer = gr.Timer(1.0, active=False)

    about = [owner_st, run_dd]
    browsing = [at_st, rows_html, back_btn, on_btn]
    shown = [state_html, result_html, start_btn, stop_btn, timer, rows_col, filter_rd, *browsing, before_st, seen_st]
    looking = {"fn": look, "inputs": about, "outputs": shown, **_QUIET}
    filling = {
        "fn": fill, "inputs": [*about, open_st, filled_st, form[0]],
        "outputs": [filled_st, form[0], form[2], state_html, start_btn], **_QUIET,
    }  # fmt: skip
    panel.expand(lambda: True, None, open_st, **_QUIET).then(**looking).then(**filling)
    panel.collapse(lambda: False, None, open_st, **_QUIET)
    timer.tick(tick, [*about, before_st], shown, queue=False, **_QUIET)
    once = {"trigger_mode": "once", **_QUIET}
    start_btn.click(user_errors(start), [*about, filled_st, *form], None, **once).success(**looking)
    stop_btn.click(user_errors(stop), about, shown, **once)
    for trigger, way in ((filter_rd.input, None), (back_btn.click, -1), (on_btn.click, 1)):
        trigger(partial(turn, way), [*about, filter_rd, at_st], browsing, trigger_mode="always_last", **_QUIET)
    turned = {**looking, "fn": follow, "inputs": [*about, seen_st]}
    return [{**following, "trigger_mode": "always_last", "concurrency_limit": 8} for following in (turned, filling)]


def _form() -> list:
    system_tb = gr.Textbox(
        label="Instruction for the prompted arm", lines=3, max_lines=12, elem_id="verdict-system",
        info="Its system message. Begun with what the data set provides, and left empty it is that again",
    )  # fmt: skip
    with gr.Row():
        return [
            system_tb,
            gr.Slider(0, 8, 3, step=1, label="Examples in its prompt", info="Training rows, drawn by the seed"),
            gr.Number(
                ENOUGH, label="Rows", precision=0, minimum=1, info="Drawn by the seed; empty for all",
                elem_id="verdict-limit",
            ),
            gr.Number(0, label="Seed", precision=0, minimum=0, info="Same seed, same numbers"),
        ]  # fmt: skip

"""The Chat tab: base and tuned model side by side, and perhaps a third; one prompt for all."""

import gradio as gr
from gradio.events import Dependency

from sft.ui import keeping, paint, proof, shifts, verdict, vote
from sft.ui.chat_events import (
    TEMPLATES,
    ask_again,
    choose,
    clear,
    held_out_prompt,
    once_turned,
    ready,
    retry,
    send,
    stopped,
    turn,
)
from sft.ui.inputs import user_errors
from sft.ui.talk import Talk
from sft.ui.who import NOBODY

_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
_ANSWERING = {"concurrency_limit": 8, **_QUIET}
PANE_IDS = ("base-pane", "tuned-pane", "third-pane")


def build(owner_st: gr.State) -> dict:
    """Builds and wires the tab. Returns what the page's load and the Tune tab need."""
    states = {"owner": owner_st, "talk": gr.State(Talk()), "kept": gr.State({}), "turned_to": gr.State(None)}
    in_sight_st = gr.State(False)
    who = _who_answers()
    state_html = gr.HTML(paint.empty(NOBODY), elem_id="chat-state")
    panes = _panes()
    said_html = gr.HTML(elem_id="said")
    asking = _asking()
    template = _template()
    verdict.build(owner_st, who["run_dd"])
    looks = [proof.build(owner_st, states["talk"]), shifts.build(owner_st, states["talk"])]
    sampling = _sampling()
    vote.build(owner_st, who["run_dd"], who["system_tb"], sampling)
    exact = _exact()
    keep = keeping.build(owner_st, states["talk"])

    shown = [states["talk"], *panes["bots"], *panes["notes"], said_html, *exact]
    asked = [owner_st, who["system_tb"], who["third_system_tb"], states["talk"], *sampling]
    prompt_tb = asking["prompt_tb"]
    asking["try_btn"].click(held_out_prompt, [owner_st, who["run_dd"], prompt_tb], prompt_tb, **_QUIET)
    asking["again_btn"] = keep["again_btn"]
    controls = [who[name] for name in ("run_dd", "stage_sl", "third_dd", "other_cb")] + [template["template_rd"]]
    sending, stopping = _wire_asking(asking, [*controls, states["turned_to"]], asked, shown)
    cancel = {"fn": None, "cancels": sending, **_QUIET}
    cleared = asking["clear_btn"].click(**cancel).then(clear, states["talk"], shown, **_QUIET)
    all_shown = [*shown, states["kept"], *panes["columns"], *panes["stamps"], state_html]
    turned = _wire_turning(states, controls, who, asking, template, keep["open_btn"], sampling, cancel, all_shown)
    _wire_looks(looks, asking, [*sending, stopping, cleared, *turned])
    readying = {"fn": ready, "inputs": [in_sight_st, owner_st, who["system_tb"], states["talk"]], **_QUIET}
    for event in turned:
        event.then(**readying)
    return {"run_dd": who["run_dd"], "in_sight_st": in_sight_st, "readying": readying}


# ---- components ----


def _who_answers() -> dict:
    with gr.Row(equal_height=True):
        run_dd = gr.Dropdown(
            [], label="Who answers", info="Each choice has a conversation of its own", scale=2, min_width=260
        )
        third_dd = gr.Dropdown(
            [("Nobody", "")], value="", label="Beside them", info="A third pane", scale=2, min_width=260,
            elem_id="third",
        )  # fmt: skip
        system_tb = gr.Textbox(
            label="System message (optional)", info="Sent to all, as in training", lines=1, scale=3, min_width=260
        )
    stage_sl = gr.Slider(
        0, 1, 1, step=1, label="As it is", info="Base model on the left, result on the right", visible=False,
        elem_id="stage", buttons=[],
    )  # fmt: skip
    third_system_tb = gr.Textbox(
        label="System message of the third", info="In place of the other: how far does a better prompt go?",
        lines=2, max_lines=8, visible=False, elem_id="third-system",
    )  # fmt: skip
    other_cb = gr.Checkbox(False, label="Pair them anyway, in the chat format as it is now", visible=False)
    return {
        "run_dd": run_dd, "third_dd": third_dd, "system_tb": system_tb, "stage_sl": stage_sl,
        "third_system_tb": third_system_tb, "other_cb": other_cb,
    }  # fmt: skip


def _panes() -> dict:
    columns, stamps, bots, notes = [], [], [], []
    with gr.Row(elem_classes="panes"):
        for at, elem_id in enumerate(PANE_IDS):
            with gr.Column(min_width=280, visible=at < 2) as column:
                stamps.append(gr.HTML())
                bots.append(_bot(elem_id))
                notes.append(gr.HTML(elem_classes="pane-note"))
            columns.append(column)
    return {"columns": columns, "stamps": stamps, "bots": bots, "notes": notes}


def _bot(elem_id: str) -> gr.Chatbot:
    return gr.Chatbot(
        show_label=False, elem_id=elem_id, height=360, render_markdown=False, sanitize_html=True, allow_tags=True,
        buttons=[], feedback_options=None, layout="bubble", min_width=280, placeholder="Replies appear here.",
        elem_classes="pane",
    )  # fmt: skip


def _asking() -> dict:
    with gr.Row(equal_height=True):
        prompt_tb = gr.Textbox(
            label="Question", show_label=False, placeholder="Write to all and press Enter", scale=8, lines=1,
            max_lines=8, elem_id="prompt", container=False,
        )  # fmt: skip
        send_btn = gr.Button("Send", variant="primary", min_width=90, scale=1, elem_id="send")
    with gr.Row():
        buttons = {
            "try_btn": gr.Button("Try a held-out row", size="sm", min_width=90, elem_id="try-held-out"),
            "stop_btn": gr.Button("Stop", size="sm", min_width=55, elem_id="stop-replies"),
            "retry_btn": gr.Button("Retry", size="sm", min_width=55, elem_id="retry"),
            "clear_btn": gr.Button("Clear", size="sm", min_width=55, elem_id="clear"),
        }
    there_cb = gr.Checkbox(visible=False)  # whether a switch has put the last question into the prompt
    return {"prompt_tb": prompt_tb, "send_btn": send_btn, "there_cb": there_cb, **buttons}


def _template() -> dict:
    with gr.Accordion("Template matters: right, none, wrong", open=False, elem_id="template"):
        template_rd = gr.Radio(
            [("The model's own", "right"), ("None: plain continuation", "none"), ("A wrong one", "wrong")],
            value="right", label="The last question is asked again in", elem_id="template-switch",
        )  # fmt: skip
        return {"template_rd": template_rd, "template_md": gr.Markdown(TEMPLATES["right"])}


def _sampling() -> list:
    with gr.Accordion("Sampling", open=False), gr.Row():
        return [
            gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0: always the likeliest token"),
            gr.Slider(0.05, 1, 1, step=0.05, label="Top p", info="only the likeliest tokens up to this share"),
            gr.Slider(8, 512, 96, step=8, label="Max new tokens", info="a reply that has not ended is cut"),
            gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, info="same seed, same reply"),
        ]


def _exact() -> list:
    with gr.Accordion("The exact prompt", open=False, elem_id="exact"):
        gr.Markdown("What each model read before its last reply, as text and as token ids.")
        with gr.Row():
            return [gr.HTML() for _ in PANE_IDS]


# ---- wiring ----


def _wire_asking(asking: dict, named: list, asked: list, shown: list) -> tuple[list, Dependency]:
    """Everything that lets models answer: those that `named` says, if the page has turned to them.

    Returns it, for what cancels it, and what stops them.
    """
    prompt_tb = asking["prompt_tb"]
    with_prompt = [*named, *asked[:3], prompt_tb, *asked[3:]]
    sending = [
        trigger(once_turned(send), with_prompt, [*shown, prompt_tb], trigger_mode="once", **_ANSWERING)
        for trigger in (asking["send_btn"].click, prompt_tb.submit)
    ]
    for button, again in (("retry_btn", retry), ("again_btn", ask_again)):
        sending.append(asking[button].click(once_turned(again), [*named, *asked], shown, **_ANSWERING))
    # First the reply is cancelled, then the panes are painted: in one event, a last token could come after the paint.
    stopping = asking["stop_btn"].click(None, cancels=sending, **_QUIET)
    return sending, stopping.then(stopped, [asked[3], prompt_tb], [*shown, prompt_tb], **_QUIET)


def _wire_turning(states, controls, who, asking, template, open_btn, sampling, cancel, all_shown) -> list[Dependency]:
    """The ways to turn to somebody else, each after what still answers is cancelled. Returns where each has turned."""
    boxes = [who["system_tb"], who["third_system_tb"]]
    choosing = {
        "fn": choose,
        "inputs": [states["owner"], who["run_dd"], states["talk"]],
        "outputs": [*controls[1:4], *boxes],
        **_QUIET,
    }
    turning = {
        "fn": turn,
        "inputs": [
            states["owner"], *controls, *boxes, states["talk"], states["kept"], asking["prompt_tb"],
        ],
        "outputs": [
            *all_shown, who["other_cb"], who["stage_sl"], *boxes, template["template_md"], states["turned_to"],
            asking["prompt_tb"], asking["there_cb"],
        ],
        **_QUIET,
    }  # fmt: skip
    opening = {
        "fn": user_errors(keeping.open_kept),
        "inputs": [states["owner"], open_btn, states["talk"], states["kept"]],
        "outputs": [
            states["talk"], states["kept"], who["run_dd"], template["template_rd"], *sampling,
        ],
        **_QUIET,
    }  # fmt: skip
    turned = [who["run_dd"].change(**cancel).then(**choosing).then(**turning)]
    turned.append(open_btn.upload(**cancel).then(**opening).success(**choosing).then(**turning))
    turned += [who[name].input(**cancel).then(**turning) for name in ("third_dd", "other_cb")]
    for control in (who["stage_sl"], template["template_rd"]):  # the same question to the same model in another state
        turned.append(control.input(**cancel).then(**turning))
        turned[-1].then(None, asking["there_cb"], None, js="(there) => askWhatIsThere(there)", **_QUIET)
    return turned


def _wire_looks(looks: list[dict], asking: dict, changed: list) -> None:
    """Closer looks at the last replies: emptied as new ones are asked for, and filled anew after all that changed."""
    emptied = [component for look in looks for component in look["clear"]]
    triggers = [asking[name].click for name in ("send_btn", "retry_btn", "again_btn")] + [asking["prompt_tb"].submit]
    gr.on(triggers, None, None, emptied, js=f"() => {[''] * len(emptied)}", **_QUIET)
    for event in changed:
        for look in looks:
            event.then(**look["refresh"])

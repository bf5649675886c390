"""The Chat tab: base and tuned model side by side, and perhaps a third; one prompt for all."""

import gradio as gr
from gradio.events import Dependency

from sft.ui import keeping, paint, proof, shifts, verdict, vote
from sft.ui.asking import (
    SHOWN,
    ask_again,
    clear,
    held_out_prompt,
    once_turned,
    ready,
    retry,
    send,
    send_along,
    stopped,
)
from sft.ui.floor import Floor, quiet
from sft.ui.inputs import user_errors
from sft.ui.talk import Talk
from sft.ui.turning import TEMPLATES, make_way, turn
from sft.ui.who import NOBODY

_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
_ANSWERING = {"concurrency_limit": 32, "trigger_mode": "multiple", **_QUIET}
# Who is chosen meanwhile is turned to afterwards, however many steps of a slider that were.
_LATEST = {"concurrency_limit": 8, "trigger_mode": "always_last", **_QUIET}
# All that changes who answers goes one way, so that one turning at a time is under way, and the last has the last word.
_TURN_SOON = {"fn": None, "js": "() => clickSoon('#turn')", **_QUIET}
_SEND_AGAIN = "(again, draft) => again && draft?.trim() && sendSoon()"
PANE_IDS = ("base-pane", "tuned-pane", "third-pane")


def build(owner_st: gr.State, turn_btn: gr.Button) -> dict:
    """
    Builds and wires the tab; a click of `turn_btn` turns it to who is chosen.

    Returns what the page's load and the Tune tab need.
    """
    states = {"owner": owner_st, "talk": gr.State(Talk()), "kept": gr.State({}), "floor": gr.State(Floor())}
    in_sight_st = gr.State(False)
    who = _who_answers()
    state_html = gr.HTML(paint.empty(NOBODY), elem_id="chat-state")
    panes = _panes()
    said_html = gr.HTML(elem_id="said")
    asking = _asking()
    template = _template()
    judging = verdict.build(owner_st, who["run_dd"])
    looks = [proof.build(owner_st, states["talk"]), shifts.build(owner_st, states["talk"])]
    sampling = _sampling()
    voting = vote.build(owner_st, who["run_dd"], states["talk"], who["system_tb"], sampling)
    keep = keeping.build(owner_st, states["talk"])
    asking["again_btn"] = keep["again_btn"]

    shown = [states["talk"], *panes["bots"], *panes["notes"], said_html]
    _wire_emptying(looks, asking)
    changed = _wire_asking(states, who, template, asking, sampling, shown)
    all_shown = [*shown, states["kept"], *panes["columns"], *panes["stamps"], state_html]
    turned = _wire_turning(states, who, template, asking, turn_btn, all_shown)
    _wire_opening(states, who, template, asking, keep["open_btn"], sampling, shown)
    readying = {"fn": ready, "inputs": [in_sight_st, owner_st, who["system_tb"], states["talk"]], **_QUIET}
    for event in [*changed, turned]:
        for look in looks:
            event.then(**look["refresh"])
    for following in (*judging, *voting, readying):
        turned.then(**following)
    return {
        "run_dd": who["run_dd"], "in_sight_st": in_sight_st, "talk_st": states["talk"], "floor_st": states["floor"],
        "state_html": state_html, "readying": readying, "turning": _TURN_SOON,
    }  # fmt: skip


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
        buttons=[], feedback_options=None, latex_delimiters=[], layout="bubble", min_width=280,
        placeholder="Replies appear here.", elem_classes="pane",
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
    # The page sends by itself, too: the question that went along when it turned, and one that was sent before it had.
    hidden = {
        "along_btn": gr.Button("Ask along", visible="hidden", elem_id="ask-along"),
        "along_tb": gr.Textbox(visible=False), "along_cb": gr.Checkbox(visible=False),
        "again_cb": gr.Checkbox(visible=False),
    }  # fmt: skip
    return {
        "prompt_tb": prompt_tb, "send_btn": send_btn, **buttons, **hidden,
    }  # fmt: skip


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


# ---- wiring ----


def _controls(who: dict, template: dict) -> list:
    """Whatever says who answers, in the order in which handlers take it."""
    return [who[name] for name in ("run_dd", "stage_sl", "third_dd", "other_cb")] + [template["template_rd"]]


def _wire_emptying(looks: list[dict], asking: dict) -> None:
    """Closer looks at the last replies are emptied as new ones are asked for; it is wired first, so it comes first."""
    emptied = [component for look in looks for component in look["clear"]]
    buttons = [asking[name] for name in ("send_btn", "along_btn", "retry_btn", "again_btn")]
    triggers = [*(button.click for button in buttons), asking["prompt_tb"].submit]
    gr.on(triggers, None, None, emptied, js=f"() => {[''] * len(emptied)}", **_QUIET)


def _wire_asking(states, who, template, asking, sampling, shown) -> list[Dependency]:
    """Everything that lets models answer, and what ends it. Returns the ends of all that."""
    prompt_tb, talk_st = asking["prompt_tb"], states["talk"]
    named = [*_controls(who, template), talk_st, states["floor"]]
    about = [states["owner"], who["system_tb"], who["third_system_tb"]]
    sent = {"inputs": [*named, *about, prompt_tb, *sampling], "outputs": [*shown, prompt_tb, asking["again_cb"]]}
    sending = gr.on([asking["send_btn"].click, prompt_tb.submit], once_turned(send, SHOWN + 1), **sent, **_ANSWERING)
    # Also where a control says what is no longer possible, because the page has just turned.
    again = {"fn": None, "inputs": [asking["again_cb"], prompt_tb], "js": _SEND_AGAIN, **_QUIET}
    sending.then(**again)
    sending.failure(**again)
    along = asking["along_btn"].click(once_turned(send_along, SHOWN + 1, busy=""), **sent, **_ANSWERING)
    trying = [states["owner"], who["run_dd"], prompt_tb, who["system_tb"]]
    asking["try_btn"].click(held_out_prompt, trying, [prompt_tb, who["system_tb"]], **_QUIET)
    answered = [sending, along]
    for button, once_more in (("retry_btn", retry), ("again_btn", ask_again)):
        click, outputs = asking[button].click, [*shown, asking["again_cb"]]
        answered.append(click(once_turned(once_more, SHOWN), [*named, *about, *sampling], outputs, **_ANSWERING))
        answered[-1].then(None, asking["again_cb"], None, js="(again) => again && clickSoon('#turn')", **_QUIET)
    gr.on([asking[name].click for name in ("stop_btn", "clear_btn")], None, js="() => sendNoMore()", **_QUIET)
    stopping = asking["stop_btn"].click(**quiet(states["floor"]))
    clearing = asking["clear_btn"].click(**quiet(states["floor"]))
    stopped_too = stopping.then(stopped, [talk_st, prompt_tb], [*shown, prompt_tb], **_QUIET)
    return [*answered, stopped_too, clearing.then(clear, talk_st, shown, **_QUIET)]


def _wire_turning(states, who, template, asking, turn_btn, all_shown) -> Dependency:
    """Turns to who is chosen now: what still answers is quiet, then controls and panes turn. Returns the end."""
    controls, boxes = _controls(who, template), [who["system_tb"], who["third_system_tb"]]
    gr.on([controls[0].change, *(control.input for control in controls[1:])], **_TURN_SOON)
    hushed = turn_btn.click(make_way, [*controls, states["talk"], states["floor"]], **_LATEST)
    turned = hushed.then(
        turn,
        [states["owner"], *controls, *boxes, states["talk"], states["kept"], states["floor"]],
        [*all_shown, *controls[1:4], *boxes, template["template_md"], asking["along_tb"], asking["along_cb"]],
        **_LATEST,
    )  # fmt: skip
    # Only the page knows whether a draft was written meanwhile.
    turned.then(
        None, [asking["along_tb"], asking["prompt_tb"]], asking["prompt_tb"],
        js="(question, draft) => draft?.trim() ? draft : question", **_QUIET,
    )  # fmt: skip
    turned.then(None, asking["along_cb"], None, js="(along) => along && sendAlong()", **_QUIET)
    return turned


def _wire_opening(states, who, template, asking, open_btn, sampling, shown) -> None:
    """A conversation from a file, and with whom it was."""
    opened = open_btn.upload(**quiet(states["floor"])).then(
        user_errors(keeping.open_kept),
        [states["owner"], open_btn, states["talk"], states["kept"]],
        [states["talk"], states["kept"], who["run_dd"], template["template_rd"], *sampling],
        **_QUIET,
    )
    opened.failure(stopped, [states["talk"], asking["prompt_tb"]], [*shown, asking["prompt_tb"]], **_QUIET)
    opened.success(**_TURN_SOON)

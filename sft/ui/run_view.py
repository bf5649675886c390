"""The run that a visitor looks at: its card, curve and answers, and what can be done with it.

A timer reads the run folder every second. It must stay cheap: with many pages open it is most of what the server does.
So what several of them show at a time is painted once.
"""

import time
from functools import lru_cache
from typing import NamedTuple

import gradio as gr

from sft import launch
from sft.errors import UserError
from sft.run import Run
from sft.run_status import Status
from sft.ui import paint
from sft.ui.curves import curve, lines_of
from sft.ui.inputs import user_errors
from sft.ui.run_card import of_kind, run_card
from sft.ui.strip import strip
from sft.ui.visitors import run_of, runs_of

NO_RUN = "No run yet. Choose data and settings, then press Start tuning."
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
_STRIP = "const show = () => window.sftStrip(element, props.value); watch('value', show); show();"


class Seen(NamedTuple):
    """What a page showed last, so that nothing is sent when nothing changed."""

    run: str = ""  # name, state and time of the last change
    answers: str = ""  # name and number of the sample events


NOTHING = Seen()


def build(owner_st: gr.State) -> dict:
    """Builds and wires the panel. Returns what the other parts of the page need."""
    run_dd = gr.Dropdown([], label="Run", info="Newest first", elem_id="run-picker")
    with gr.Column(elem_id="run-view"):
        card_html = gr.HTML(paint.empty(NO_RUN))
        with gr.Row(elem_id="run-buttons"):
            chat_btn = gr.Button("Chat with it", visible=False, elem_id="chat-with-run")
            resume_btn = gr.Button("Resume", visible=False, elem_id="resume-tuning")
            stop_btn = gr.Button("Stop", visible=False, elem_id="stop-tuning")
        curve_html = gr.HTML()
        strip_html = gr.HTML("", html_template="<div></div>", js_on_load=_STRIP)
    seen_st = gr.State(NOTHING)
    shown = [card_html, curve_html, strip_html, stop_btn, resume_btn, chat_btn, seen_st]

    looking = {"fn": show_run, "inputs": [owner_st, run_dd], "outputs": shown, **_QUIET}
    stop_btn.click(user_errors(stop), [owner_st, run_dd], stop_btn, **_QUIET).success(**looking)
    resume_btn.click(user_errors(resume), [owner_st, run_dd], resume_btn, **_QUIET).success(**looking)
    run_dd.change(**looking)
    gr.Timer(1.0).tick(refresh, [owner_st, run_dd, seen_st], shown, queue=False, **_QUIET)
    return {"run_dd": run_dd, "chat_btn": chat_btn, "looking": looking}


def stop(owner: str, name: str):
    """Asks the visitor's run to stop, or takes it out of the line."""
    launch.stop(run_of(owner, name))
    return gr.update(interactive=False)


def resume(owner: str, name: str):
    launch.resume(run_of(owner, name))
    return gr.update(visible=False)


def run_names(owner: str) -> list[str]:
    return [run.name for run in runs_of(owner)]


def show_run(owner: str, name: str | None, seen: Seen = NOTHING) -> tuple:
    """Everything about a run; the answers only where there are others than those in `seen`."""
    run = _picked(owner, name)
    if run is None:
        return paint.empty(NO_RUN), "", "", *(gr.update(visible=False) for _ in range(3)), NOTHING
    status = run.status()  # before the events, which a run writes first
    drawn, answers, count = _drawn(run, status)
    now = Seen(_mark(run, status), f"{run.name} {count}")
    new_answers = answers if now.answers != seen.answers else gr.skip()
    return _card(run, status), drawn, new_answers, *_buttons(run, status), now


def refresh(owner: str, name: str | None, seen: Seen) -> tuple:
    """Every second: nothing while nothing changed, save that the clock of a working run moves on."""
    run = _picked(owner, name)
    status = run.status() if run else None
    if (_mark(run, status) if run else "") != seen.run:
        return show_run(owner, name, seen)
    ticks = run and status.active and status.state != "queued"
    return _card(run, status) if ticks else gr.skip(), *(gr.skip() for _ in range(6))


@lru_cache(maxsize=64)
def _drawn(run: Run, status: Status) -> tuple[str, str, int]:
    """The curve, the answers over time, and how many there are. A run sets its status after each new event."""
    events = run.events()
    samples, lines = of_kind(events, "sample"), lines_of(events)
    drawn = curve(lines, status.max_steps, [sample["step"] for sample in samples]) if lines else ""
    return drawn, strip(run.name, samples, status.max_steps), len(samples)


def _card(run: Run, status: Status) -> str:
    return _card_at(run, status, run.stop_asked, int(time.time()))


@lru_cache(maxsize=64)
def _card_at(run: Run, status: Status, stop_asked: bool, second: int) -> str:
    """The same for every page that asks in the same second."""
    return run_card(run, status)


def _picked(owner: str, name: str | None) -> Run | None:
    try:
        return run_of(owner, name)
    except UserError:
        return None


def _mark(run: Run, status: Status) -> str:
    """Differs whenever there is something new to paint."""
    return f"{run.name} {status.state} {status.updated} {run.stop_asked}"


def _buttons(run: Run, status: Status) -> tuple:
    """Stop, Resume, Chat: each there where it can be pressed."""
    asked = status.active and run.stop_asked
    name = "Stopping …" if asked else "Withdraw" if status.state == "queued" else "Stop"
    return (
        gr.update(value=name, visible=status.active, interactive=not asked),
        gr.update(visible=not status.active and run.resumable),
        gr.update(visible=run.has_result),
    )

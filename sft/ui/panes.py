"""Paints the panes of a conversation: what each model is, what was said, and a note on the last reply."""

from sft import models
from sft.run import Run
from sft.ui import paint
from sft.ui.talk import PROMPTED, Pane, Talk, Who
from sft.ui.visitors import run_of

PANES = 3
ON, OFF = "adapter on", "adapter off"
NOTHING = "(not a word)"


def painted(talk: Talk) -> list:
    """What changes with every token: bubbles and notes, for each pane there may be, and a word on the whole."""
    panes = [*talk.panes, *(Pane() for _ in range(PANES))][:PANES]
    notes = [f"<small>{paint.escape(pane.note)}</small>" if pane.note else "" for pane in panes]
    said = f'<p class="talk-said" role="status">{paint.escape(talk.said)}</p>' if talk.said else ""
    return [*(bubbles(pane.history) for pane in panes), *notes, said]


def bubbles(history: list[dict]) -> list[dict]:
    """Content as a typed part: a plain string would be dedented and stripped by the component. Escaped, for it takes
    text for HTML, and would fetch what that names. A reply without a word says so."""
    return [{"role": each["role"], "content": [{"type": "text", "text": _words(each["content"])}]} for each in history]


def _words(text: str) -> str:
    return paint.escape(text) if text.strip() else NOTHING


def stamps(owner: str, who: Who) -> list[str]:
    """What made the words of each pane, as HTML; empty for a pane that is not there. Raises UserError."""
    heads = [
        f'<div class="stamp"><h3>{name}</h3> <span class="switch {"off" if switch == OFF else "on"}">{switch}</span>'
        f'<span class="made-by">{paint.escape(about)}</span></div>'
        for name, about, switch in _made_by(owner, who)
    ]
    return [*heads, *[""] * PANES][:PANES]


def models_of(owner: str, who: Who) -> list[str]:
    """The same in plain words."""
    return [f"{name}: {about}, {switch}" for name, about, switch in _made_by(owner, who)]


def _made_by(owner: str, who: Who) -> list[tuple[str, str, str]]:
    """Each pane's name, what its model is, and what is switched on over the base model."""
    made = []
    if who.run:
        run = run_of(owner, who.run)
        made.append(("Base model", models.title(run.config().model), OFF))
        made.append(_tuned("Tuned model", run, who.step))
    elif who.base:
        made.append(("Base model", models.title(who.base), OFF))
    if who.third == PROMPTED:
        made.append(("Prompted base model", "the base model, with a system message of its own", OFF))
    elif who.third:
        made.append(_tuned("Another run", run_of(owner, who.third), None))
    return made


def _tuned(name: str, run: Run, step: int | None) -> tuple[str, str, str]:
    if step == 0:
        return name, f"before the first step of {run.name}, still the base model", OFF
    when = "" if step is None else f" as after step {step:,}"
    if run.result == run.model:
        return name, f"the weights that {run.name} tuned in full", "own weights"
    return name, f"the same with the adapter of {run.name}{when}", ON

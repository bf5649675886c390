"""Paints a visitor's runs as a list, the curves of some over each other, and what their settings differ in."""

from functools import lru_cache
from pathlib import Path

from sft import models
from sft.errors import UserError
from sft.run import Run
from sft.runs import differing
from sft.ui.curves import Line, curve, lines_of, spark
from sft.ui.paint import empty, escape
from sft.ui.run_card import badge

OVERLAID = 8  # as many as have colours that can be told apart
_HEAD = "".join(f'<th scope="col" class="{name}">{title}</th>' for name, title in (
    ("pick", '<span class="unseen">Compare</span>'), ("name", "Run"), ("state-of", "State"), ("steps", "Steps"),
    ("loss", "Train"), ("loss", "Held-out"), ("curve-of", "Curve"),
))  # fmt: skip


def table(runs: list[Run], ticked: list[str]) -> str:
    """The list, each run with a box to tick. `ticked` names those that are."""
    if not runs:
        return empty("No runs yet. Each training that you start appears here, to be compared with the others.")
    lines = "".join(_line(run, run.name in ticked) for run in runs)
    count = "One run so far, with its last losses. The next one can be laid beside it"
    if len(runs) > 1:
        count = f"{len(runs)} runs, newest first, with their last losses. Tick some to lay their curves over each other"
    return (
        f'<div class="runs-list" tabindex="0" role="region" aria-label="Your runs"><table><caption>{count}.</caption>'
        f"<thead><tr>{_HEAD}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _line(run: Run, ticked: bool) -> str:
    status = run.status()
    name, checked = escape(run.name), " checked" if ticked else ""
    box = f'<td class="pick"><input type="checkbox" value="{name}" aria-label="Compare {name}"{checked}></td>'
    step = f"{status.step:,} of {status.max_steps:,}"
    about, curve_of = _about(run, status.state, status.updated)
    return (
        f'<tr>{box}<th scope="row" class="name">{name}<small>{about}</small></th>'
        f'<td class="state-of">{badge(status)}</td><td class="steps">{step}</td>{curve_of}</tr>'
    )


@lru_cache(maxsize=2000)
def _about(run: Run, state: str, updated: float) -> tuple[str, str]:
    """Model and data in words; losses and their curve. Read once for each state that a run is seen in."""
    try:
        config = run.config()
        about = f"{models.title(config.model)} · {Path(config.dataset).name}"
    except UserError:
        about = "its config cannot be read"
    found = {line.name: line.points for line in lines_of(run.events())}
    last = [f"{found[name][-1][1]:.3f}" if name in found else "–" for name in ("train", "held-out")]
    losses = "".join(f'<td class="loss">{loss}</td>' for loss in last)
    return escape(about), f'{losses}<td class="curve-of">{spark(found.get("train", []))}</td>'


def overlay(runs: list[Run], part: str) -> str:
    """One loss of several runs in one drawing."""
    drawn, without, last_step = [], [], 1
    for run in runs[:OVERLAID]:
        points = next((line.points for line in lines_of(run.events()) if line.name == part), [])
        last_step = max([last_step, *(step for step, _ in points)])
        (drawn if points else without).append(Line(run.name, f"c{len(drawn)}", points))
    notes = [f"No {part} loss: {line.name}." for line in without]
    notes += [f"The first {OVERLAID} of {len(runs)} are drawn."] if len(runs) > OVERLAID else []
    said = "".join(f'<p class="hint">{escape(note)}</p>' for note in notes)
    return (curve(drawn, last_step) if drawn else "") + said


def differences(runs: list[Run]) -> str:
    """The settings in which the runs differ, a column a run."""
    try:
        found = differing(runs)
    except UserError as error:
        return f'<p class="hint">{escape(error.message)}</p>'
    if not found:
        return '<p class="hint">Their settings are the same in every field.</p>'
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    lines = "".join(
        f'<tr><th scope="row">{escape(field)}</th>{"".join(f"<td>{_value(value)}</td>" for value in values)}</tr>'
        for field, values in found.items()
    )
    return (
        '<div class="differ" tabindex="0" role="region" aria-label="Settings that differ"><table>'
        f"<caption>Only the settings that differ.</caption><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def _value(value) -> str:
    return "–" if value is None else escape(value)

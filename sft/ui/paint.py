"""Paints a run, what goes wrong, and parts of other views as HTML. Everything that a person wrote is escaped."""

import html
import re
import time

from sft.runs import Run, Status

TEXT_SHOWN = 100_000  # characters of a text; a template may write five times as many
_ESCAPED = {ord(letter): html.escape(letter) for letter in "&<>\"'"}
_SPACE = 0xE002  # a private-use character that stands for a space to be seen
_VISIBLE = {
    **_ESCAPED,
    _SPACE: '<i class="ws">·</i>',
    ord("\n"): '<i class="ws">↵</i>\n',
    ord("\t"): '<i class="ws">⇥</i>\t',
}
_SPACES = re.compile("^ +| +$|  +", re.MULTILINE)  # the spaces that one would overlook


def escape(text: str) -> str:
    return html.escape(str(text), quote=True)


def visible(text: str) -> str:
    """Escaped text in which line breaks, tabs and the spaces that one would overlook are seen."""
    return _SPACES.sub(lambda spaces: chr(_SPACE) * len(spaces[0]), text).translate(_VISIBLE)


def shown(text: str) -> str:
    """The same of as much as a browser takes at once."""
    rest = len(text) - TEXT_SHOWN
    return visible(text[:TEXT_SHOWN]) + (f"<b> … and {rest:,} more characters</b>" if rest > 0 else "")


def problem(title: str, text: str, hint: str = "") -> str:
    """A card for the user's mistake: what is wrong, and what to change."""
    hint = f"<p class='hint'>→ {escape(hint)}</p>" if hint else ""
    return f'<div class="card problem" role="alert"><h4>{escape(title)}</h4><pre>{escape(text)}</pre>{hint}</div>'


def empty(text: str) -> str:
    return f'<div class="card empty-state">{escape(text)}</div>'


def loading(text: str) -> str:
    return f'<div class="card empty-state reading" role="status">{escape(text)}</div>'


def panel(title: str, about: str, inside: str) -> str:
    """A part of a view that scrolls by itself, also with keys. `inside` is HTML."""
    title, about = escape(title), escape(about)
    small, label = (f" <small>{about}</small>", f"{title}: {about}") if about else ("", title)
    return (
        f'<section class="panel"><h3>{title}{small}</h3>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{inside}</div></section>'
    )


def parted(text: str, at: int, kind: str) -> str:
    """A text with all from `at` on marked; of a very long one the part around `at`."""
    first = max(0, at - TEXT_SHOWN)
    before = ("… " if first else "") + visible(text[first:at])
    rest = f'<mark class="{kind}">{shown(text[at:]) or "▮"}</mark>'
    return f'<div class="text-view"><span class="same">{before}</span>{rest}</div>'


def progress_bar(share: float, label: str) -> str:
    share = min(max(share, 0.0), 1.0)
    return (
        f'<div class="bar" role="progressbar" aria-label="{escape(label)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share * 100:.0f}"><div style="width:{share:.1%}"></div></div>'
    )


def run_card(run: Run, status: Status | None = None, events: list[dict] | None = None) -> str:
    """State, progress, figures, and what can be done next. What the caller has read already is not read again."""
    status = status or run.status()
    events = run.events() if events is None else events
    logs, start = of_kind(events, "log"), (of_kind(events, "start") or [{}])[-1]
    figures = []
    if logs:
        last = logs[-1]
        figures += [("train loss", f"{last['loss']:.3f}"), ("tokens/s", f"{last['tokens'] / last['seconds']:.0f}")]
    evals = of_kind(events, "eval")
    if evals:
        figures.append(("held-out loss", f"{evals[-1]['loss']:.3f}"))
    if start:
        share = start["trainable_parameters"] / start["total_parameters"]
        figures.append(("trained parameters", f"{start['trainable_parameters']:,} ({share:.2%})"))
    figures += _times(status, start, logs, of_kind(events, "end"))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    done = status.step / status.max_steps if status.max_steps else 0
    return (
        f'<div class="card run"><div class="run-head"><span class="state s-{status.state}">{status.state}</span>'
        f"<b>{escape(run.name)}</b><span>step {status.step} of {status.max_steps}</span></div>"
        f"{progress_bar(done, 'training progress')}<dl>{cells}</dl>"
        f"{_note(run, status, of_kind(events, 'warning'))}</div>"
    )


def of_kind(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["kind"] == kind]


def _times(status: Status, start: dict, logs: list[dict], ends: list[dict]) -> list[tuple[str, str]]:
    """Counted from the start of training: how long a run waited in line says nothing about it."""
    if not start:
        return []
    if status.active:
        times = [("elapsed", clock(time.time() - start["time"]))]
        if len(logs) > 1 and status.state == "training":
            # The first step is slower than the others, so it does not count for the estimate.
            pace = (logs[-1]["seconds"] - logs[0]["seconds"]) / (logs[-1]["step"] - logs[0]["step"])
            if status.step < status.max_steps:
                times.append(("remaining", f"about {clock(pace * (status.max_steps - status.step))}"))
        return times
    # A run that was resumed and then killed has an end, but of the time before.
    ends = [event for event in ends if event["time"] >= start["time"]]
    return [("took", clock(ends[-1]["time"] - start["time"]))] if ends else []


def _note(run: Run, status: Status, warned: list[dict]) -> str:
    warnings = "".join(f'<p class="hint">⚠ {escape(event["message"])}</p>' for event in warned)
    if status.state in ("finished", "stopped") and run.has_adapter:
        return f'{warnings}<p class="done">The adapter is in <code>{escape(run.adapter)}</code>.</p>'
    if status.state in ("failed", "interrupted"):
        log = run.log_tail()
        tail = f"<details><summary>Last log lines</summary><pre>{escape(log)}</pre></details>" if log else ""
        again = '<p class="hint">→ Press Start tuning to run these settings again.</p>'
        return f'{warnings}<pre class="reason" role="alert">{escape(status.message)}</pre>{again}{tail}'
    return f'{warnings}<p class="hint">{escape(status.message)}</p>' if status.message else warnings


def clock(seconds: float) -> str:
    """Seconds as 0:42 or 1:02:03."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"

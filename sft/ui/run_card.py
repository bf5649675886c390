"""Paints the card of a run: its state, how far it is, figures, what happened, and what can be done next."""

import time

from sft import launch
from sft.run import Run, gigabytes, step_of
from sft.run_status import Status
from sft.ui.paint import clock, escape, progress_bar

SHOWN_AS = {"queued": "in line"}  # where the state's own name would tell a person less


def run_card(run: Run, status: Status | None = None) -> str:
    """The card as HTML. A status that the caller has read already is not read again."""
    status = status or run.status()
    events = run.events()
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _figures(status, events))
    ahead = launch.place(run) if status.state == "queued" else None
    done = status.step / status.max_steps if status.max_steps else 0
    step = "" if status.state == "queued" else f"<span>step {status.step:,} of {status.max_steps:,}</span>"
    bar = "" if status.state == "queued" else progress_bar(done, "training progress")
    return (
        f'<div class="card run"><div class="run-head">{badge(status, ahead == 0)}<b>{escape(run.name)}</b>{step}</div>'
        f"{bar}{f'<dl>{cells}</dl>' if cells else ''}{_note(run, status, ahead, of_kind(events, 'warning'))}</div>"
    )


def badge(status: Status, is_next: bool = False) -> str:
    """The state in a word. A queued run that is next waits for nobody but its own process."""
    state = escape(status.state)
    return f'<span class="state s-{state}">{"starting" if is_next else SHOWN_AS.get(status.state, state)}</span>'


def of_kind(events: list[dict], kind: str) -> list[dict]:
    return [event for event in events if event["kind"] == kind]


# ---- figures ----


def _figures(status: Status, events: list[dict]) -> list[tuple[str, str]]:
    started = max((at for at, event in enumerate(events) if event["kind"] == "start"), default=None)
    start = events[started] if started is not None else {}
    logs, evals = of_kind(events, "log"), of_kind(events, "eval")
    figures = [
        ("train loss", _last(logs, "loss")),
        ("held-out loss", _last(evals, "loss")),
        ("stop-token loss", _last(logs, "stop_loss")),
        ("held-out stop token", _last(evals, "stop_loss")),
    ]
    if logs:
        last = logs[-1]
        figures.append(("tokens/s", f"{last['tokens'] / last['seconds']:,.0f}"))
        figures.append(("peak memory", gigabytes(last["memory"]) if last.get("memory") else ""))
    if start:
        share = start["trainable_parameters"] / start["total_parameters"]
        figures.append(("trained parameters", f"{start['trainable_parameters']:,} ({share:.2%})"))
        since = " since Resume" * (len(of_kind(events, "start")) > 1)
        figures += _times(status, start, since, of_kind(events[started:], "log"), of_kind(events[started:], "end"))
    return [(name, value) for name, value in figures if value]


def _last(events: list[dict], what: str) -> str:
    """The newest of a measure that not every event has."""
    found = next((event[what] for event in reversed(events) if event.get(what) is not None), None)
    return "" if found is None else f"{found:.3f}"


def _times(status: Status, start: dict, since: str, logs: list[dict], ends: list[dict]) -> list[tuple[str, str]]:
    """Counted from the last start of training: how long a run waited, or lay still, says nothing about it."""
    if not status.active:
        return [(f"took{since}", clock(ends[-1]["time"] - start["time"]))] if ends else []
    times = [(f"elapsed{since}", clock(time.time() - start["time"]))]
    if len(logs) > 1 and status.state == "training" and status.step < status.max_steps:
        # The first step is slower than the others, so it does not count for the estimate.
        pace = (logs[-1]["seconds"] - logs[0]["seconds"]) / (logs[-1]["step"] - logs[0]["step"])
        times.append(("remaining", f"about {clock(pace * (status.max_steps - status.step))}"))
    return times


# ---- words ----


def _note(run: Run, status: Status, ahead: int | None, warned: list[dict]) -> str:
    warnings = "".join(f'<p class="hint">⚠ {escape(event["message"])}</p>' for event in warned)
    if ahead is not None:
        return f'{warnings}<p class="place" role="status">{place(ahead)}</p>'
    if status.active and run.stop_asked:
        return f'{warnings}<p class="hint" role="status">Stopping: what was learnt so far is being saved.</p>'
    if status.state in ("failed", "interrupted"):
        return warnings + _broke_off(run, status)
    said = f'<p class="hint">{escape(status.message)}</p>' if status.message else ""
    return f"{warnings}{said}{_result(run, status)}"


def place(ahead: int) -> str:
    """Where a run stands in line. Whose the others are is nobody's business."""
    if ahead == 0:
        return "It is next: its process is starting."
    trainings = "1 training is" if ahead == 1 else f"{ahead} trainings are"
    return f"{trainings} ahead of yours. It starts by itself."


def _result(run: Run, status: Status) -> str:
    if status.active or not run.has_result:
        return ""
    what = "model" if run.result == run.model else "adapter"
    goes_on = " Resume goes on from there." if status.state == "stopped" and run.resumable else ""
    return f'<p class="done">The {what} is in <code>{escape(run.result)}</code>.{goes_on}</p>'


def _broke_off(run: Run, status: Status) -> str:
    """What happened, what to do, and what the process printed last."""
    step = step_of(run.checkpoint)
    from_where = f"goes on from step {step:,}" if step else "begins again, for no checkpoint was written yet"
    log = run.log_tail()
    tail = f'<details open><summary>Last log lines</summary><pre tabindex="0">{escape(log)}</pre></details>'
    return (
        f'<pre class="reason" role="alert">{escape(status.message)}</pre>'
        f'<p class="hint">→ Press Resume: the run {from_where}.</p>{tail if log else ""}'
    )

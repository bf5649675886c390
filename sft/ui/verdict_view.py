"""Paints an evaluation: how far it is; the verdict, the arms side by side with intervals, what a request costs.

`evaluation` is the document that `python -m sft evaluate --json` prints.
"""

import time

from sft.bootstrap import INTERVAL
from sft.ui import intervals, paint
from sft.ui.verdict_rows import ARMS, conversation

RATES = {
    "exact_match": "Exactly as wanted",
    "valid_format": "Valid format",
    "stop_rate": "Ended by itself",
    "loop_rate": "Went in circles",
}
FIGURES = {
    "loss": ("Loss per answer token", "{:.3f}"),
    "prompt_tokens": ("Tokens read per request", "{:,.0f}"),
    "reply_tokens": ("Tokens written per request", "{:,.0f}"),
    "seconds": ("Seconds, all rows", "{:,.1f}"),
}


def working(progress: dict) -> str:
    """How far it is, with an estimate."""
    share, elapsed = progress["share"], time.time() - progress["started"]
    left = f", about {paint.clock(elapsed * (1 - share) / share)} left" if share > 0.02 else ""
    beside = f'<p class="hint">⚠ {paint.escape(progress["message"])}</p>' if progress["message"] else ""
    return (
        f'<div class="card measuring"><p>{paint.escape(progress["stage"].capitalize())} …</p>'
        f'{paint.progress_bar(share, "Measured")}<p class="hint">{paint.clock(elapsed)} so far{left}</p>{beside}</div>'
    )


def failed(progress: dict, log: str) -> str:
    """Why it ended without a result, and the last lines of its log."""
    message, _, hint = progress["message"].partition("\n→ ")
    tail = f'<pre class="raw" tabindex="0" role="group" aria-label="Last log lines">{paint.escape(log)}</pre>'
    last = f"<details><summary>Last log lines</summary>{tail}</details>" if log else ""
    return paint.problem("The measurement broke off", message, hint or "Press Start to measure again.") + last


def result(evaluation: dict) -> str:
    arms, verdict = evaluation["arms"], evaluation["verdict"]
    return (
        f'<section class="card evaluation v-{paint.escape(verdict["kind"])}" aria-label="Verdict">'
        f'<p class="verdict-sentence">{paint.escape(verdict["sentence"])}</p>'
        f"{_table(arms, verdict.get('measure'))}{_cost(arms)}{_prompt(arms)}{_settings(evaluation)}</section>"
    )


def _table(arms: dict, decisive: str | None) -> str:
    heads = "".join(f'<th scope="col">{ARMS[arm]}</th>' for arm in arms)
    lines = "".join(_line(name, arms, name == decisive) for name in (*RATES, *FIGURES))
    level, count = intervals.percent(INTERVAL[1] - INTERVAL[0]), next(iter(arms.values()))["rows"]
    return (
        f"<table><caption>{count:,} held-out rows; in brackets and as whiskers: {level} intervals</caption>"
        f'<thead><tr><th scope="col"><span class="unseen">Measure</span></th>{heads}</tr></thead>'
        f"<tbody>{lines}</tbody></table>"
    )


def _line(name: str, arms: dict, decisive: bool) -> str:
    if all(arm.get(name) is None for arm in arms.values()):
        return ""  # a format, where the data names none
    title = RATES.get(name) or FIGURES[name][0]
    title += "<small>the verdict rests on this</small>" if decisive else ""
    cells = "".join(f"<td>{_value(arm, name)}</td>" for arm in arms.values())
    return f'<tr{" class=decisive" if decisive else ""}><th scope="row">{title}</th>{cells}</tr>'


def _value(arm: dict, name: str) -> str:
    value, interval = arm.get(name), arm["intervals"].get(name)
    if value is None:
        return "–"
    if name in RATES:
        said, between = intervals.percent(value), interval and intervals.between(interval)
        said = f"{intervals.bar(value, interval)}{said}"
    else:
        form = FIGURES[name][1]
        said, between = form.format(value), interval and " to ".join(form.format(end) for end in interval)
    return f"{said} <small>({between})</small>" if between else said


# ---- the running cost, in words ----


def _cost(arms: dict) -> str:
    prompted, tuned = arms.get("prompted"), arms.get("tuned")
    return f'<p class="cost">{cost(prompted, tuned)}</p>' if prompted and tuned else ""


def cost(prompted: dict, tuned: dict) -> str:
    """What each request costs with the prompt and what it costs tuned, in tokens and in time."""
    fewer = round(prompted["prompt_tokens"] - tuned["prompt_tokens"])
    compared = "as many" if not fewer else f"{abs(fewer):,} {'fewer' if fewer > 0 else 'more'}"
    thousand = f", {abs(fewer) * 1000:,} in a thousand requests" if fewer else ""
    return (
        f"Running cost: with the prompt, a request reads {prompted['prompt_tokens']:,.0f} tokens and writes "
        f"{prompted['reply_tokens']:,.0f}; tuned, it reads {tuned['prompt_tokens']:,.0f}, {compared}{thousand}, and "
        f"writes {tuned['reply_tokens']:,.0f}. All rows took {paint.clock(prompted['seconds'])} with the prompt and "
        f"{paint.clock(tuned['seconds'])} tuned, on this machine."
    )


def _prompt(arms: dict) -> str:
    """What the prompted arm read before its first reply."""
    messages = arms.get("prompted", {}).get("messages")
    if not messages:
        return ""
    return (
        "<details><summary>What the prompted model reads, for the first row</summary>"
        f'<div class="reply-text" tabindex="0" role="group" aria-label="The prompt">{conversation(messages)}</div>'
        "</details>"
    )


def _settings(evaluation: dict) -> str:
    settings, examples = evaluation["settings"], evaluation["settings"]["examples"]
    check = f"Valid format: {settings['check']}. " if settings["check"] else ""
    said = (
        f"{check}{examples} example{'s' * (examples != 1)} asked for, seed {settings['seed']}: with the same seed, the "
    )
    return f'<p class="hint">{paint.escape(said)}same numbers.</p>'

"""Paints the rows of a data set: what the check of all found, and one row as it will be trained on, with what the cut
at max length leaves of it."""

import json
from collections import deque
from dataclasses import replace
from itertools import pairwise

from sft import doctor
from sft.chat_format import TEMPLATE, ChatFormat, Rendered
from sft.check import Summary, Verdict, check_row
from sft.data import Row
from sft.finding import Finding
from sft.origins import Dropped
from sft.ui import paint, views
from sft.ui.checks import KINDS, Check, Progress
from sft.ui.inputs import format_of

RAW_SHOWN = 4000  # characters of a row that cannot be used
_PER_TOKEN = ("token_ids", "tokens", "offsets", "roles", "assistant_mask")


# ---- all rows ----


def tally(source: str, shape: str, progress: Progress, max_length: int) -> str:
    """The summary of the rows checked so far."""
    return (
        f'<section class="summary" aria-label="What the check found"><h4>{paint.escape(source)} '
        f"<small>{_count(progress.total, 'row')}, shape: {paint.escape(shape)}</small></h4>{_state(progress)}"
        f"{_kinds(progress.summary)}{_figures(progress.summary)}{_lengths(progress.summary, max_length)}</section>"
    )


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _state(progress: Progress) -> str:
    rows, total = progress.summary.rows, progress.total
    rate = rows / max(progress.seconds, 1e-3)
    if progress.done:
        return f'<p class="hint">All rows checked in {max(progress.seconds, 0.1):,.1f} s.</p>'
    left = paint.clock((total - rows) / rate) if rows else "?"
    said = f"{rows:,} of {total:,} rows, {rate:,.0f} a second, about {left} left. The counts below are of these rows."
    return f'{paint.progress_bar(rows / total, "rows checked")}<p class="hint">{said}</p>'


def _kinds(summary: Summary) -> str:
    counts = {kind: getattr(summary, kind) for kind in KINDS}
    items = "".join(
        f'<li class="{f"v-{kind}" if counts[kind] else "none"}"><i aria-hidden="true">{about.sign}</i> '
        f"<b>{counts[kind]:,}</b> {about.short}</li>"
        for kind, about in KINDS.items()
    )
    return f'<ul class="kinds">{items}</ul>'


def _figures(summary: Summary) -> str:
    figures = [
        ("tokens", f"{summary.tokens:,}"),
        ("trained on", _share(summary.trained, summary.tokens)),
        ("longest row", _count(summary.longest, "token")),
        ("tokens lost to the cut", _share(summary.cut_tokens, summary.tokens)),
        ("rows whose stop token is lost", f"{summary.lost_stops:,}"),
    ]
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in figures)}</dl>"


def _share(part: int, whole: int) -> str:
    if not part or not whole:
        return f"{part:,}"
    return f"{part:,} ({part / whole:.1%})" if part / whole >= 0.001 else f"{part:,} (under 0.1%)"


def _lengths(summary: Summary, max_length: int) -> str:
    """The histogram as a table, so that it can be read aloud; what is cut says so in words and is hatched."""
    bars = summary.histogram(max_length)
    if not bars:
        return ""
    most = max(rows for _, _, rows in bars)
    lines = []
    for low, high, rows in bars:
        cut, width = low > max_length, max(rows / most, 0.004 if rows else 0)
        lines.append(
            f'<tr{" class=is-cut" if cut else ""}><th scope="row">{low:,} to {high:,}</th>'
            f'<td><div style="width:{width:.1%}"></div></td><td>{rows:,}{" ✂ cut" if cut and rows else ""}</td></tr>'
        )
    return (
        f'<table class="lengths"><caption>Rows by length in tokens; max length is {max_length:,}</caption>'
        '<thead><tr><th scope="col">Tokens</th><th scope="col"></th><th scope="col">Rows</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


# ---- one row ----


def as_trained(check: Check, index: int) -> str:
    chat_format, max_length = format_of(check.asked.model), check.asked.max_length
    row = check.row(index)
    verdict = check_row(row, chat_format, max_length)
    if verdict.verdict == "wrong":
        return said(verdict) + _raw(check.table.rows[index])
    kind = "row-view is-cut" if verdict.cut_tokens else "row-view"
    return f'{said(verdict)}<div class="{kind}">{_views(row, chat_format, max_length)}</div>'


def said(verdict: Verdict) -> str:
    """A row's verdict in words."""
    reasons = "".join(f"<li>{paint.escape(problem)}</li>" for problem in verdict.problems)
    counts = f"{verdict.tokens} tokens, {verdict.trained} trained on" if verdict.tokens else ""
    kind = KINDS[verdict.verdict]
    return (
        f'<div class="verdict v-{verdict.verdict}"><b><i aria-hidden="true">{kind.sign}</i> '
        f"{paint.escape(verdict.place)}: {kind.words}</b> {counts}<ul>{reasons}</ul></div>"
    )


def _raw(row: dict) -> str:
    text = json.dumps(row, indent=2, ensure_ascii=False, default=str)
    shown = paint.escape(text[:RAW_SHOWN]) + (" …" if len(text) > RAW_SHOWN else "")
    about = "The row as it is in the data"
    return f'<p class="hint">{about}:</p><pre class="raw" tabindex="0" role="region" aria-label="{about}">{shown}</pre>'


def _views(row: Row, chat_format: ChatFormat, max_length: int) -> str:
    asked = row.conversation.messages, row.conversation.tools
    rendered = chat_format.render(*asked)
    found = doctor.examine(chat_format, *asked, rendered, max_length)
    if len(rendered.token_ids) > max_length:
        rendered, found = _cut(rendered, max_length), _within(found, rendered.offsets[max_length][0])
    listed = f"<details><summary>The doctor on this row ({len(found)})</summary>{views.findings(found)}</details>"
    return views.views(rendered, found) + (listed if found else "")


def _cut(rendered: Rendered, max_length: int) -> Rendered:
    """The row as a cut leaves it. What is lost counts as left out, so that the text shows it struck through."""
    at = rendered.offsets[max_length][0]
    return replace(
        rendered,
        text=rendered.text[:at],
        assistant_spans=[(start, min(end, at)) for start, end in rendered.assistant_spans if start < at],
        spans=[replace(span, end=min(span.end, at)) for span in rendered.spans if span.start < at],
        dropped=[each for each in rendered.dropped if each.at < at] + _lost(rendered, at),
        **{name: getattr(rendered, name)[:max_length] for name in _PER_TOKEN},
    )


def _lost(rendered: Rendered, at: int) -> list[Dropped]:
    """The text from `at` on, each message's words apart; what the template adds goes with the message before."""
    edges = {at, len(rendered.text)}
    for span in rendered.spans:
        edges |= {edge for edge in (span.start, span.end) if edge > at}
    lost, spans, before = [], deque(rendered.spans), None
    for start, end in pairwise(sorted(edges)):
        while spans and spans[0].start <= start:
            before = spans.popleft()
        role = before.role if before and start < before.end else TEMPLATE
        lost.append(Dropped(at, rendered.text[start:end], role, before.message if before else 0))
    return lost


def _within(found: list[Finding], at: int) -> list[Finding]:
    """The findings about what the cut leaves, and that it cuts: its place is where what is lost begins."""
    return [
        item if item.start is None else replace(item, end=min(item.end, at))
        for item in found
        if item.start is None or item.start < at or item.code == "stop_cut"
    ]

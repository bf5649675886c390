"""Paints one row as it will be trained on: its verdict, and what the cut at max length leaves of it."""

import json
from dataclasses import replace
from itertools import pairwise

from sft import doctor
from sft.chat_format import TEMPLATE, ChatFormat, Rendered
from sft.check import check_row
from sft.data import Row
from sft.finding import Finding
from sft.origins import Dropped
from sft.ui import paint, views
from sft.ui.checks import Check
from sft.ui.inputs import format_of
from sft.ui.sources import table_of

RAW_SHOWN = 4000  # characters of a row that cannot be used
_PER_TOKEN = ("token_ids", "tokens", "offsets", "roles", "assistant_mask")


def as_trained(check: Check, index: int) -> str:
    chat_format, max_length = format_of(check.asked.model), check.asked.max_length
    row = check.row(index)
    verdict = check_row(row, chat_format, max_length)
    if verdict.verdict == "wrong":
        return paint.verdict(verdict) + _raw(table_of(check.asked.source).rows[index])
    kind = "row-view is-cut" if verdict.cut_tokens else "row-view"
    return f'{paint.verdict(verdict)}<div class="{kind}">{_views(row, chat_format, max_length)}</div>'


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
    said = f"<details><summary>The doctor on this row ({len(found)})</summary>{views.findings(found)}</details>"
    return views.views(rendered, found) + (said if found else "")


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
    lost = []
    for start, end in pairwise(sorted(edges)):
        before = [span for span in rendered.spans if span.start <= start]
        role = before[-1].role if before and start < before[-1].end else TEMPLATE
        message = before[-1].message if before else 0
        lost.append(Dropped(at, rendered.text[start:end], role, message))
    return lost


def _within(found: list[Finding], at: int) -> list[Finding]:
    """The findings about what the cut leaves; that it cuts, the verdict says."""
    return [
        item if item.start is None else replace(item, end=min(item.end, at))
        for item in found
        if item.start is None or item.start < at
    ]

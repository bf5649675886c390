"""Paints what the check of a data set found: counts, tokens, what the cut takes, and how long the rows are."""

from sft.check import Summary
from sft.ui import paint
from sft.ui.checks import Progress

_KINDS = {
    "kept": ("✓", "kept whole"),
    "cut": ("✂", "cut at max length"),
    "dropped": ("∅", "dropped"),
    "wrong": ("✖", "wrong"),
}


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
    counts = {kind: getattr(summary, kind) for kind in _KINDS}
    items = "".join(
        f'<li class="{f"v-{kind}" if counts[kind] else "none"}"><i aria-hidden="true">{sign}</i> '
        f"<b>{counts[kind]:,}</b> {words}</li>"
        for kind, (sign, words) in _KINDS.items()
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

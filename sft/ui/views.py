"""Paints what a model reads of a conversation: text, tokens, loss mask, the prompt of chat, findings, role matrix.

Everything carries the number of its message (`data-m`) and the findings about it (`data-f`); page.js lights what
belongs together. Colour is never the only sign: the template's text is hatched, trained text underlined, tokens framed.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from itertools import groupby, islice, pairwise
from typing import NamedTuple

from sft.chat_format import TEMPLATE, Rendered
from sft.finding import Finding
from sft.origins import Dropped
from sft.token_text import byte_names
from sft.traits import Traits
from sft.ui.paint import TEXT_SHOWN, escape, panel, parted, shown, visible

# A template may write hundreds of thousands of these; painting all of them would hold up the app and the browser.
TOKENS_SHOWN = 4000
PIECES_SHOWN = 2000
FINDINGS_SHOWN = 100
_CHUNK = 96  # tokens that the browser lays out together, when they come into sight
_SIGNED = str.maketrans({" ": "·", "\n": "↵", "\t": "⇥"})
_SIGNS = {"error": "✖", "warning": "▲", "note": "●"}
_VERDICTS = {"yes": "✓ yes", "in part": "◐ in part", "no": "✗ left out", "refused": "✖ refused"}


class _Piece(NamedTuple):
    """Characters `[start, end)` that have all of this in common."""

    start: int
    end: int
    role: str
    trained: bool
    message: int | None
    findings: tuple[int, ...]


def views(rendered: Rendered, findings: list[Finding]) -> str:
    """Text, tokens and loss mask, one above the other."""
    findings = findings[:FINDINGS_SHOWN]
    pieces = list(_pieces(rendered, findings))
    painted = [
        piece._replace(end=min(piece.end, TEXT_SHOWN)) for piece in pieces[:PIECES_SHOWN] if piece.start < TEXT_SHOWN
    ]
    rest = len(rendered.text) - painted[-1].end if painted else 0
    more = f'<p class="empty">… and {rest:,} more characters</p>' if rest else ""
    return (
        f'<div class="views">{_legend(rendered)}'
        f"{panel('Text', 'what the model reads', _text(rendered, pieces, painted, findings) + more)}"
        f"{panel('Tokens', 'as it reads it', _tokens(rendered, pieces))}"
        f"{panel('Loss mask', 'what it learns to write', _mask(rendered, pieces, painted) + more)}</div>"
    )


def _legend(rendered: Rendered) -> str:
    roles = dict.fromkeys(span.role for span in rendered.spans)
    chips = "".join(f'<span class="chip role-{role}">{role}</span>' for role in roles)
    counts = ""
    if rendered.token_ids is not None:
        counts = (
            f"<strong>{len(rendered.token_ids):,}</strong> tokens, "
            f"<strong>{sum(rendered.assistant_mask):,}</strong> trained on"
        )
    left_out = '<span class="chip"><del>left out</del></span>' if rendered.dropped else ""
    return (
        f'<div class="legend"><span class="counts">{counts}</span>{chips}'
        '<span class="chip role-template">hatched: added by the template</span>'
        f'<span class="chip trained">underlined: trained on</span>{left_out}</div>'
    )


def _pieces(rendered: Rendered, findings: list[Finding]) -> Iterator[_Piece]:
    """The text cut wherever anything about it changes."""
    edges = _edges(rendered, findings)
    spans, turns = iter(rendered.spans), iter(rendered.assistant_spans)
    span, turn, inside = next(spans, None), next(turns, None), None
    for (start, end), found in zip(pairwise(edges), _found_at(edges, findings), strict=False):
        while span and start >= span.end:
            span = next(spans, None)
        while turn and start >= turn[1]:
            turn, inside = next(turns, None), None
        written = span is not None and span.start <= start
        trained = turn is not None and turn[0] <= start
        if trained and inside is None:  # the message of a turn is that of the words in it
            inside = span.message if span and span.start < turn[1] else None
        message = span.message if written else inside if trained else None
        yield _Piece(start, end, span.role if written else TEMPLATE, trained, message, found)


def _edges(rendered: Rendered, findings: list[Finding]) -> list[int]:
    edges = {0, len(rendered.text)}
    for span in rendered.spans:
        edges |= {span.start, span.end}
    for start, end in rendered.assistant_spans:
        edges |= {start, end}
    for item in findings:
        edges |= {item.start, item.end} if item.start is not None else set()
    return sorted(edges | {each.at for each in rendered.dropped})


def _found_at(edges: list[int], findings: list[Finding]) -> Iterator[tuple[int, ...]]:
    """The numbers of the findings about what begins at each edge."""
    placed = ((item.start, item.end, number) for number, item in enumerate(findings) if item.start is not None)
    waiting, here = deque(sorted(placed)), []
    for edge in edges:
        while waiting and waiting[0][0] <= edge:
            here.append(waiting.popleft())
        here = [each for each in here if each[1] > edge]
        yield tuple(sorted(number for _, _, number in here))


def _text(rendered: Rendered, pieces: list[_Piece], painted: list[_Piece], findings: list[Finding]) -> str:
    labels = _labels(pieces)
    parts = islice(_parts(rendered, painted, findings), 2 * PIECES_SHOWN)
    inside = "".join(
        _of_message(message, labels, "".join(html for _, html in group))
        for message, group in groupby(parts, key=lambda part: part[0])
    )
    return f'<div class="text-view">{inside}</div>'


def _parts(rendered: Rendered, painted: list[_Piece], findings: list[Finding]) -> Iterator[tuple[int | None, str]]:
    """Each piece and all that is left out, in the order of the text, with the message in whose frame it stands."""
    dropped = deque(sorted(rendered.dropped, key=lambda each: each.at))
    for piece in painted:
        while dropped and dropped[0].at <= piece.start:
            yield piece.message, _left_out(dropped.popleft(), findings)
        kinds = f"role-{piece.role}" + " trained" * piece.trained + " found" * bool(piece.findings)
        text = visible(rendered.text[piece.start : piece.end])
        yield piece.message, f'<span class="{kinds}"{_numbers(piece.findings)}>{text}</span>'
    if not painted or painted[-1].end == len(rendered.text):
        for each in dropped:
            yield None, _left_out(each, findings)


def _numbers(findings: tuple[int, ...]) -> str:
    return f' data-f="{" ".join(map(str, findings))}"' if findings else ""


def _labels(pieces: list[_Piece]) -> dict[int, str]:
    """Each message in words."""
    roles, trained = {}, set()
    for piece in pieces:
        if piece.role != TEMPLATE:
            roles[piece.message] = piece.role
        if piece.trained:
            trained.add(piece.message)
    return {
        message: f"message {message}, {role}, {'trained on' if message in trained else 'read only'}"
        for message, role in roles.items()
    }


def _of_message(message: int | None, labels: dict[int, str], inside: str) -> str:
    if message is None:
        return inside
    label = labels[message]
    return (
        f'<span class="msg" data-m="{message}" tabindex="0" role="group" aria-label="{label}" title="{label}">'
        f"{inside}</span>"
    )


def _left_out(each: Dropped, findings: list[Finding]) -> str:
    about = tuple(
        number
        for number, item in enumerate(findings)
        if item.start == item.end == each.at and item.message_index in (None, each.message)
    )
    label = f"left out of message {each.message}, {each.role}"
    return (
        f'<del class="role-{each.role}" data-m="{each.message}"{_numbers(about)} aria-label="{label}" '
        f'title="{label}">{shown(each.text)}</del>'
    )


def _tokens(rendered: Rendered, pieces: list[_Piece]) -> str:
    if rendered.token_ids is None:
        return '<p class="empty">A template alone has no tokens; choose a model for them.</p>'
    if not rendered.token_ids:
        return '<p class="empty">No tokens.</p>'
    messages = _at_each(rendered.offsets[:TOKENS_SHOWN], pieces)
    labels = _labels(pieces)
    chips = [(messages[at], _chip(rendered, at)) for at in range(min(len(rendered.token_ids), TOKENS_SHOWN))]
    chunks = "".join(_chunk(chips[at : at + _CHUNK], labels) for at in range(0, len(chips), _CHUNK))
    more = len(rendered.token_ids) - TOKENS_SHOWN
    rest = f'<p class="empty">… and {more:,} more tokens</p>' if more > 0 else ""
    return f'<div class="token-view">{chunks}{rest}</div>'


def _chunk(chips: list[tuple[int | None, str]], labels: dict[int, str]) -> str:
    groups = []
    for message, group in groupby(chips, key=lambda chip: chip[0]):
        mark = "" if message is None else f' data-m="{message}" title="{labels[message]}"'
        groups.append(f'<span class="group"{mark}>{"".join(chip for _, chip in group)}</span>')
    return f'<div class="chunk">{"".join(groups)}</div>'


def _at_each(offsets: list[tuple[int, int]], pieces: list[_Piece]) -> list[int | None]:
    """The message of each token."""
    found, waiting = [], iter(pieces)
    piece = next(waiting, None)
    for at, _ in offsets:
        while piece and at >= piece.end:
            piece = next(waiting, None)
        found.append(piece.message if piece else None)
    return found


def _chip(rendered: Rendered, at: int) -> str:
    token, (start, end) = rendered.tokens[at], rendered.offsets[at]
    neighbours = rendered.offsets[max(at - 1, 0) : at] + rendered.offsets[at + 1 : at + 2]
    shown = escape(rendered.text[start:end].translate(_SIGNED))
    kinds = f"token role-{rendered.roles[at]}" + " trained" * rendered.assistant_mask[at]
    if (start, end) in neighbours:  # one of several tokens that make up one character
        shown, kinds = escape(byte_names(token)), kinds + " bytes"
    elif rendered.text[start:end] == token and token.startswith(("<", "[")) and len(token) > 2:
        kinds += " special"
    return f'<span class="{kinds}">{shown or escape(token)}<small>{rendered.token_ids[at]}</small></span>'


def _mask(rendered: Rendered, pieces: list[_Piece], painted: list[_Piece]) -> str:
    """What is only read and what is learned, in turn, each with its length."""
    if not any(piece.trained for piece in pieces):
        why = "no assistant turn whose place is certain" if rendered.unsure else "no assistant turn to learn from"
        return f'<p class="empty">Nothing here is trained on: there is {why}.</p>'
    ends = {group[0].start: group[-1].end for group in map(list, _in_turn(pieces))}
    rows = []
    for group in _in_turn(painted):
        parts = list(group)
        word, kind = ("learns", "trained") if parts[0].trained else ("reads", "read")
        length = _length(rendered, parts[0].start, ends[parts[0].start])
        inside = "".join(_of_one(rendered, list(run)) for _, run in groupby(parts, key=lambda piece: piece.message))
        rows.append(f'<li class="{kind}"><b>{word} {length}</b> <span>{inside}</span></li>')
    return f'<ol class="mask-view">{"".join(rows)}</ol>'


def _in_turn(pieces: list[_Piece]) -> Iterator[Iterator[_Piece]]:
    """The pieces, those together that are read, and those of each turn that is learned."""
    for _, group in groupby(pieces, key=lambda piece: (piece.trained, piece.trained and piece.message)):
        yield group


def _of_one(rendered: Rendered, parts: list[_Piece]) -> str:
    mark = "" if parts[0].message is None else f' data-m="{parts[0].message}"'
    return f"<span{mark}>{visible(rendered.text[parts[0].start : parts[-1].end])}</span>"


def _length(rendered: Rendered, start: int, end: int) -> str:
    if rendered.offsets is None:
        return f"{end - start:,} characters"
    before, until = (bisect_left(rendered.offsets, place, key=lambda offset: offset[0]) for place in (start, end))
    return f"{until - before:,} token{'' if until - before == 1 else 's'}"


# ---- what chat sends ----


def prompt(rendered: Rendered) -> str:
    """The prompt of the last reply beside what training sees, and whether the one begins the other."""
    given = rendered.prompt
    if given is None:
        return '<p class="empty">The template does not render a prompt for this conversation.</p>'
    same = given.parts_at is None
    kind = "goes-on" if same else "parts"
    at = len(given.text) if same else given.parts_at
    here = same and given.training == rendered.text
    length = f" {_length(rendered, 0, at)}." if here else ""
    verdict = (
        f"<b>✓ The prompt begins the training text.</b>{length} What follows is what the model learns to write."
        if same
        else "<b>✖ The prompt and the training text part here.</b> Chat asks in a way that training never saw."
    )
    return (
        f'<p class="{"good" if same else "bad"}">{verdict}</p><div class="pair">'
        f"{panel('Chat sends', 'ends in the generation prompt', parted(given.text, at, kind))}"
        f"{panel('Training sees', 'goes on with the reply', parted(given.training, at, kind))}</div>"
    )


# ---- the doctor ----


def findings(found: list[Finding]) -> str:
    """The findings as a list; each that has a place has a button that goes there."""
    if not found:
        return '<p class="good" role="status"><b>✓ The doctor finds nothing to say about this conversation.</b></p>'
    counts = [(level, sum(item.level == level for item in found)) for level in _SIGNS]
    said = ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts if count)
    items = "".join(_finding(number, item) for number, item in enumerate(found[:FINDINGS_SHOWN]))
    if len(found) > FINDINGS_SHOWN:
        items += f'<li class="empty">… and {len(found) - FINDINGS_SHOWN:,} more</li>'
    return f'<p class="found-counts" role="status">The doctor: {said}</p><ul class="findings">{items}</ul>'


def _finding(number: int, item: Finding) -> str:
    goes = item.start is not None or item.message_index is not None
    message = "" if item.message_index is None else f' data-to-m="{item.message_index}"'
    button = f'<button type="button" data-to-f="{number}"{message}>Show where</button>' if goes else ""
    return (
        f'<li class="finding {item.level}"><b><i aria-hidden="true">{_SIGNS[item.level]}</i> {item.level}</b> '
        f"{escape(item.message)} <span>→ {escape(item.remedy)}</span> {button}</li>"
    )


def role_matrix(traits: Traits) -> str:
    """What the template does with each kind of message."""
    rows = "".join(
        f'<tr class="v-{item.verdict.replace(" ", "-")}"><th scope="row">{escape(item.name)}</th>'
        f"<td>{_VERDICTS[item.verdict]}</td><td>{escape(item.about)}</td></tr>"
        for item in traits.abilities
    )
    return (
        '<table class="matrix"><caption>Found by asking the template</caption><thead><tr><th scope="col">What</th>'
        f'<th scope="col">Does it read it?</th><th scope="col">How</th></tr></thead><tbody>{rows}</tbody></table>'
    )

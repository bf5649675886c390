"""Paints two templates on one conversation, and what becomes of a model that is tuned with the one and asked with the
other."""

import re
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher

from sft.chat_format import ChatFormat, Rendered
from sft.mismatch import Mismatch
from sft.ui.paint import TEXT_SHOWN, escape, panel, parted, visible

_WORDS = re.compile(r"<\|?[^<>\s]{1,40}\|?>|\w+|\s|[^\w\s]")
FRAMED = "Framed: what the other does not have."
LONGEST = 3000  # words that are compared one by one, where the texts differ; it takes up to the square of it


def comparison(formats: list[ChatFormat], rendered: list[Rendered]) -> str:
    """Both texts side by side, what is not in the other marked, with their token counts."""
    texts = [each.text for each in rendered]
    pairs = _pairs(*(_WORDS.findall(text[:TEXT_SHOWN]) for text in texts))
    if texts[0] == texts[1]:
        verdict = "<b>✓ Both give the same text.</b>"
    else:
        framed = "Nothing is framed: they differ over too many words." if pairs is None else FRAMED
        verdict = f"{_lengths(rendered)} {framed}"
    panels = "".join(
        panel(form.origin, _count(each), f'<div class="text-view">{_marked(each.text, pairs, side)}</div>')
        for side, (form, each) in enumerate(zip(formats, rendered, strict=True))
    )
    return f'<p>{verdict}</p><div class="pair">{panels}</div>'


def _count(rendered: Rendered) -> str:
    if rendered.token_ids is None:
        return f"{len(rendered.text):,} characters"
    return f"{len(rendered.token_ids):,} tokens, {sum(rendered.assistant_mask):,} trained on"


def _lengths(rendered: list[Rendered]) -> str:
    if rendered[0].token_ids is None:
        return ""
    first, second = (len(each.token_ids) for each in rendered)
    more = "as many tokens as" if first == second else f"{abs(first - second):,} tokens {_than(first, second)} than"
    return f"The first has {more} the second."


def _than(first: int, second: int) -> str:
    return "fewer" if first < second else "more"


def _marked(text: str, pairs: list[tuple[str, str]] | None, side: int) -> str:
    """One of the two texts as HTML, with what differs marked."""
    rest = len(text) - TEXT_SHOWN
    more = f"<b> … and {rest:,} more characters</b>" if rest > 0 else ""
    if pairs is None:
        return visible(text[:TEXT_SHOWN]) + more
    painted = []
    for pair in pairs:
        part = visible(pair[side])
        painted.append(part if pair[0] == pair[1] or not part else f'<mark class="differs">{part}</mark>')
    return "".join(painted) + more


# ---- what is in both ----

_Pairs = Iterator[tuple[list, list]]  # parts of the one and the other, in turn; equal parts are in both


def _pairs(one: list[str], other: list[str]) -> list[tuple[str, str]] | None:
    """Both texts cut into parts that are equal or differ; None where they differ over too many words to tell."""
    start, end = _common(one, other)
    if max(len(one), len(other)) - start - end > LONGEST:
        return None
    return [("".join(a), "".join(b)) for a, b in _within_common(one, other, _aligned) if a or b]


def _aligned(one: list[str], other: list[str]) -> _Pairs:
    """Where there are many words, frequent ones do not count at first, so that the time stays small. Between those
    that do, what both begin and end with is found all the same."""
    for kind, a, b, c, d in SequenceMatcher(None, one, other).get_opcodes():
        if kind == "equal":
            yield one[a:b], other[c:d]
        else:
            yield from _within_common(one[a:b], other[c:d], lambda *middle: [middle])


def _within_common(one: list[str], other: list[str], inside: Callable) -> _Pairs:
    """What both begin with, what `inside` makes of the rest, and what both end with."""
    start, end = _common(one, other)
    yield one[:start], other[:start]
    yield from inside(one[start : len(one) - end], other[start : len(other) - end])
    yield one[len(one) - end :], other[len(other) - end :]


def _common(one: list[str], other: list[str]) -> tuple[int, int]:
    """How many words both begin with, and how many of the rest both end with."""
    least = min(len(one), len(other))
    start = next((at for at in range(least) if one[at] != other[at]), least)
    return start, next((at for at in range(least - start) if one[-1 - at] != other[-1 - at]), least - start)


# ---- what if ----


def what_if(found: Mismatch) -> str:
    """The mismatch in words, and the place where prompt and training text part."""
    kind, sign = ("good", "✓") if found.harmless else ("bad", "✖")
    head = "Nothing bad: the two fit." if found.harmless else "They do not fit."
    said = "".join(f"<li>{escape(line)}</li>" for line in found.said())
    at = len(found.prompt) if found.parts_at is None else found.parts_at
    panels = "".join(
        panel(title, "", parted(text, at, "parts"))
        for title, text in (("Tuning teaches", found.training), ("Chat asks", found.prompt))
    )
    verdict = f'<p class="{kind}"><b>{sign} {head}</b></p><ul>{said}</ul>'
    return f'<div class="card">{verdict}<div class="pair">{panels}</div></div>'

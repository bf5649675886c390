"""Paints two templates on one conversation, and what becomes of a model that is tuned with the one and asked with the
other."""

import re
from difflib import SequenceMatcher

from sft.chat_format import ChatFormat, Rendered
from sft.mismatch import Mismatch
from sft.ui.paint import escape, visible

_WORDS = re.compile(r"<\|?[^<>\s]{1,40}\|?>|\w+|\s|[^\w\s]")
_LONGEST = 20_000  # characters that are compared word by word; comparing takes the square of it


def comparison(formats: list[ChatFormat], rendered: list[Rendered]) -> str:
    """Both texts side by side, what is not in the other marked, with their token counts."""
    marked = _marked(*(each.text for each in rendered))
    same = rendered[0].text == rendered[1].text
    verdict = "<b>✓ Both give the same text.</b>" if same else _lengths(rendered)
    panels = "".join(
        f'<section class="panel"><h3>{escape(form.origin)} <small>{_count(each)}</small></h3>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(form.origin)}">'
        f'<div class="text-view">{text}</div></div></section>'
        for form, each, text in zip(formats, rendered, marked, strict=True)
    )
    return f'<p>{verdict}</p><div class="pair">{panels}</div>'


def _count(rendered: Rendered) -> str:
    if rendered.token_ids is None:
        return f"{len(rendered.text):,} characters"
    return f"{len(rendered.token_ids):,} tokens, {sum(rendered.assistant_mask):,} trained on"


def _lengths(rendered: list[Rendered]) -> str:
    if rendered[0].token_ids is None:
        return "Framed: what the other text does not have."
    first, second = (len(each.token_ids) for each in rendered)
    more = "as many tokens as" if first == second else f"{abs(first - second):,} tokens {_than(first, second)} than"
    return f"The first has {more} the second. Framed: what the other does not have."


def _than(first: int, second: int) -> str:
    return "fewer" if first < second else "more"


def _marked(one: str, other: str) -> tuple[str, str]:
    """Both texts as HTML, with what differs marked."""
    if max(len(one), len(other)) > _LONGEST:
        return visible(one), visible(other)
    words = _WORDS.findall(one), _WORDS.findall(other)
    painted = [], []
    for kind, *spans in SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        for side, (start, end) in enumerate((spans[:2], spans[2:])):
            text = visible("".join(words[side][start:end]))
            painted[side].append(text if kind == "equal" or not text else f'<mark class="differs">{text}</mark>')
    return "".join(painted[0]), "".join(painted[1])


def what_if(found: Mismatch) -> str:
    """The mismatch in words, and the place where prompt and training text part."""
    kind, sign = ("good", "✓") if found.harmless else ("bad", "✖")
    head = "Nothing bad: the two fit." if found.harmless else "They do not fit."
    said = "".join(f"<li>{escape(line)}</li>" for line in found.said())
    at = len(found.prompt) if found.parts_at is None else found.parts_at
    panels = "".join(
        f'<section class="panel"><h3>{title}</h3><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f'<div class="text-view"><span class="same">{visible(text[:at])}</span>'
        f'<mark class="parts">{visible(text[at:]) or "▮"}</mark></div></div></section>'
        for title, text in (("Tuning teaches", found.training), ("Chat asks", found.prompt))
    )
    verdict = f'<p class="{kind}"><b>{sign} {head}</b></p><ul>{said}</ul>'
    return f'<div class="card">{verdict}<div class="pair">{panels}</div></div>'

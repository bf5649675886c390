"""Paints the rows of an evaluation, a page of them at a time: what was asked and wanted, and what each arm answered."""

import math

from sft.ui import paint

ARMS = {"base": "Base", "prompted": "Base, prompted", "tuned": "Tuned"}
PAGE = 8  # rows at a time
SHOWN = 1500  # characters of one text
FILTERS = {
    "all": "All",
    "disagree": "Arms disagree",
    "tuned": "Only tuned right",
    "prompted": "Only prompted right",
    "wrong": "All wrong",
}


def matching(evaluation: dict, kind: str) -> list[int]:
    """The rows that a filter leaves, by their place."""
    return [at for at in range(len(evaluation["rows"])) if _matches(evaluation, at, kind)]


def _matches(evaluation: dict, at: int, kind: str) -> bool:
    if kind == "all":
        return True
    right = rights(evaluation, at)
    if kind == "disagree":
        answers = right.values() if _marked(evaluation) else [arm["replies"][at] for arm in evaluation["arms"].values()]
        return len(set(answers)) > 1
    return [arm for arm, is_right in right.items() if is_right] == ([] if kind == "wrong" else [kind])


def _marked(evaluation: dict) -> bool:
    """Whether other words than the wanted ones are wrong. Where the verdict rests on the loss they may be as good."""
    return evaluation["verdict"]["measure"] != "loss"


def rights(evaluation: dict, at: int) -> dict[str, bool]:
    """Which arms answered a row right: in the right format where the verdict rests on that, else as wanted."""
    by_format = evaluation["verdict"]["measure"] == "valid_format"
    return {name: arm["valid" if by_format else "exact"][at] for name, arm in evaluation["arms"].items()}


def rows(evaluation: dict, kind: str, page: int) -> tuple[str, int, int]:
    """One page of the rows that a filter leaves, its number from 0, and how many pages there are."""
    found = matching(evaluation, kind)
    pages = max(1, math.ceil(len(found) / PAGE))
    page = min(max(page, 0), pages - 1)
    shown = found[page * PAGE : (page + 1) * PAGE]
    right = "in the right format" if evaluation["verdict"]["measure"] == "valid_format" else "exactly as wanted"
    said = f"{len(found):,} of {len(evaluation['rows']):,} rows; right means {right}"
    if not found:
        return paint.empty("No row is like that."), 0, 1
    said += f", page {page + 1:,} of {pages:,}" if pages > 1 else ""
    painted = "".join(_row(evaluation, at) for at in shown)
    return f'<p class="hint" role="status">{said}</p><div class="evaluated">{painted}</div>', page, pages


def _row(evaluation: dict, at: int) -> str:
    row, right, number = evaluation["rows"][at], rights(evaluation, at), f"Row {at + 1:,}"
    replies = [("Wanted", "", row["wanted"])]
    marks = {name: _mark(is_right) if _marked(evaluation) else "" for name, is_right in right.items()}
    replies += [(ARMS[name], marks[name], arm["replies"][at]) for name, arm in evaluation["arms"].items()]
    cells = [
        f"<div><h5>{title}{mark}</h5>{_box(f'{number}, {title}', _cut(text))}</div>" for title, mark, text in replies
    ]
    asked = _box(f"{number}, asked", conversation(row["messages"]), "asked")
    return f'<article><h4>{number}</h4>{asked}<div class="replies">{"".join(cells)}</div></article>'


def _mark(right: bool) -> str:
    return ' <span class="good">✓ right</span>' if right else ' <span class="bad">✗ wrong</span>'


def _box(label: str, inside: str, kind: str = "") -> str:
    """A text that scrolls, also with keys. `inside` is HTML."""
    return f'<div class="reply-text {kind}" tabindex="0" role="group" aria-label="{label}">{inside}</div>'


def conversation(messages: list[dict]) -> str:
    """Messages one below the other, each after its role."""
    return "\n".join(f"<b>{paint.escape(each['role'])}</b> {_cut(each.get('content') or '')}" for each in messages)


def _cut(text: str) -> str:
    return (paint.escape(text[:SHOWN]) or "∅") + (" …" if len(text) > SHOWN else "")

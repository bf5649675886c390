"""A verdict for every row of a data set: kept, cut at max length, dropped, or wrong, and why.

The same conversion and the same `ChatFormat.encode` that a run uses, so the verdict is what training will do. Rows pass
one by one and only counts are kept, so that a large data set takes no more memory than its table.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise

from sft.chat_format import ChatFormat
from sft.data import Row, conversations
from sft.errors import SandboxBusy, TemplateError
from sft.tables import Table

BARS = 12  # about as many ranges of lengths can be read at a glance
TRIES, WAIT = 5, 1.0  # times, and seconds between them, to ask a sandbox that is busy


@dataclass(frozen=True)
class Verdict:
    """`verdict` is 'kept', 'cut', 'dropped' or 'wrong'. `tokens` counts the whole row, before any cut; `cut_tokens`
    of them are beyond max length. `lost_stop`: a cut row does not show where its last answer ends."""

    place: str
    verdict: str
    tokens: int = 0
    trained: int = 0
    problems: tuple[str, ...] = ()
    cut_tokens: int = 0
    lost_stop: bool = False


@dataclass
class Summary:
    """Counts over the rows checked so far; `longest` is in tokens, `lengths` says how many rows have how many."""

    rows: int = 0
    kept: int = 0
    cut: int = 0
    dropped: int = 0
    wrong: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    cut_tokens: int = 0
    lost_stops: int = 0
    lengths: Counter = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        self.rows += 1
        setattr(self, verdict.verdict, getattr(self, verdict.verdict) + 1)
        self.tokens += verdict.tokens
        self.trained += verdict.trained
        self.longest = max(self.longest, verdict.tokens)
        self.cut_tokens += verdict.cut_tokens
        self.lost_stops += verdict.lost_stop
        if verdict.verdict != "wrong":  # a wrong row has no tokens
            self.lengths[verdict.tokens] += 1

    def histogram(self, max_length: int | None = None) -> list[tuple[int, int, int]]:
        """(low, high, rows) for about a dozen ranges of lengths, both ends in tokens and included, none left out
        between the shortest and the longest row. `max_length` is the end of a range, so that no range is cut in two."""
        if not self.lengths:
            return []
        edges = _edges(min(self.lengths), self.longest)
        if max_length and edges[0] < max_length < edges[-1]:
            edges = sorted({*edges, max_length})
        counts = Counter()
        for length, rows in self.lengths.items():
            counts[next(edge for edge in edges[1:] if length <= edge)] += rows
        return [(low + 1, high, counts[high]) for low, high in pairwise(edges)]


def _edges(shortest: int, longest: int) -> list[int]:
    """Round numbers, the first below `shortest` and the last not below `longest`: steps of one size, or, where the
    longest is many times the shortest, doublings."""
    low = shortest - 1
    if longest > 8 * shortest and longest > 2 * BARS:
        edges = [0, 1 << max(low.bit_length(), 3)]
        while edges[-1] < longest:
            edges.append(2 * edges[-1])
        return edges
    sizes = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    step = next(size for size in sizes if (longest - low) / size <= BARS)
    return list(range(low // step * step, longest + step, step))


def check(
    table: Table,
    chat_format: ChatFormat,
    max_length: int | None = None,
    columns: str | None = None,
    indices: Iterable[int] | None = None,
) -> Iterator[Verdict]:
    """The verdicts on all rows, or on those of `indices`, in order, each made when it is asked for."""
    for row in conversations(table, columns, indices):
        yield _patiently(row, chat_format, max_length)


def _patiently(row: Row, chat_format: ChatFormat, max_length: int | None) -> Verdict:
    for _ in range(TRIES - 1):
        with suppress(SandboxBusy):
            return check_row(row, chat_format, max_length)
        time.sleep(WAIT)
    return check_row(row, chat_format, max_length)


def check_row(row: Row, chat_format: ChatFormat, max_length: int | None = None) -> Verdict:
    """One row's verdict. Raises SandboxBusy, which says nothing about the row."""
    if row.conversation is None:
        return Verdict(row.place, "wrong", problems=row.problems)
    try:
        whole = chat_format.encode(row.conversation)
    except SandboxBusy:
        raise
    except TemplateError as error:
        return Verdict(row.place, "wrong", problems=(error.message,))
    # the cut that `encode` makes; what it took from the answers is only seen beside the whole row
    encoded = replace(whole, input_ids=whole.input_ids[:max_length], labels=whole.labels[:max_length])
    verdict, trained = encoded.verdict, encoded.trained
    lost_stop = verdict == "cut" and whole.trained > trained
    ending = "its stop token is lost" if lost_stop else "no token that is trained on is lost"
    problems = {
        "kept": (),
        "cut": (f"{encoded.full_length} tokens, cut at {max_length}: {ending}",),
        "dropped": (f"no token to train on within {max_length} tokens" if max_length else "no token to train on",),
    }[verdict]
    cut_tokens = encoded.full_length - len(encoded.input_ids)
    return Verdict(row.place, verdict, encoded.full_length, trained, problems, cut_tokens, lost_stop)

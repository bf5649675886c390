"""The verdicts on all rows of a data set, made a part at a time and kept small: one letter a row.

They are kept here and not in a visitor's session: pages that ask for the same share the work, and a check that was
broken off goes on where it stopped. A check holds its table, so that no step has to read it again.
"""

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from sft.chat_format import ChatFormat
from sft.check import Summary, check_row
from sft.data import Row, conversations
from sft.errors import SandboxBusy
from sft.ui.inputs import format_of, stamp
from sft.ui.sources import MOST_KEPT, Kept, Source, table_of, weight

PAUSE_EVERY, PAUSE = 4, 0.0003  # rows, seconds: lets other threads in, so that the page answers meanwhile


class Kind(NamedTuple):
    """How a verdict is shown: a sign, a word or two for a count, and words for one row."""

    sign: str
    short: str
    words: str


KINDS = {
    "kept": Kind("✓", "kept whole", "kept whole"),
    "cut": Kind("✂", "cut at max length", "cut at max length"),
    "dropped": Kind("∅", "dropped", "dropped: nothing to train on"),
    "wrong": Kind("✖", "wrong", "cannot be used"),
}
LETTERS = {kind: kind[:1].encode() for kind in KINDS}


class Asked(NamedTuple):
    """What the verdicts depend on."""

    source: Source
    model: str
    max_length: int
    columns: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a check has come: the summary of its first rows, of `total` in all, after `seconds` of work."""

    summary: Summary
    total: int
    seconds: float

    @property
    def done(self) -> bool:
        return self.summary.rows == self.total


class Check:
    """The verdicts so far on the rows of a data set; `advance` makes more. Any number of pages may call it at once."""

    def __init__(self, asked: Asked):
        self.asked, self.table = asked, table_of(asked.source)
        self.verdicts = bytearray()
        self._summary, self._seconds = Summary(), 0.0
        self._lock = threading.Lock()

    def advance(self, seconds: float) -> Progress:
        """Checks rows for about so many seconds."""
        chat_format = format_of(self.asked.model)
        with self._lock:
            began = time.monotonic()
            with suppress(SandboxBusy):  # the next step tries that row again
                self._check(chat_format, began + seconds)
            self._seconds += time.monotonic() - began
            summary = replace(self._summary, lengths=self._summary.lengths.copy())
            return Progress(summary, len(self.table.rows), self._seconds)

    def _check(self, chat_format: ChatFormat, until: float) -> None:
        todo = range(len(self.verdicts), len(self.table.rows))
        for row in conversations(self.table, self.asked.columns, todo):
            verdict = check_row(row, chat_format, self.asked.max_length)
            self.verdicts += LETTERS[verdict.verdict]
            self._summary.add(verdict)
            if self._summary.rows % PAUSE_EVERY == 0:
                time.sleep(PAUSE)
            if time.monotonic() >= until:
                break

    def find(self, kind: str, at: int, way: int) -> int | None:
        """The next checked row after `at` (or before it, where `way` is -1) with the verdict `kind`."""
        letter = LETTERS[kind]
        found = self.verdicts.find(letter, at + 1) if way > 0 else self.verdicts.rfind(letter, 0, max(at, 0))
        return None if found < 0 else found

    def row(self, index: int) -> Row:
        return next(conversations(self.table, self.asked.columns, [index]))


def check_of(asked: Asked) -> Check:
    """The check of what was asked, begun or not; another one when the data or the model has changed since."""
    return _CHECKS.get((asked, stamp(asked.source.name), stamp(asked.model)), lambda: Check(asked))


_CHECKS = Kept(MOST_KEPT, lambda key, check: weight(key[1], check.table))

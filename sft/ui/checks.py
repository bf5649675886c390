"""The verdicts on all rows of a data set, made a part at a time and kept small: one letter a row.

They are kept here and not in a visitor's session: pages that ask for the same share the work, and a check that was
broken off goes on where it stopped.
"""

import threading
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from sft.check import Summary, check
from sft.data import Row, conversations
from sft.ui.inputs import format_of, stamp
from sft.ui.sources import Source, table_of

CHECKS_KEPT = 32  # a byte a row each
PAUSE_EVERY, PAUSE = 4, 0.0003  # rows, seconds: lets other threads in, so that the page answers meanwhile
LETTERS = {"kept": b"k", "cut": b"c", "dropped": b"d", "wrong": b"w"}


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
        self.asked = asked
        self.verdicts = bytearray()
        self._summary, self._seconds = Summary(), 0.0
        self._lock = threading.Lock()

    def advance(self, seconds: float) -> Progress:
        """Checks rows for about so many seconds."""
        table, chat_format = table_of(self.asked.source), format_of(self.asked.model)
        with self._lock:
            began = time.monotonic()
            todo = range(len(self.verdicts), len(table.rows))
            for verdict in check(table, chat_format, self.asked.max_length, self.asked.columns, todo):
                self.verdicts += LETTERS[verdict.verdict]
                self._summary.add(verdict)
                if self._summary.rows % PAUSE_EVERY == 0:
                    time.sleep(PAUSE)
                if time.monotonic() - began >= seconds:
                    break
            self._seconds += time.monotonic() - began
            summary = replace(self._summary, lengths=self._summary.lengths.copy())
            return Progress(summary, len(table.rows), self._seconds)

    def find(self, kind: str, at: int, way: int) -> int | None:
        """The next checked row after `at` (or before it, where `way` is -1) with the verdict `kind`."""
        letter = LETTERS[kind]
        found = self.verdicts.find(letter, at + 1) if way > 0 else self.verdicts.rfind(letter, 0, max(at, 0))
        return None if found < 0 else found

    def row(self, index: int) -> Row:
        return next(conversations(table_of(self.asked.source), self.asked.columns, [index]))


def check_of(asked: Asked) -> Check:
    """The check of what was asked, begun or not; another one when the data or the model has changed since."""
    return _check_of(asked, stamp(asked.source.name), stamp(asked.model))


@lru_cache(maxsize=CHECKS_KEPT)
def _check_of(asked: Asked, *stamps: tuple) -> Check:
    return Check(asked)

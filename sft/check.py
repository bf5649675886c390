"""A verdict for every row of a data set: kept, cut at max length, dropped, or wrong, and why.

The same conversion and the same `ChatFormat.encode` that a run uses, so the verdict is what training will do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sft.chat_format import ChatFormat
from sft.data import Row, Table, conversations
from sft.errors import TemplateError


@dataclass(frozen=True)
class Verdict:
    """`verdict` is 'kept', 'cut', 'dropped' or 'wrong'. `tokens` counts the whole row, before any cut."""

    place: str
    verdict: str
    tokens: int = 0
    trained: int = 0
    problems: tuple[str, ...] = ()


@dataclass
class Summary:
    """Counts over the rows checked so far; `longest` is in tokens."""

    rows: int = 0
    kept: int = 0
    cut: int = 0
    dropped: int = 0
    wrong: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0

    def add(self, verdict: Verdict) -> None:
        self.rows += 1
        setattr(self, verdict.verdict, getattr(self, verdict.verdict) + 1)
        self.tokens += verdict.tokens
        self.trained += verdict.trained
        self.longest = max(self.longest, verdict.tokens)


def check(table: Table, chat_format: ChatFormat, max_length: int | None = None) -> Iterator[Verdict]:
    """The verdicts, in the order of the rows."""
    for row in conversations(table):
        yield check_row(row, chat_format, max_length)


def check_row(row: Row, chat_format: ChatFormat, max_length: int | None = None) -> Verdict:
    if row.conversation is None:
        return Verdict(row.place, "wrong", problems=row.problems)
    try:
        encoded = chat_format.encode(row.conversation, max_length)
    except TemplateError as error:
        return Verdict(row.place, "wrong", problems=(error.message,))
    problems = {
        "kept": (),
        "cut": (f"{encoded.full_length} tokens, cut at {max_length}: its stop token is lost",),
        "dropped": (f"no token to train on within {max_length} tokens" if max_length else "no token to train on",),
    }[encoded.verdict]
    return Verdict(row.place, encoded.verdict, encoded.full_length, encoded.trained, problems)

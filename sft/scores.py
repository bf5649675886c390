"""What counts as exact, as ended and as looping, and how an arm of an evaluation did, row by row. Needs no torch."""

import json
from dataclasses import dataclass

import numpy as np

from sft.bootstrap import Tally, interval
from sft.reply_format import ReplyFormat, json_value

MEASURES = ("loss", "exact_match", "valid_format", "stop_rate", "loop_rate")
SHORT = 12  # words: up to so many, an answer has one right wording
_LOOP_TIMES, _LOOP_TOKENS = 3, 8


def exact(reply: str, wanted: str) -> bool:
    """The same text but for white space around it; where JSON is wanted, the same values however they are laid out.

    `true`, `1` and `1.0` are three values, though Python takes them for equal.
    """
    if reply.strip() == wanted.strip():
        return True
    value, given = json_value(wanted), json_value(reply)
    return value is not None and json.dumps(given, sort_keys=True) == json.dumps(value, sort_keys=True)


def loops(token_ids: list[int], stopped: bool) -> bool:
    """A reply loops where it did not stop by itself and ends in the same tokens at least three times in a row, eight
    tokens or more in all."""
    if stopped:
        return False
    for period in range(1, len(token_ids) // _LOOP_TIMES + 1):
        length = max(_LOOP_TIMES * period, _LOOP_TOKENS)
        end = token_ids[-length:]
        if len(end) == length and end[period:] == end[:-period]:
            return True
    return False


@dataclass(frozen=True)
class Arm:
    """One contestant's replies. Every list has an entry a row; `valid` is None where there is no format to keep.

    `losses` are summed over the tokens of a row's wanted answer, `answer_tokens` how many these are. `messages` is the
    prompt of the first row; `seconds` the time that all replies took.
    """

    messages: list[dict]
    replies: list[str]
    exact: list[bool]
    valid: list[bool] | None
    stopped: list[bool]
    looping: list[bool]
    prompt_tokens: list[int]
    reply_tokens: list[int]
    losses: list[float]
    answer_tokens: list[int]
    seconds: float

    def tally(self, measure: str) -> Tally | None:
        """One of MEASURES; None where it cannot be taken."""
        if measure == "loss":
            losses, counts = np.array(self.losses), np.array(self.answer_tokens)
            return Tally(losses, counts) if counts.sum() and np.isfinite(losses).all() else None
        lists = {
            "exact_match": self.exact,
            "valid_format": self.valid,
            "stop_rate": self.stopped,
            "loop_rate": self.looping,
        }
        found = lists[measure]
        return Tally(np.array(found, dtype=float)) if found else None

    def value(self, measure: str) -> float | None:
        tally = self.tally(measure)
        return None if tally is None else tally.value

    @property
    def tokens(self) -> float:
        """What a request costs, in the mean: tokens of prompt and reply."""
        return float(np.mean(self.prompt_tokens) + np.mean(self.reply_tokens))

    def as_json(self, seed: int) -> dict:
        """Rates are shares of the rows, tokens means per row, seconds those of all rows; intervals are of 95 %."""
        tallies = {measure: self.tally(measure) for measure in MEASURES}
        return {
            **{measure: self.value(measure) for measure in MEASURES},
            "prompt_tokens": float(np.mean(self.prompt_tokens)),
            "reply_tokens": float(np.mean(self.reply_tokens)),
            "seconds": self.seconds,
            "rows": len(self.replies),
            "intervals": {name: interval(tally, seed) for name, tally in tallies.items() if tally is not None},
            "replies": self.replies,
            "exact": self.exact,
            "valid": self.valid,
            "messages": self.messages,
        }


def measure_for(wanted: list[str], reply_format: ReplyFormat | None) -> str:
    """The measure that tells whether replies are good, from the answers that are wanted.

    Answers of which nine in ten are short have one right wording: exact match. Longer ones can be right in other words:
    their format counts, if they have one, else the loss.
    """
    if sum(len(answer.split()) <= SHORT for answer in wanted) >= 0.9 * len(wanted):
        return "exact_match"
    return "valid_format" if reply_format else "loss"

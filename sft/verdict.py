"""Prompt or tune? One sentence, by a rule.

The rule compares three arms on one measure (`scores.measure_for`): the base model as it is, the same with the best
prompt, and the tuned model. Differences are taken row by row, with an interval that leaves 5 % out on each side
(bootstrap.py); one is clear where its whole interval is above zero, and small where none of it is above MARGIN. The
rival of tuning is the prompted model where that is clearly better than the base, else the base. In this order:

1. **unclear** where an arm is missing, or there are fewer than FEWEST rows.
2. **neither** where both differences to the base are small and none is clear: nothing was gained. **unclear** where
   none is clear, and one may be more than small.
3. **neither** where prompted and tuned both get clearly less than HALF of the rows right (the loss has no such mark);
   **unclear** where both get less, and one not clearly.
4. **neither** where neither of them is better than the base by more than MARGIN: what is gained is real but small.
5. **tune** where tuned is clearly better than prompted, and than its rival by more than MARGIN.
6. **prompt** where prompted is the rival, and tuned is better than it by a small difference at most, or clearly but by
   no more than MARGIN: tuning has to earn its trouble.
7. **unclear** else: there are too few rows to tell a tie from a difference that matters. The sentence says how many
   would do.
"""

from dataclasses import dataclass
from math import ceil

from sft.bootstrap import Difference, comparable, difference, interval
from sft.scores import Arm

FEWEST = 10  # rows; a bootstrap of fewer says little
ENOUGH = 40  # rows that are enough where arms lie well apart
MARGIN = 0.10  # 10 points of a rate, or 0.1 of the loss: less is not worth tuning for
HALF = 0.5
SIDE = 1.645  # standard errors from the middle of such an interval to either end
REAL_BUT_SMALL = "What is gained is real but small; don't tune for it."
WORDS = {"exact_match": "exactly right", "valid_format": "in the right format", "loss": "loss per answer token"}


@dataclass(frozen=True)
class Verdict:
    """`kind` is 'tune', 'prompt', 'neither' or 'unclear'; `measure` the one that it rests on."""

    kind: str
    sentence: str
    measure: str


def verdict(arms: dict[str, Arm], measure: str, seed: int = 0) -> Verdict:
    """The rule above, on the arms `base`, `prompted` and `tuned`."""
    kind, sentence = _Case(arms, measure, seed).decide()
    return Verdict(kind, sentence, measure)


class _Case:
    def __init__(self, arms: dict[str, Arm], measure: str, seed: int):
        self.arms, self.measure, self.seed = arms, measure, seed
        found = {name: arms[name].tally(measure) if name in arms else None for name in ("base", "prompted", "tuned")}
        measured = {name: tally for name, tally in found.items() if tally is not None}
        self.tallies = dict(zip(measured, comparable(list(measured.values())), strict=True))

    def decide(self) -> tuple[str, str]:
        missing = [name for name in ("base", "prompted", "tuned") if name not in self.tallies]
        if missing:
            return "unclear", f"Unclear: there are no replies to measure of {' and '.join(missing)}."
        rows = len(self.tallies["base"].totals)
        if rows < FEWEST:
            return "unclear", (
                f"Unclear: {rows} {'row is' if rows == 1 else 'rows are'} too few to tell; "
                f"measure at least {FEWEST}, better {ENOUGH}."
            )
        return self._nothing_gained(rows) or self._less_than_half(rows) or self._little_gained() or self._which(rows)

    def _nothing_gained(self, rows: int) -> tuple[str, str] | None:
        gains = {name: self._gain(name, "base") for name in ("prompted", "tuned")}
        if any(gain.low > 0 for gain in gains.values()):
            return None
        name, widest = max(gains.items(), key=lambda gain: gain[1].high)
        if widest.high > MARGIN:
            return "unclear", self._unclear(name, "base", widest, rows)
        return "neither", (
            f"Neither: {self._said('prompted')} with the best prompt and {self._said('tuned')} tuned are no better "
            f"than the base model's {self._said('base')} ({WORDS[self.measure]})."
        )

    def _less_than_half(self, rows: int) -> tuple[str, str] | None:
        if self.measure == "loss" or max(self.tallies[name].value for name in ("prompted", "tuned")) >= HALF:
            return None
        said = f"{self._said('tuned')} {WORDS[self.measure]} tuned and {self._said('prompted')} with the best prompt"
        ends = {name: interval(self.tallies[name], self.seed)[1] for name in ("prompted", "tuned")}
        if max(ends.values()) >= HALF:
            return "unclear", (
                f"Unclear: {said} are both less than half, but on {rows} rows it may as well be "
                f"{100 * max(ends.values()):.0f} %. Measure more rows."
            )
        ahead = self._gain("tuned", "prompted").low > 0
        remedy = "Tuning is ahead: more steps or rows may do it." if ahead else "Mend the rows, or take a larger model."
        return "neither", f"Neither: {said} are both less than half. {remedy}"

    def _little_gained(self) -> tuple[str, str] | None:
        if any(_large(self._gain(name, "base")) for name in ("prompted", "tuned")):
            return None
        return "neither", (
            f"Neither: {self._said('tuned')} tuned and {self._said('prompted')} with the best prompt against the base "
            f"model's {self._said('base')} ({WORDS[self.measure]}). {REAL_BUT_SMALL}"
        )

    def _which(self, rows: int) -> tuple[str, str]:
        gain, prompting = self._gain("tuned", "prompted"), self._gain("prompted", "base")
        if prompting.low > 0:
            return self._against_prompted(gain, rows)
        return self._against_base(gain, prompting, rows)

    def _against_prompted(self, gain: Difference, rows: int) -> tuple[str, str]:
        tuned, prompted, words = self._said("tuned"), self._said("prompted"), WORDS[self.measure]
        if gain.low > 0 and _large(gain):
            return "tune", f"Tune: {tuned} against {prompted} with the best prompt ({words}){self._cost()}."
        if gain.high < 0:
            return "prompt", f"Prompting does it better: {prompted} against {tuned} ({words}); don't tune like this."
        if gain.low > 0:
            return "prompt", f"Prompting nearly does it: {prompted} against {tuned} ({words}). {REAL_BUT_SMALL}"
        if gain.high <= MARGIN:
            return (
                "prompt",
                f"Prompting already does it: {prompted} against {tuned} ({words}), within noise; don't tune.",
            )
        return "unclear", self._unclear("tuned", "prompted", gain, rows)

    def _against_base(self, gain: Difference, prompting: Difference, rows: int) -> tuple[str, str]:
        if gain.low > 0 and _large(self._gain("tuned", "base")):
            said = f"Tune: {self._said('tuned')} against {self._said('prompted')} with the best prompt and "
            return "tune", f"{said}{self._said('base')} without ({WORDS[self.measure]}){self._cost()}."
        if gain.high <= MARGIN:
            return "unclear", self._unclear("prompted", "base", prompting, rows)
        return "unclear", self._unclear("tuned", "prompted", gain, rows)

    def _gain(self, one: str, other: str) -> Difference:
        """How much better one arm is than another; a lower loss is better."""
        if self.measure == "loss":
            one, other = other, one
        return difference(self.tallies[one], self.tallies[other], self.seed)

    def _unclear(self, one: str, other: str, gain: Difference, rows: int) -> str:
        # So many rows that the interval, which narrows with their root, no longer spans both zero and the margin.
        needed = rows * (SIDE * gain.error / max(gain.value, MARGIN - gain.value)) ** 2
        by = f"{gain.low:+.2f} to {gain.high:+.2f}"
        if self.measure != "loss":
            by = f"{100 * gain.low:+.0f} to {100 * gain.high:+.0f} points"
        return (
            f"Unclear: {self._said(one)} {one} against {self._said(other)} {other} ({WORDS[self.measure]}), but on "
            f"{rows} rows that may mean {by}; about {10 * ceil(max(needed, rows + 1) / 10)} rows would tell."
        )

    def _said(self, name: str) -> str:
        value = self.tallies[name].value
        return f"{value:.2f}" if self.measure == "loss" else f"{100 * value:.0f} %"

    def _cost(self) -> str:
        saved = round(self.arms["prompted"].tokens - self.arms["tuned"].tokens)
        if not saved:
            return ""
        if saved > 0:
            return f", and each request is {saved} tokens shorter"
        return f", but each request is {-saved} tokens longer"


def _large(gain: Difference) -> bool:
    return round(gain.value, 9) > MARGIN  # 0.7 - 0.6 is a little less than 0.1, and 0.8 - 0.7 a little more

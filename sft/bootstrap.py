"""How sure a mean over rows is, and a difference of two: rows are drawn again and again from those that there are.

Arms answer the same rows, so a difference is taken row by row (a paired bootstrap): a row that is hard for both says
nothing about which is better. Drawn by seed, once for all measures of as many rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 4000
MOST_DRAWN = 100_000_000  # bytes, one for each row of each resample: more rows than 25,000 get fewer resamples
FEWEST_RESAMPLES = 200
_AT_ONCE = 2_000_000  # draws that are turned into floats at once, 16 MB
INTERVAL = (0.025, 0.975)  # of a measure, to be looked at: 95 %
CLEAR = (0.05, 0.95)  # of a difference, to be judged by: "more than" and "at most" are each wrong one time in twenty


@dataclass(frozen=True)
class Tally:
    """A measure, row by row: `totals` [rows], and what they are divided by, `counts` [rows] (answer tokens, say).

    Without counts it is a rate: each row's total is 0 or 1.
    """

    totals: np.ndarray
    counts: np.ndarray | None = None

    @property
    def value(self) -> float:
        return float(self.totals.sum() / (len(self.totals) if self.counts is None else self.counts.sum()))


def comparable(tallies: Sequence[Tally]) -> list[Tally]:
    """The same over those rows alone in which each has something to count: a resample of others would be 0 / 0."""
    kept = np.logical_and.reduce([tally.counts > 0 for tally in tallies if tally.counts is not None] or [True])
    if kept.all():
        return list(tallies)
    return [Tally(tally.totals[kept], None if tally.counts is None else tally.counts[kept]) for tally in tallies]


@dataclass(frozen=True)
class Difference:
    """One tally less another: the value, its interval, and the standard error."""

    value: float
    low: float
    high: float
    error: float


def interval(tally: Tally, seed: int = 0) -> tuple[float, float]:
    """Between which values the tally lies. To a rate two rows are added, one of each kind: without them a rate of 0 or
    1 would look certain however few the rows are."""
    if tally.counts is None:
        tally = Tally(np.append(tally.totals, [0, 1]))
    (tally,) = comparable([tally])
    low, high = np.quantile(_means(tally, _draws(len(tally.totals), seed)), INTERVAL)
    return float(low), float(high)


def difference(one: Tally, other: Tally, seed: int = 0) -> Difference:
    """`one` less `other`, over the same rows, which are `comparable`. To rates two rows are added in which they differ,
    one each way."""
    value = one.value - other.value
    if one.counts is None:
        one, other = Tally(np.append(one.totals, [1, 0])), Tally(np.append(other.totals, [0, 1]))
    draws = _draws(len(one.totals), seed)
    found = _means(one, draws) - _means(other, draws)
    low, high = np.quantile(found, CLEAR)
    return Difference(value, float(low), float(high), float(found.std()))


@lru_cache(maxsize=2)  # rates have two rows more than the loss
def _draws(rows: int, seed: int) -> np.ndarray:
    """How often each row is drawn in each resample: [resamples, rows], bytes."""
    generator = np.random.default_rng(seed)
    resamples = min(RESAMPLES, max(MOST_DRAWN // rows, FEWEST_RESAMPLES))
    draws = np.empty((resamples, rows), np.uint8)
    for drawn in draws:
        drawn[:] = np.bincount(generator.integers(rows, size=rows), minlength=rows)
    return draws


def _means(tally: Tally, draws: np.ndarray) -> np.ndarray:
    """The tally's value in each resample: [resamples]."""
    counts = np.ones(len(tally.totals)) if tally.counts is None else tally.counts
    sums, step = np.stack([tally.totals, counts], axis=1).astype(float), max(_AT_ONCE // len(counts), 1)
    drawn = [draws[at : at + step].astype(float) @ sums for at in range(0, len(draws), step)]
    totals, counts = np.concatenate(drawn).T
    return totals / counts

"""Intervals: as wide as they should be, the same for the same seed, and never certain because rows are few."""

import tracemalloc

import numpy as np
import pytest

from sft.bootstrap import Tally, _draws, comparable, difference, interval


def rate(right: int, rows: int) -> Tally:
    return Tally(np.array([1.0] * right + [0.0] * (rows - right)))


def test_a_rate_lies_about_where_the_textbook_says():
    low, high = interval(rate(30, 100))
    assert low == pytest.approx(0.30 - 1.96 * 0.0458, abs=0.02)
    assert high == pytest.approx(0.30 + 1.96 * 0.0458, abs=0.02)


def test_more_rows_narrow_it():
    widths = [high - low for low, high in (interval(rate(rows // 2, rows)) for rows in (10, 100, 1000))]
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_no_rate_is_certain(rows):
    assert interval(rate(0, rows))[1] > 1 / (rows + 2)
    assert interval(rate(rows, rows))[0] < 1 - 1 / (rows + 2)


def test_the_same_seed_gives_the_same_interval():
    tally = Tally(np.random.default_rng(0).normal(size=30), np.ones(30))
    other = Tally(tally.totals[::-1], tally.counts)
    found = interval(tally, 3), difference(tally, other, 3), interval(rate(7, 30), 3)
    _draws.cache_clear()
    assert (interval(tally, 3), difference(tally, other, 3), interval(rate(7, 30), 3)) == found
    assert interval(tally, 3) != interval(tally, 4)


def test_a_mean_over_tokens_is_weighted_by_them():
    tally = Tally(np.array([1.0, 30.0]), np.array([1, 10]))
    assert tally.value == pytest.approx(31 / 11)
    low, high = interval(tally)
    assert (low, high) == (pytest.approx(1.0), pytest.approx(3.0))


def test_a_difference_is_taken_row_by_row():
    """Both arms waver together: apart they overlap widely, in pairs one is always ahead."""
    hard = np.random.default_rng(0).normal(5, 2, 50)
    one, other = Tally(hard + 0.2, np.ones(50)), Tally(hard, np.ones(50))
    assert interval(one)[0] < interval(other)[1]
    gain = difference(one, other)
    assert gain.value == pytest.approx(0.2) and gain.low == pytest.approx(0.2) and gain.error < 1e-6


def test_equal_arms_differ_by_nothing_give_or_take_what_rows_can_tell():
    few, many = (difference(rate(rows, rows), rate(rows, rows)) for rows in (10, 200))
    assert few.value == many.value == 0
    assert few.low < -0.1 and few.high > 0.1
    assert -0.05 < many.low < 0 < many.high < 0.05


def test_a_difference_turned_round_is_its_negative():
    one, other = rate(30, 40), rate(20, 40)
    there, back = difference(one, other), difference(other, one)
    assert there.value == -back.value
    assert there.low == pytest.approx(-back.high, abs=0.03)


def test_rows_with_nothing_to_count_in_one_arm_are_left_out_of_both():
    one = Tally(np.array([1.0, 2.0, 0.0]), np.array([1, 2, 0]))
    other = Tally(np.array([0.0, 2.0, 3.0]), np.array([0, 1, 1]))
    kept = comparable([one, other])
    assert [tally.totals.tolist() for tally in kept] == [[2.0], [2.0]]
    assert [tally.counts.tolist() for tally in kept] == [[2], [1]]
    gain = difference(*kept)
    assert gain.low == gain.high == gain.value == -1.0


def test_many_rows_take_little_memory():
    draw = np.random.default_rng(0)
    one, other = (Tally((draw.random(20_000) < share).astype(float)) for share in (0.5, 0.6))
    tracemalloc.start()
    gain = difference(one, other)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150_000_000
    assert gain.low < gain.value < gain.high < 0

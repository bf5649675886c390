"""The rule: one test for each outcome, with the sentence that it makes."""

from dataclasses import replace

import numpy as np
import pytest

from sft.bootstrap import _draws
from sft.scores import Arm
from sft.verdict import ENOUGH, FEWEST, verdict


def arm(right: list[bool], losses: list[float] | None = None, prompt_tokens: int = 100, valid=None) -> Arm:
    rows = len(right)
    return Arm(
        messages=[], replies=[""] * rows, exact=right, valid=valid, stopped=right, looping=[False] * rows,
        prompt_tokens=[prompt_tokens] * rows, reply_tokens=[10] * rows, losses=losses or [1.0] * rows,
        answer_tokens=[1 if losses else 0] * rows, seconds=1.0,
    )  # fmt: skip


def judged(base: int, prompted: int, tuned: int, rows: int = 48, prompted_tokens: int = 512):
    """The verdict where so many of the first rows are right in each arm."""
    arms = {name: arm([at < right for at in range(rows)]) for name, right in (("base", base), ("tuned", tuned))}
    arms["prompted"] = arm([at < prompted for at in range(rows)], prompt_tokens=prompted_tokens)
    return verdict(arms, "exact_match")


def test_tune_where_the_tuned_model_is_clearly_better():
    found = judged(0, 15, 47)
    assert (found.kind, found.measure) == ("tune", "exact_match")
    assert found.sentence == (
        "Tune: 98 % against 31 % with the best prompt (exactly right), and each request is 412 tokens shorter."
    )


def test_the_cost_is_told_whichever_way_it_goes():
    assert "but each request is 60 tokens longer" in judged(0, 15, 47, prompted_tokens=40).sentence
    assert judged(0, 15, 47, prompted_tokens=100).sentence.endswith("(exactly right).")


def test_prompt_where_the_difference_is_within_noise_and_small():
    found = judged(0, 44, 45)
    assert found.kind == "prompt"
    assert found.sentence == ("Prompting already does it: 92 % against 94 % (exactly right), within noise; don't tune.")


def by_chance(base: float, prompted: float, tuned: float, rows: int = 400, seed: int = 0):
    """The verdict where each arm is right in rows of its own, drawn with these odds."""
    draw = np.random.default_rng(seed)
    odds = {"base": base, "prompted": prompted, "tuned": tuned}
    return verdict({name: arm((draw.random(rows) < share).tolist()) for name, share in odds.items()}, "exact_match")


@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_that_is_not_clearly_better_than_the_base(seed):
    found = by_chance(0.60, 0.60, 0.67, seed=seed)
    assert found.kind in ("neither", "unclear", "tune")


def test_a_prompt_that_does_nothing_is_no_rival():
    found = by_chance(0.60, 0.60, 0.90)
    assert found.kind == "tune" and "60 % with the best prompt and 56 % without" in found.sentence


def test_unclear_where_it_cannot_be_told_whether_the_prompt_or_the_base_is_the_rival():
    found = by_chance(0.60, 0.655, 0.71, seed=13)
    assert found.sentence.startswith("Unclear: 68 % prompted against 62 % base") and found.kind == "unclear"


def test_a_gain_that_is_clear_and_small_is_not_worth_tuning_for():
    over_prompt = by_chance(0.20, 0.92, 0.95, rows=2000)
    assert over_prompt.kind == "prompt"
    assert over_prompt.sentence.startswith("Prompting nearly does it: 93 % against 95 %")
    over_base = by_chance(0.92, 0.92, 0.96, rows=2000)
    assert over_base.kind == "neither"
    assert over_base.sentence.startswith("Neither: 96 % tuned and")
    assert "real but small" in over_prompt.sentence and "real but small" in over_base.sentence
    assert by_chance(0.90, 0.10, 0.94, rows=2000).kind == "neither"  # the prompt hurts: the base is what to beat


def test_prompt_where_the_prompted_model_is_clearly_better():
    found = judged(0, 45, 30)
    assert found.kind == "prompt"
    assert found.sentence.startswith("Prompting does it better: 94 % against 62 %")


@pytest.mark.parametrize(("base", "same"), [(0, 0), (48, 48), (20, 20)])
def test_neither_where_all_are_alike(base, same):
    found = judged(base, same, same)
    assert found.kind == "neither"
    assert "no better than the base model's" in found.sentence


def test_neither_where_both_are_worse_than_the_base():
    assert judged(40, 10, 5).kind == "neither"


def test_neither_where_both_get_clearly_less_than_half():
    ahead = judged(0, 3, 14)
    assert ahead.kind == "neither"
    assert ahead.sentence.startswith("Neither: 29 % exactly right tuned and 6 % with the best prompt")
    assert "more steps or rows" in ahead.sentence
    behind = judged(0, 14, 3)
    assert behind.kind == "neither" and "more steps" not in behind.sentence


def test_unclear_where_it_may_be_half():
    found = judged(0, 0, 23)
    assert found.kind == "unclear"
    assert found.sentence.startswith("Unclear: 48 % exactly right tuned and 0 % with the best prompt are both less")
    assert "on 48 rows it may as well be 6" in found.sentence
    assert judged(0, 0, 24).kind == "tune"


@pytest.mark.parametrize("before", [500, 600, 700, 800])
def test_ten_points_are_ten_points_wherever_they_lie(before):
    """In floating point 0.7 - 0.6 is less than 0.8 - 0.7."""
    assert judged(0, before, before + 100, rows=1000).kind == "prompt"
    assert judged(0, before, before + 101, rows=1000).kind == "tune"


def test_a_prompt_that_gains_next_to_nothing_does_not_do_it():
    for tuned in (2.99, 3.5):
        found = by_loss(3.0, 2.95, tuned)
        assert found.kind == "neither" and "real but small" in found.sentence
    assert by_loss(3.0, 2.95, 2.0).kind == "tune"


def test_a_tie_of_good_arms_is_for_the_prompt():
    assert judged(0, 48, 48).kind == "prompt"


def test_a_tie_on_few_rows_is_no_tie():
    found = judged(0, 15, 15, rows=15)
    assert found.kind == "unclear"
    assert "100 % tuned against 100 % prompted" in found.sentence


def test_unclear_says_how_many_rows_would_tell_and_so_many_do():
    found = judged(0, 20, 23, rows=30)
    assert found.kind == "unclear"
    assert "-" in found.sentence or "+" in found.sentence
    needed = int(found.sentence.split("about ")[1].split()[0])
    assert 30 < needed < 400
    rows = round(1.2 * needed)  # "about"
    assert judged(0, round(20 / 30 * rows), round(23 / 30 * rows), rows=rows).kind != "unclear"


def test_unclear_against_the_base_too():
    found = judged(20, 22, 23, rows=40)
    assert found.kind == "unclear"
    assert "base" in found.sentence


@pytest.mark.parametrize("rows", [1, 2, FEWEST - 1])
def test_too_few_rows_say_how_many_are_needed(rows):
    found = judged(0, 0, rows, rows=rows)
    assert found.kind == "unclear"
    assert f"measure at least {FEWEST}, better {ENOUGH}" in found.sentence
    assert ("1 row is" in found.sentence) == (rows == 1)


def test_few_rows_are_enough_where_arms_lie_far_apart():
    assert judged(0, 0, FEWEST, rows=FEWEST).kind == "tune"


def test_missing_empty_and_unmeasured_arms_are_said():
    right = arm([True] * 20)
    for arms in ({}, {"base": right, "tuned": right}, {"base": right, "prompted": arm([]), "tuned": right}):
        found = verdict(arms, "exact_match")
        assert found.kind == "unclear" and "prompted" in found.sentence
    found = verdict(dict.fromkeys(("base", "prompted", "tuned"), right), "valid_format")
    assert found.kind == "unclear" and "base" in found.sentence


def by_loss(base: float, prompted: float, tuned: float, noise: float = 0.02):
    """The verdict on losses about these means."""
    draw = np.random.default_rng(0)
    means = {"base": base, "prompted": prompted, "tuned": tuned}
    arms = {name: arm([False] * 40, draw.normal(mean, noise, 40).tolist()) for name, mean in means.items()}
    return verdict(arms, "loss")


def test_a_lower_loss_is_better():
    found = by_loss(3.0, 2.0, 0.5)
    assert found.kind == "tune"
    assert found.sentence.startswith("Tune: 0.50 against 2.01 with the best prompt (loss per answer token)")
    assert by_loss(3.0, 0.5, 2.0).kind == "prompt"
    assert by_loss(3.0, 0.5, 0.5).kind == "prompt"
    assert by_loss(0.5, 0.5, 0.5).kind == "neither"
    assert by_loss(0.5, 2.0, 3.0).kind == "neither"
    unclear = by_loss(3.0, 1.5, 1.45, noise=1.5)
    assert unclear.kind == "unclear" and "points" not in unclear.sentence


def test_rows_without_a_labelled_token_are_no_rows():
    arms = {name: arm([False] * 20, [1.0] * 20) for name in ("base", "prompted", "tuned")}
    arms["tuned"] = replace(arms["tuned"], answer_tokens=[0] * 18 + [1, 1])
    found = verdict(arms, "loss")
    assert found.kind == "unclear" and "2 rows are too few" in found.sentence


def test_the_same_seed_gives_the_same_verdict():
    found = judged(0, 20, 23, rows=30)
    _draws.cache_clear()
    assert judged(0, 20, 23, rows=30) == found

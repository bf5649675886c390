"""Scores: what counts as exact and as looping, and an arm's figures from its rows."""

import pytest

from sft.reply_format import JsonFormat
from sft.scores import MEASURES, Arm, exact, loops, measure_for


@pytest.mark.parametrize(
    ("reply", "wanted", "expected"),
    [
        ("Paris", "Paris", True), (" Paris\n", "Paris", True), ("paris", "Paris", False), ("Paris.", "Paris", False),
        ('{"b": 2, "a": 1}', '{"a":1,"b":2}', True), ('{"a": 2}', '{"a": 1}', False), ("{", '{"a": 1}', False),
        ("1.0", "1", False), ("", "", True), ("null", "x", False), ('{"urgent": 1}', '{"urgent": true}', False),
        ("[0]", "[false]", False), ("[true ]", "[true]", True),
    ],
)  # fmt: skip
def test_exact_is_the_same_text_or_the_same_json(reply, wanted, expected):
    assert exact(reply, wanted) is expected


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [
        ([5] * 8, True), ([5] * 7, False), ([9, 1, 2, 3, 1, 2, 3, 1, 2, 3], True), ([1, 2, 3, 1, 2, 3, 1, 2, 9], False),
        ([1, 2, 1, 2, 1, 2], False), ([1, 2] * 4, True), ([7, 8, 9, *range(30)], False), ([], False),
        ([*range(20), 4, *range(20), 4], False),
    ],
)  # fmt: skip
def test_a_loop_ends_in_the_same_tokens_again_and_again(token_ids, expected):
    assert loops(token_ids, stopped=False) is expected
    assert not loops(token_ids, stopped=True)


def arm(**given) -> Arm:
    about = {
        "messages": [{"role": "user", "content": "?"}], "replies": ["a", "b"], "exact": [True, False], "valid": None,
        "stopped": [True, True], "looping": [False, False], "prompt_tokens": [10, 20], "reply_tokens": [1, 4],
        "losses": [1.0, 3.0], "answer_tokens": [1, 3], "seconds": 2.0,
    }  # fmt: skip
    return Arm(**(about | given))


def test_figures_are_shares_and_means_of_the_rows():
    figures = arm(valid=[True, True]).as_json(seed=0)
    assert {name: figures[name] for name in (*MEASURES, "prompt_tokens", "reply_tokens", "seconds", "rows")} == {
        "loss": 1.0, "exact_match": 0.5, "valid_format": 1.0, "stop_rate": 1.0, "loop_rate": 0.0, "prompt_tokens": 15.0,
        "reply_tokens": 2.5, "seconds": 2.0, "rows": 2,
    }  # fmt: skip
    assert set(figures["intervals"]) == set(MEASURES)
    for name, (low, high) in figures["intervals"].items():
        assert low <= figures[name] <= high
    assert arm().tokens == 17.5


def test_what_cannot_be_measured_is_none():
    assert arm(losses=[float("nan"), 1.0]).value("loss") is None
    figures = arm(answer_tokens=[0, 0], losses=[0.0, 0.0]).as_json(seed=0)
    assert figures["loss"] is None and figures["valid_format"] is None
    assert set(figures["intervals"]) == {"exact_match", "stop_rate", "loop_rate"}


def test_rows_without_a_labelled_token_do_not_count_in_the_loss():
    figures = arm(losses=[1.0] + [0.0] * 3, answer_tokens=[2] + [0] * 3).as_json(seed=0)
    assert figures["loss"] == 0.5 and figures["intervals"]["loss"] == (0.5, 0.5)


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_the_measure_is_what_the_answers_can_be_judged_by():
    assert measure_for(["Paris"] * 10, None) == "exact_match"
    assert measure_for(['{"a": 1}'] * 10, JsonFormat()) == "exact_match"
    assert measure_for([LONG] * 2 + ["Paris"] * 8, JsonFormat()) == "valid_format"
    assert measure_for([LONG] * 2 + ["Paris"] * 8, None) == "loss"
    assert measure_for([LONG] + ["Paris"] * 9, None) == "exact_match"

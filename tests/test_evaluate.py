"""Scores: what counts as exact, as JSON, as stopped; and which rows are measured."""

import pytest

from sft.chat_format import ChatFormat
from sft.config import TrainConfig
from sft.errors import DataError
from sft.evaluate import Arm, _score, held_out_rows, is_json, to_json, verdict
from sft.runs import create_run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', True), ("[1]", True), (' {"a": null}\n', True), ("{'a': 1}", False), ('{"a": 1} ok', False),
        ('```json\n{"a": 1}\n```', False), ("12", False), ('"a"', False), ("", False), ('{"a": 1', False),
    ],
)  # fmt: skip
def test_json_is_the_whole_reply_and_strict(text, expected):
    assert is_json(text) is expected


def scored(chatml: ChatFormat, texts, wanted):
    stop = chatml.tokenizer.convert_tokens_to_ids("<|im_end|>")
    replies = []
    for text, stopped in texts:
        ids = chatml.tokenizer(text, add_special_tokens=False)["input_ids"]
        replies.append([*ids, stop] if stopped else ids)
    return _score(chatml, [[1, 2]] * len(wanted), replies, wanted, 0.5)


def test_rates_are_shares_of_the_rows(chatml):
    wanted = ['{"a": 1}'] * 4
    arm = scored(chatml, [('{"a": 1}', True), ('{"a": 1}\n', False), ('{"a": 2}', True), ("no", True)], wanted)
    assert (arm.exact_match, arm.valid_format, arm.stop_rate, arm.rows) == (0.5, 0.75, 0.75, 4)
    assert arm.prompt_tokens == 2
    assert arm.replies[0] == '{"a": 1}'


def test_format_is_judged_only_where_all_wanted_answers_are_json(chatml):
    assert scored(chatml, [("{}", True), ("x", True)], ["{}", "x"]).valid_format is None


def test_the_verdict_names_the_numbers():
    base = Arm(3.0, 0.0, 0.0, 0.5, 10, 20, 40, [])
    tuned = Arm(0.1, 0.7, 0.975, 1.0, 10, 20, 40, [])
    assert "98% valid JSON against the base model's 0%" in verdict({"base": base, "tuned": tuned})
    assert set(to_json({"base": base, "tuned": tuned})["arms"]["tuned"]) >= {
        "loss", "exact_match", "valid_format", "stop_rate", "prompt_tokens", "reply_tokens", "rows",
    }  # fmt: skip


def test_held_out_rows_are_the_runs_own_or_those_named(tmp_path, write_rows):
    rows = [{"question": f"{n}?", "answer": "y"} for n in range(20)]
    run = create_run(TrainConfig.from_dict({"dataset": str(write_rows(rows)), "eval_share": 0.25}), tmp_path / "r")
    assert len(held_out_rows(run)) == 5
    assert len(held_out_rows(run, limit=2)) == 2
    assert len(held_out_rows(run, str(write_rows(rows[:3], "other.jsonl")))) == 3
    none = create_run(TrainConfig.from_dict({"dataset": str(write_rows(rows))}), tmp_path / "r2")
    with pytest.raises(DataError, match="no held-out rows"):
        held_out_rows(none)

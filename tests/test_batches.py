"""The layout of batches: shared tokens once, rows in groups of alike length."""

import random

from sft.batches import FlatCollator, PaddedCollator, micro_batches, shared_prefix
from sft.chat_format import IGNORED


def row(ids, prompt):
    return {"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]}


def test_the_layout_of_a_batch():
    (part,) = FlatCollator(100)([row([1, 2, 3, 4], 3), row([1, 2, 5, 6, 7], 3)])["parts"]
    assert part["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert part["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert part["shift_labels"].tolist() == [[IGNORED, IGNORED, 4, IGNORED, 6, 7, IGNORED]]
    assert part["rows"].tolist() == [[0, 1, 2, 3, 0], [0, 1, 4, 5, 6]]
    assert [part["rows"].flatten()[place] for place in part["back"]] == list(range(7))


def test_rows_share_with_the_row_that_is_most_like_them():
    rows = [row([1, 2, 3, 9, 9], 4), row([7, 8, 5, 5], 3), row([1, 2, 3, 4, 4], 4), row([7, 8, 6, 6], 3)]
    batch = FlatCollator(100)(rows)
    (part,) = batch["parts"]
    assert part["input_ids"].tolist() == [[1, 2, 3, 4, 4, 9, 9, 7, 8, 5, 5, 6, 6]]
    assert batch["num_tokens"] == 18


def test_every_row_is_found_whole_in_its_batch():
    draw = random.Random(5)
    shared = [draw.randrange(9) for _ in range(30)]
    rows = [
        row(shared[: draw.randrange(30)] + [draw.randrange(9) for _ in range(draw.randrange(2, 20))], 1)
        for _ in range(40)
    ]
    for item in rows:
        first = draw.randrange(1, len(item["input_ids"]))
        item["labels"] = [IGNORED] * first + item["input_ids"][first:]
    batch = FlatCollator(60)(rows)
    found = []
    for part in batch["parts"]:
        ids, targets = part["input_ids"][0], part["shift_labels"][0]
        for path in part["rows"].tolist():
            found.append([ids[token].item() for token in path])
        assert sorted(part["back"].tolist()) == sorted(set(part["back"].tolist()))
        assert (targets != IGNORED).any()
    wanted = sorted(tuple(item["input_ids"]) for item in rows)
    assert sorted(tuple(path[: len(ids)]) for path, ids in zip(sorted(found), wanted, strict=True)) == wanted
    labels = sum(label != IGNORED for item in rows for label in item["labels"][1:])
    assert (batch["labels"] != IGNORED).sum() == labels


def test_a_shared_token_never_predicts_a_label_of_the_row_that_takes_it():
    assert shared_prefix([1, 2, 3, 4], [1, 2, 3, 5], [IGNORED, IGNORED, 3, 5]) == 1
    assert shared_prefix([1, 2, 3], [1, 2, 3], [IGNORED] * 3) == 2  # a token of each row stays its own
    assert shared_prefix([], [1, 2, 3], [IGNORED, 2, 3]) == 0
    assert shared_prefix([1, 2], [1, 2], [1, 2]) == 0


def test_groups_are_even_and_of_alike_length():
    rows = [row([length] * length, 1) for length in (90, 10, 80, 20, 30, 70)]
    groups = micro_batches(rows, 100)
    assert [[len(item["input_ids"]) for item in group] for group in groups] == [[10, 20, 30, 70], [80], [90]]
    assert micro_batches(rows, 1000) == [sorted(rows, key=lambda item: len(item["input_ids"]))]
    assert len(micro_batches(rows, 1)) == 6  # a row is never cut


def test_a_padded_batch_counts_only_real_tokens():
    batch = PaddedCollator()([row([1, 2, 3, 4], 3), row([5, 6], 1)])
    (part,) = batch["parts"]
    assert part["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert part["shift_labels"].tolist() == [[IGNORED, IGNORED, 4, IGNORED], [6, IGNORED, IGNORED, IGNORED]]
    assert batch["num_tokens"] == 6

"""Rows of `input_ids` and `labels` → micro-batches in which no token is computed twice.

A micro-batch is one sequence. Rows that begin alike (a system message, say) share the tokens that they begin with;
position ids continue from what is shared. Only attention has to see rows: `rows` says where the tokens of each row
stand in the sequence, `back` where each token stands in the rows. Every token so gets exactly the hidden state that it
would get alone, and linear layers, norms, head and loss see it once.

Knows nothing about messages, templates or models.
"""

import os
from dataclasses import dataclass

import torch

from sft.chat_format import IGNORED


@dataclass(frozen=True)
class FlatCollator:
    """Rows → {`parts`: micro-batches of up to `tokens` tokens (a row is never cut), `labels`, `num_tokens`}.

    A part holds `input_ids` and `position_ids` [1, L]; `shift_labels` [1, L], the token that each position must predict
    or -100; `rows` [R, longest], places in the sequence; `back` [L], places in the flattened `rows`. `num_tokens`
    counts the tokens that the rows hold without sharing; `labels` [1, all L] is there to be counted.
    """

    tokens: int

    def __call__(self, rows: list[dict]) -> dict:
        parts = [_flat(part) for part in micro_batches(rows, self.tokens)]
        return _batch(parts, rows)


def micro_batches(rows: list[dict], tokens: int) -> list[list[dict]]:
    """Rows in groups of alike length, as few and as even as can be, each of about `tokens` tokens or one row.

    Alike, because attention pads the rows of a group to the longest. What all rows share counts once.
    """
    ids = [row["input_ids"] for row in rows]
    common = len(os.path.commonprefix(ids))  # noqa: RUF071 (it compares lists too)
    own = sum(len(row) - common for row in ids)
    count = max(1, -(-own // max(tokens - common, 1)))
    groups: list[list[dict]] = [[] for _ in range(count)]
    before = 0
    for row in sorted(rows, key=lambda row: len(row["input_ids"])):
        length = len(row["input_ids"]) - common
        groups[min(int((before + length / 2) * count / max(own, 1)), count - 1)].append(row)
        before += length
    return [group for group in groups if group]


def _flat(rows: list[dict]) -> dict[str, torch.Tensor]:
    tokens, positions, targets, paths = [], [], [], []
    previous, path = [], []
    for row in sorted(rows, key=lambda row: row["input_ids"]):  # a row's best partner then comes right before it
        ids, labels = row["input_ids"], row["labels"]
        shared = shared_prefix(previous, ids, labels)
        path = [*path[:shared], *range(len(tokens), len(tokens) + len(ids) - shared)]
        tokens += ids[shared:]
        positions += range(shared, len(ids))
        targets += [*labels[shared + 1 :], IGNORED]
        paths.append(path)
        previous = ids
    longest = max(map(len, paths))
    back = [0] * len(tokens)
    for number, path in enumerate(paths):
        for place, token in enumerate(path):
            back[token] = number * longest + place
    return {
        "input_ids": torch.tensor([tokens]),
        "position_ids": torch.tensor([positions]),
        "shift_labels": torch.tensor([targets]),
        "rows": torch.tensor([path + [0] * (longest - len(path)) for path in paths]),  # what fills is never looked at
        "back": torch.tensor(back),
    }


def shared_prefix(previous: list[int], ids: list[int], labels: list[int]) -> int:
    """How many first tokens a row can take over from the row before it.

    It ends before the first token that predicts a label of this row: that prediction would have to count twice. At
    least one token of the row stays its own.
    """
    first = next((at for at, label in enumerate(labels) if label != IGNORED), len(ids))
    limit = min(len(previous), len(ids) - 1, max(first - 1, 0))
    return next((at for at in range(limit) if previous[at] != ids[at]), limit)


@dataclass(frozen=True)
class PaddedCollator:
    """Rows → the same with one part, padded to B rows and L columns, for models to which no flat layout applies.

    The part holds `input_ids`, `attention_mask` and `shift_labels` [B, L].
    """

    def __call__(self, rows: list[dict]) -> dict:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([value + [filler] * (width - len(value)) for value in values])

        part = {
            "input_ids": padded([row["input_ids"] for row in rows], 0),  # what fills is masked, so any token will do
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "shift_labels": padded([[*row["labels"][1:], IGNORED] for row in rows], IGNORED),
        }
        return _batch([part], rows)


def _batch(parts: list[dict], rows: list[dict]) -> dict:
    labels = torch.cat([part["shift_labels"].flatten() for part in parts])[None]
    return {
        "parts": parts,
        "labels": labels,
        "shift_labels": labels,
        "num_tokens": torch.tensor(sum(len(row["input_ids"]) for row in rows)),
    }

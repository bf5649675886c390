"""Rows → conversations, with a verdict for each row; and a run's training and held-out conversations.

Knows nothing about templates or tokens. A row that breaks a rule is kept with its problems and its place (line or row
number), so that it is seen and never trained on silently.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sft.config import TrainConfig
from sft.errors import DataError, listed
from sft.json_text import JsonProblem
from sft.messages import Conversation, problems, tools_problems
from sft.shapes import Reader, json_cell, shape_of, tidied
from sft.tables import Table, local_path, read_table


@dataclass(frozen=True)
class Row:
    """One row's conversation, or the rules that it breaks."""

    place: str
    conversation: Conversation | None
    problems: tuple[str, ...] = ()


def conversations(table: Table, columns: str | None = None, indices: Iterable[int] | None = None) -> Iterator[Row]:
    """A verdict for every row, or for those of `indices`, in order. `columns` says what the columns hold where their
    names do not."""
    _, read = shape_of(table, columns)
    for index in range(len(table.rows)) if indices is None else indices:
        yield _row(table.rows[index], table.place(index), read)


def _row(row: dict, place: str, read: Reader) -> Row:
    try:
        messages = read(row)
        tools = json_cell(row, "tools") if row.get("tools") not in (None, "") else None  # CSV writes "" for none
    except KeyError as error:
        return Row(place, None, (f"has no column {error.args[0]!r}, which the first rows have",))
    except JsonProblem as problem:
        return Row(place, None, (problem.said,))
    if isinstance(messages, list):
        messages = [tidied(message) for message in messages]
    found = problems(messages, for_training=True) + tools_problems(tools)
    if found:
        return Row(place, None, tuple(found))
    return Row(place, Conversation(messages, tools or None, place))


# ---- a run's data ----


@dataclass(frozen=True)
class Split:
    """Training and held-out conversations, which share no row, and what was left out on the way."""

    train: list[Conversation]
    held_out: list[Conversation]
    warnings: list[str]


def usable(table: Table, on_bad_rows: str = "stop", columns: str | None = None) -> tuple[list[Conversation], list[str]]:
    """All conversations of a table, and the problems of the rows that were skipped.

    Raises DataError where rows break a rule and `on_bad_rows` is 'stop', or where no row is left.
    """
    kept, bad = [], []
    for row in conversations(table, columns):
        if row.conversation is None:
            bad += [f"{row.place}: {problem}" for problem in row.problems]
        else:
            kept.append(row.conversation)
    broken = len(table.rows) - len(kept)
    if bad and (on_bad_rows == "stop" or not kept):
        raise DataError(
            f"{table.source}: {broken} of {len(table.rows)} rows cannot be trained on:\n{listed(bad)}",
            "Mend these rows" + (", or set on_bad_rows to skip." if kept else "."),
        )
    return kept, bad


def load_split(config: TrainConfig) -> Split:
    """The conversations that a run trains on and those that it is measured on.

    `eval_share` draws by the run's seed. A held-out row that also occurs in training would be no test, so it is
    left out of the held-out part, with a warning.
    """
    table = read_table(config.dataset, config.dataset_config, config.train_split)
    train, bad = usable(table, config.on_bad_rows, config.columns)
    held_out, warnings = [], _left_out(table, train, bad)
    if config.eval_dataset or config.eval_split:
        held_out_table = _held_out_table(config)
        held_out, bad = usable(held_out_table, config.on_bad_rows, config.columns)
        warnings += _left_out(held_out_table, held_out, bad)
    elif config.eval_share:
        train, held_out = _share(train, config.eval_share, config.seed)
    seen = {_key(conversation) for conversation in train}
    fresh = [conversation for conversation in held_out if _key(conversation) not in seen]
    if len(fresh) < len(held_out):
        warnings.append(f"{len(held_out) - len(fresh)} held-out rows also occur in training and were left out")
    return Split(train, fresh, warnings)


def _held_out_table(config: TrainConfig) -> Table:
    source = config.eval_dataset or config.dataset
    # beside a data set from the Hub the held-out rows may be a file, which has no configurations
    is_file = config.eval_dataset is not None and local_path(source) is not None
    return read_table(source, None if is_file else config.dataset_config, config.eval_split or "train")


def _left_out(table: Table, kept: list[Conversation], bad: list[str]) -> list[str]:
    """The warning about rows that were skipped, if any were. One row may break several rules, so rows are counted."""
    broken = len(table.rows) - len(kept)
    if not broken:
        return []
    said = f"{broken} of {len(table.rows)} rows left out because they break a rule ({table.source})"
    return [f"{said}:\n{listed(bad)}"]


def _share(rows: list[Conversation], share: float, seed: int) -> tuple[list, list]:
    if len(rows) < 2:
        raise DataError(f"eval_share {share} of one row leaves no row to hold out.", "Give more rows.")
    count = min(max(1, round(len(rows) * share)), len(rows) - 1)  # however few there are, some of each
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [rows[index] for index in sorted(chosen)]


def _key(conversation: Conversation) -> str:
    # Parquet cells may hold dates and other values that JSON has no word for
    return json.dumps([conversation.messages, conversation.tools], sort_keys=True, default=str)

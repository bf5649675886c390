"""Rows → conversations, with a verdict for each row; and a run's training and held-out conversations.

Knows nothing about templates or tokens. A row that breaks a rule is kept with its problems and its place (line or row
number), so that it is seen and never trained on silently.
"""

import json
import random
from array import array
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from sft import tables
from sft.config import TrainConfig
from sft.errors import DataError, listed
from sft.files import Table, Tick
from sft.json_text import JsonProblem
from sft.messages import Conversation, problems, tools_problems
from sft.shapes import Reader, json_cell, shape_of, tidied
from sft.tables import local_path, read_table


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
    numbered = enumerate(table.rows) if indices is None else ((index, table.rows[index]) for index in indices)
    for index, row in numbered:
        yield _row(row, table.place(index), read)


def _row(row: dict, place: str, read: Reader) -> Row:
    try:
        messages, tools = _read(row, read)
    except KeyError as error:
        return Row(place, None, (f"has no column {error.args[0]!r}, which the first rows have",))
    except JsonProblem as problem:
        return Row(place, None, (problem.said,))
    found = problems(messages, for_training=True) + tools_problems(tools)
    if found:
        return Row(place, None, tuple(found))
    return Row(place, Conversation(messages, tools or None, place))


def _read(row: dict, read: Reader) -> tuple:
    """A row's messages and tools, whatever was written there. Raises KeyError and JsonProblem."""
    messages = read(row)
    tools = json_cell(row, "tools") if row.get("tools") not in (None, "") else None  # CSV writes "" for none
    if isinstance(messages, list):
        messages = [tidied(message) for message in messages]
    return messages, tools


# ---- a run's data ----


class Conversations(Sequence[Conversation]):
    """Usable rows of a table in order, each read when it is asked for; in memory are only their numbers and digests."""

    def __init__(self, table: Table, columns: str | None, rows: Sequence[int], digests: Sequence[bytes]):
        self._table, self._columns, self._rows, self.digests = table, columns, rows, digests
        _, self._reader = shape_of(table, columns)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Conversation:
        row = self._rows[index]
        messages, tools = _read(self._table.rows[row], self._reader)  # which kept all rules when it was counted in
        return Conversation(messages, tools or None, self._table.place(row))

    def only(self, digests: Container[bytes], inside: bool = True) -> "Conversations":
        """Those whose digest is, or is not, among `digests`."""
        kept = [at for at, digest in enumerate(self.digests) if (digest in digests) == inside]
        rows = array("Q", (self._rows[at] for at in kept))
        return Conversations(self._table, self._columns, rows, [self.digests[at] for at in kept])


@dataclass(frozen=True)
class Split:
    """Training and held-out conversations, which share no row, and what was left out on the way."""

    train: Conversations
    held_out: Sequence[Conversation]
    warnings: list[str]


def usable(
    table: Table, on_bad_rows: str = "stop", columns: str | None = None, tick: Tick = lambda share, said: None
) -> tuple[Conversations, list[str]]:
    """All conversations of a table, and the problems of the rows that were skipped.

    Raises DataError where rows break a rule and `on_bad_rows` is 'stop', or where no row is left.
    """
    kept, digests, bad = array("Q"), [], []
    for index, row in enumerate(conversations(table, columns)):
        if index % 100 == 0:
            tick(index / len(table.rows), f"Looking at the rows of {table.source}")
        if row.conversation is None:
            bad += [f"{row.place}: {problem}" for problem in row.problems]
        else:
            kept.append(index)
            digests.append(digest(row.conversation))
    broken = len(table.rows) - len(kept)
    if bad and (on_bad_rows == "stop" or not kept):
        raise DataError(
            f"{table.source}: {broken} of {len(table.rows)} rows cannot be trained on:\n{listed(bad)}",
            "Mend these rows" + (", or set on_bad_rows to skip." if kept else "."),
        )
    return Conversations(table, columns, kept, digests), bad


def load_split(config: TrainConfig, tick: Tick = lambda share, said: None) -> Split:
    """The conversations that a run trains on and those that it is measured on.

    Where the config names no held-out rows, a folder's or Hub data set's own test split is held out. `eval_share` draws
    by the run's seed. A held-out row that also occurs in training would be no test, so it is left out of the held-out
    part, with a warning.
    """
    table = read_table(*_train_source(config), tick)
    train, bad = usable(table, config.on_bad_rows, config.columns, tick)
    warnings = _left_out(table, train, bad)
    if config.eval_share:
        return Split(*_share(train, config.eval_share, config.seed), warnings)
    source = _held_out_source(config)
    if source is None:
        return Split(train, [], warnings)
    try:
        table = read_table(*source, tick)
        held_out, bad = usable(table, config.on_bad_rows if names_held_out(config) else "skip", config.columns, tick)
    except DataError as error:
        if names_held_out(config):
            raise
        return Split(train, [], [*warnings, f"the split {source[-1]!r} is not held out: {error.message}"])
    warnings += _left_out(table, held_out, bad)
    fresh = held_out.only(set(train.digests), inside=False)
    if len(fresh) < len(held_out):
        warnings.append(f"{len(held_out) - len(fresh)} held-out rows also occur in training and were left out")
    return Split(train, fresh, warnings)


def digest(conversation: Conversation) -> bytes:
    """16 bytes that equal conversations share, wherever they stand."""
    # Parquet cells may hold dates and other values that JSON has no word for
    said = json.dumps([conversation.messages, conversation.tools], sort_keys=True, default=str)
    return blake2b(said.encode(), digest_size=16).digest()


def identity(config: TrainConfig) -> list:
    """Plain values that change when the rows of the config's sources do."""
    held_out = _held_out_source(config)
    return [tables.identity(*_train_source(config)), held_out and tables.identity(*held_out)]


def _train_source(config: TrainConfig) -> tuple:
    return config.dataset, config.dataset_config, config.train_split


def names_held_out(config: TrainConfig) -> bool:
    """Whether the config says which rows to hold out. Otherwise a data set's own split is taken, as far as it can be
    used: rows that nobody asked for stop no run."""
    return bool(config.eval_dataset or config.eval_split or config.eval_share)


def _held_out_source(config: TrainConfig) -> tuple | None:
    """Where the held-out rows are, as `read_table` takes it; None where there are none or they are drawn."""
    if config.eval_share:
        return None
    if names_held_out(config):
        source = config.eval_dataset or config.dataset
        # beside a data set from the Hub the held-out rows may be a file, which has no configurations
        is_file = config.eval_dataset is not None and local_path(source) is not None
        return source, None if is_file else config.dataset_config, config.eval_split or "train"
    split = tables.held_out_split(*_train_source(config))
    return split and (config.dataset, config.dataset_config, split)


def _left_out(table: Table, kept: Conversations, bad: list[str]) -> list[str]:
    """The warning about rows that were skipped, if any were. One row may break several rules, so rows are counted."""
    broken = len(table.rows) - len(kept)
    if not broken:
        return []
    said = f"{broken} of {len(table.rows)} rows left out because they break a rule ({table.source})"
    return [f"{said}:\n{listed(bad)}"]


def _share(rows: Conversations, share: float, seed: int) -> tuple[Conversations, Conversations]:
    """Training and held-out rows. Equal rows count as one and stay together, so that none is on both sides."""
    different = list(dict.fromkeys(rows.digests))
    if len(different) < 2:
        said = "one row" if len(rows) == 1 else f"{len(rows)} equal rows"
        raise DataError(f"eval_share {share} of {said} leaves no row to hold out.", "Give more rows.")
    count = min(max(1, round(len(different) * share)), len(different) - 1)  # however few there are, some of each
    chosen = {different[at] for at in random.Random(seed).sample(range(len(different)), count)}
    return rows.only(chosen, inside=False), rows.only(chosen)

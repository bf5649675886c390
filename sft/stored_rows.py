"""Rows that stay in their file: each is read when it is asked for.

In memory are only the places where rows begin, or a batch of rows, so a table may be larger than memory. Knows nothing
about which files are good: whoever makes these has read the file through.
"""

import json
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from os import fstat, stat_result
from pathlib import Path
from typing import BinaryIO

from sft.errors import DataError

BATCH = 256  # rows of a Parquet file in memory at a time


def stamp(status: stat_result) -> tuple[int, int, int]:
    """Another one for other content, as far as that shows without reading the file."""
    return status.st_size, status.st_mtime_ns, status.st_ino


@contextmanager
def _opened(path: Path, known: tuple) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path.name} can no longer be read: {error.strerror or error}", "Put it back.") from None
    with file:
        _check(path, file, known)
        yield file


def _check(path: Path, file: BinaryIO, known: tuple) -> None:
    if stamp(fstat(file.fileno())) != known:
        raise DataError(f"{path.name} has changed since it was read first.", "Read it again, once it is whole.")


class JsonLines(Sequence):
    """The rows of a JSONL file, of which row i is the JSON of the bytes `[starts[i], ends[i])`.

    Raises DataError where the file is no longer the one of which `known` is the stamp.
    """

    def __init__(self, path: Path, known: tuple, starts: Sequence[int], ends: Sequence[int]):
        self._path, self._known, self._starts, self._ends = path, known, starts, ends

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict:
        with _opened(self._path, self._known) as file:
            return self._row(file, index)

    def __iter__(self) -> Iterator[dict]:
        with _opened(self._path, self._known) as file:
            for index in range(len(self)):
                _check(self._path, file, self._known)  # it may change while it is read
                yield self._row(file, index)

    def _row(self, file: BinaryIO, index: int) -> dict:
        file.seek(self._starts[index])
        return json.loads(file.read(self._ends[index] - self._starts[index]))


class ParquetRows(Sequence):
    """The rows of a Parquet file, quick in order. A row further on or back is found by decoding its row group.

    Raises DataError where the file cannot be decoded. Threads may share it.
    """

    def __init__(self, path: Path):
        from pyarrow.parquet import read_metadata

        with path.open("rb") as file:
            self._path, self._known = path, stamp(fstat(file.fileno()))
            metadata = self._decoded(lambda: read_metadata(file))
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._groups = list(accumulate(sizes, initial=0))  # the first row of each group, and the number of rows
        self._lock = threading.Lock()
        self._batch, self._first = [], 0  # the rows in memory, and the number of the first
        self._batches, self._next = iter(()), len(self)  # the batches that follow, and the number of their first row

    def __len__(self) -> int:
        return self._groups[-1]

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        with self._lock:
            if not self._first <= index < self._first + len(self._batch):
                self._batch = self._decoded(self._batch_with(index).to_pylist)
            return self._batch[index - self._first]

    def _batch_with(self, index: int):
        group = bisect_right(self._groups, index) - 1
        if index < self._next or self._groups[group] > self._next:
            self._batches, self._next = self.batches(group), self._groups[group]
        first, self._batch, self._next = self._next, [], len(self)  # after an error all begins anew
        for batch in self._batches:
            if index < first + batch.num_rows:
                self._first, self._next = first, first + batch.num_rows
                return batch
            first += batch.num_rows
        raise AssertionError("the groups hold as many rows as the metadata says")

    def batches(self, group: int = 0) -> Iterator:
        """Arrow record batches of `BATCH` rows, from a row group on, each checked through."""
        from pyarrow.parquet import ParquetFile

        with _opened(self._path, self._known) as file:
            table = self._decoded(lambda: ParquetFile(file))
            groups = range(group, table.num_row_groups)
            batches = table.iter_batches(batch_size=BATCH, row_groups=groups)
            while batch := self._decoded(lambda: next(batches, None)):
                self._decoded(lambda batch=batch: batch.validate(full=True))
                yield batch

    def _decoded(self, read):
        from pyarrow import ArrowException

        try:
            return read()
        except (ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8, odd dates
            said = str(error).partition("\n")[0]
            raise DataError(
                f"{self._path.name} is not a Parquet file that can be read: {said}",
                "Give the file the ending that matches its content, or write it again.",
            ) from None

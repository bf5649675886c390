"""A file of training rows, `input_ids` and `labels`, written batch by batch and read without taking memory."""

from hashlib import blake2b
from pathlib import Path

import pyarrow
from datasets import Dataset

BATCH = 500  # rows in memory before they are written
SCHEMA = pyarrow.schema(dict.fromkeys(("input_ids", "labels"), pyarrow.list_(pyarrow.int32())))


class RowFile:
    """Writes rows to an Arrow file. `count` is how many; `fingerprint` is another one for other rows."""

    def __init__(self, path: Path):
        self.count = 0
        self._file = pyarrow.ipc.new_stream(str(path), SCHEMA)
        self._waiting: tuple[list, list] = [], []
        self._digest = blake2b(digest_size=8)

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *problem) -> None:
        self._flush()
        self._file.close()

    def add(self, input_ids: list[int], labels: list[int]) -> None:
        self.count += 1
        for waiting, row in zip(self._waiting, (input_ids, labels), strict=True):
            waiting.append(row)
        if len(self._waiting[0]) == BATCH:
            self._flush()

    def _flush(self) -> None:
        columns = [pyarrow.array(column, type=SCHEMA.types[0]) for column in self._waiting]
        for column in columns:
            self._digest.update(column.value_lengths().to_numpy())
            self._digest.update(column.flatten().to_numpy())
        self._file.write_batch(pyarrow.record_batch(columns, schema=SCHEMA))
        self._waiting = [], []

    @property
    def fingerprint(self) -> str:
        return self._digest.hexdigest()


def read_rows(path: Path) -> Dataset | None:
    """The rows of such a file; None where there are none."""
    return Dataset.from_file(str(path)) or None

"""Rows on the disk are the rows that were written, in any order; a file that changed meanwhile is told."""

import json
import random

import pytest

from sft.errors import DataError
from sft.files import read_file
from sft.stored_rows import BATCH, ParquetRows

ROWS = [{"question": f"What is {n}, é?", "answer": str(n) * (n % 7 + 1)} for n in range(3 * BATCH)]


@pytest.fixture(params=["a.jsonl", "a.parquet"])
def path(request, tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / request.param
    if path.suffix == ".jsonl":
        path.write_text("\ufeff\n" + "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS))
    else:  # groups of more than a batch, whose ends are no ends of batches
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=BATCH + 50)
    return path


def test_rows_come_in_any_order(path):
    rows = read_file(path).rows
    assert len(rows) == len(ROWS)
    order = random.Random(0).choices(range(len(ROWS)), k=50)
    assert [rows[index] for index in order] == [ROWS[index] for index in order]
    assert list(rows) == list(rows) == ROWS
    with pytest.raises(IndexError):
        rows[len(ROWS)]


def test_only_a_batch_of_a_parquet_file_is_read_for_the_next_row(tmp_path, path):
    if path.suffix == ".jsonl":
        pytest.skip("JSONL has no batches")
    rows, begun = ParquetRows(path), []
    original = rows.batches
    rows.batches = lambda group: begun.append(group) or original(group)
    assert list(rows) == ROWS
    assert begun == [0]
    assert rows[BATCH + 60] == ROWS[BATCH + 60]
    assert begun == [0, 1]  # back to where its group begins


@pytest.mark.parametrize("change", ["overwritten", "deleted"])
def test_a_file_that_changed_is_told(path, change):
    rows = read_file(path).rows
    iterator = iter(rows)
    next(iterator)
    if change == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"x" + path.read_bytes())
    with pytest.raises(DataError, match="can no longer be read" if change == "deleted" else "has changed since"):
        rows[len(ROWS) - 1]
    if change == "overwritten":
        with pytest.raises(DataError, match="has changed since"):
            list(iterator)


def test_damage_inside_a_parquet_file_shows_when_it_is_opened(path):
    if path.suffix == ".jsonl":
        pytest.skip("covered by the files of test_odd_files.py")
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(DataError, match="is not a Parquet file that can be read"):
        read_file(path)

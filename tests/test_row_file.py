"""Rows come back as they were written, from the disk, and others have another fingerprint."""

from sft.row_file import BATCH, RowFile, read_rows


def written(path, rows):
    with RowFile(path) as file:
        for ids, labels in rows:
            file.add(ids, labels)
    return file


def test_rows_come_back_from_the_disk(tmp_path):
    rows = [(list(range(n % 9 + 1)), [-100] * (n % 9) + [n]) for n in range(2 * BATCH + 3)]
    assert written(tmp_path / "a.arrow", rows).count == len(rows)
    found = read_rows(tmp_path / "a.arrow")
    assert [(row["input_ids"], row["labels"]) for row in found] == rows
    assert found.cache_files == [{"filename": str(tmp_path / "a.arrow")}]


def test_no_rows_are_none(tmp_path):
    written(tmp_path / "a.arrow", [])
    assert read_rows(tmp_path / "a.arrow") is None


def test_other_rows_have_another_fingerprint(tmp_path):
    variants = [[([1, 2], [1, 2])], [([1, 2], [-100, 2])], [([1], [1]), ([2], [2])], [([2, 1], [1, 2])]]
    found = [written(tmp_path / "a.arrow", rows).fingerprint for rows in variants * 2]
    assert len(set(found)) == len(variants)
    assert found[: len(variants)] == found[len(variants) :]

"""Which file is read for a name and a split; a name that leads nowhere says so, and nothing is waited for."""

import json
import os

import pytest

from sft.errors import DataError
from sft.tables import held_out_split, identity, local_path, read_table

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def test_a_folder_with_one_file_for_the_split(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "test.jsonl").write_text(json.dumps(GOOD))
    assert len(read_table(str(tmp_path)).rows) == 1
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(DataError, match="not clear which file"):
        read_table(str(tmp_path))


def test_a_folder_is_read_by_the_names_of_its_files(tmp_path):
    def rows(*split):
        return len(read_table(str(tmp_path), None, *split).rows)

    (tmp_path / "Test-00.jsonl").write_text(json.dumps(GOOD))
    assert rows("test") == 1
    with pytest.raises(DataError, match=r"holds Test-00.jsonl, so it is not clear which file to read as 'train'"):
        rows()
    (tmp_path / "Test-00.jsonl").rename(tmp_path / "rows.jsonl")
    assert rows() == rows("train") == 1
    with pytest.raises(DataError, match="as 'test'"):
        rows("test")
    for split in ("train[:5]", "train+test", ""):
        with pytest.raises(DataError, match="cannot be read from the folder"):
            rows(split)


def test_a_path_that_leads_nowhere():
    with pytest.raises(DataError, match=r"There is no file nowhere\.jsonl"):
        read_table("nowhere.jsonl")
    with pytest.raises(DataError, match="neither a file here nor a possible name"):
        read_table("not a name")


def test_a_link_that_leads_nowhere_and_a_pipe_are_told(tmp_path):
    (tmp_path / "rows.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"rows.jsonl is a link to .*gone.jsonl, which is not there"):
        read_table(str(tmp_path / "rows.jsonl"))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read_table(str(tmp_path / "pipe.jsonl"))  # opening it would wait for a writer for ever
    with pytest.raises(DataError, match="holds no data file"):
        read_table(str(tmp_path))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match=r"folder.jsonl holds no data file"):
        read_table(str(tmp_path / "folder.jsonl"))


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    from pathlib import Path

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        read_table(str(tmp_path))


@pytest.mark.parametrize("source", ["x" * 300, "~nobody-of-this-name/rows", "nul\0byte"])
def test_what_is_no_path_at_all_is_told(source):
    with pytest.raises(DataError, match="is not a path that can be read"):
        read_table(source)


def test_only_the_hub_has_configurations(write_rows, tmp_path):
    path = write_rows([GOOD], "train.jsonl")
    for source in (path, tmp_path):
        with pytest.raises(DataError, match="only a Hub data set has configurations, so 'all' cannot") as caught:
            read_table(str(source), "all")
        assert "dataset_config" in caught.value.hint


def test_a_name_without_a_file_is_left_to_the_hub(tmp_path):
    assert local_path("someone/rows") is None
    assert local_path(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["train.jsonl"], None),
        (["train.jsonl", "test.jsonl", "validation.json"], "test"),
        (["train.jsonl", "Validation-00.csv"], "val"),
        (["train.jsonl", "test-00.jsonl", "test-01.jsonl"], None),
        (["train.jsonl", "tested.txt"], None),
    ],
)
def test_a_folders_held_out_split(tmp_path, names, found):
    for name in names:
        (tmp_path / name).write_text(json.dumps(GOOD))
    assert held_out_split(str(tmp_path), None, "train") == found
    assert held_out_split(str(tmp_path / names[0]), None, "train") is None
    assert held_out_split(str(tmp_path), None, "test") != "test"


def test_a_large_file_is_known_by_its_place_and_time(write_rows, monkeypatch):
    path = write_rows([GOOD])
    content = identity(str(path), None, "train")
    monkeypatch.setattr("sft.files.DIGESTED", 1)
    before = identity(str(path), None, "train")
    os.utime(path, (1, 1))
    assert content != before != identity(str(path), None, "train")

"""A folder is built once, by one at a time, and is whole or not there."""

import threading

import pytest

from sft.errors import DataError
from sft.row_cache import KEPT, cached


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


def never(*_):
    raise AssertionError("nobody asked for this")


def test_a_folder_is_built_once():
    first = cached("a", lambda folder: (folder / "x").write_text("1"), never)
    assert cached("a", never, never) == first
    assert (first / "x").read_text() == "1"


def test_a_build_that_fails_leaves_nothing_and_the_next_builds_anew(cache):
    def fail(folder):
        (folder / "half").write_text("1")
        raise KeyError("no")

    with pytest.raises(KeyError):
        cached("a", fail, never)
    (cache / "a" / "building").mkdir()  # and of one that was killed there may be more
    (cache / "a" / "building" / "half").write_text("1")
    folder = cached("a", lambda folder: (folder / "x").write_text("1"), never)
    assert [path.name for path in folder.iterdir()] == ["x"]
    assert not (cache / "a" / "building").exists()


def test_two_at_once_build_once_and_the_other_waits():
    begun, go_on, waited, built = threading.Event(), threading.Event(), [], []

    def build(folder):
        begun.set()
        assert go_on.wait(10)
        built.append(folder)

    def wait():
        waited.append(1)
        go_on.set()

    builder = threading.Thread(target=lambda: cached("a", build, never))
    builder.start()
    assert begun.wait(10)
    cached("a", never, wait)
    builder.join()
    assert (len(built), len(waited)) == (1, 1)


def test_who_waits_can_be_stopped():
    begun, go_on = threading.Event(), threading.Event()
    builder = threading.Thread(target=lambda: cached("a", lambda folder: begun.set() or go_on.wait(10), never))
    builder.start()
    assert begun.wait(10)
    with pytest.raises(AssertionError, match="nobody asked"):
        cached("a", never, never)
    go_on.set()
    builder.join()


def test_the_folders_used_last_are_kept(cache):
    import os

    for number in range(KEPT):
        cached(str(number), lambda folder: None, never)
        os.utime(cache / str(number), (number, number))
    cached("0", never, never)  # used again
    cached("new", lambda folder: None, never)
    assert {path.name for path in cache.iterdir()} == {"0", "2", "3", "4", "new"}


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be put into .*file") as caught:
        cached("a", never, never)
    assert "SFT_CACHE_DIR" in caught.value.hint

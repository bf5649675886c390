"""Folders of prepared rows, kept between runs: made once for each key, by one process while the others wait.

A folder is made beside its final place and put there by a rename, under a lock that the system frees when a process
dies; so a kill leaves only what the next run clears away.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sft.embedded import cache_dir
from sft.errors import DataError

KEPT = 5  # folders; those that were used longest ago are deleted


def cached(key: str, build: Callable[[Path], None], wait: Callable[[], None]) -> Path:
    """The folder of this key, filled by `build` unless it is there.

    `wait` is called every half second while another process fills it. Raises DataError where nothing can be written.
    """
    home = cache_dir() / "prepared" / key
    try:
        home.mkdir(parents=True, exist_ok=True)
        os.utime(home)
        lock = _locked(home / "lock", wait)
        try:
            _fill(home, build)
        finally:
            lock.release()
        _prune(home.parent)
    except OSError as error:
        raise DataError(
            f"The prepared rows cannot be put into {home.parent}: {error.strerror or error}",
            "Make room there, or set SFT_CACHE_DIR to a folder that you may write to.",
        ) from None
    return home / "rows"


def _locked(path: Path, wait: Callable[[], None]) -> FileLock:
    lock = FileLock(path)
    while True:
        try:
            lock.acquire(timeout=0.5)
            return lock
        except Timeout:
            wait()


def _fill(home: Path, build: Callable[[Path], None]) -> None:
    building = home / "building"
    if (home / "rows").is_dir():
        return
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        build(building)
        building.rename(home / "rows")
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _prune(prepared: Path) -> None:
    """A run that still reads a deleted folder keeps its files until it ends."""
    used = {}
    for home in prepared.iterdir():
        with suppress(FileNotFoundError):  # another process prunes too
            used[home] = home.stat().st_mtime
    for home in sorted(used, key=used.get, reverse=True)[KEPT:]:
        shutil.rmtree(home, ignore_errors=True)

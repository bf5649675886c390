"""A lock on the folder that holds the runs, which the system frees when a process dies."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft.errors import RunError


@contextmanager
def locked(root: Path) -> Iterator[Path]:
    """One process at a time makes, resumes, renames or deletes runs: whoever joins the line sees who is ahead.

    Yields the path of a folder that is no run and is gone afterwards, to make or delete one in. Raises RunError where
    nothing can be written.
    """
    aside = root / ".aside"
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(root, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed here
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise _unwritable(root, error) from error
    finally:
        os.close(descriptor)


def _unwritable(root: Path, error: OSError) -> RunError:
    return RunError(f"The runs in {root} cannot be changed: {error}", "Make room there, or give another --runs-dir.")

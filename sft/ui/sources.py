"""Where rows come from, an example, a visitor's upload or the Hub, and the table that was read there."""

import hashlib
import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from sft.errors import DataError
from sft.runs import runs_dir
from sft.tables import Table, read_table
from sft.ui.inputs import DATA, is_path, stamp


class Source(NamedTuple):
    """What `read_table` takes. An upload's name holds the digest of its content, so no visitor can meet another's."""

    name: str
    config: str | None = None
    split: str = "train"


class NothingChosen(DataError):
    """No mistake: the visitor has not come to it yet."""


def chosen(kind, example, upload, hub_id, hub_config, split) -> Source:
    """The source that the page's fields name."""
    if kind == "Example":
        return Source(str(DATA[example]))
    if kind == "Upload":
        if not upload:
            raise NothingChosen("No file is uploaded yet.", "Drop a JSONL, JSON, CSV or Parquet file.")
        return Source(str(keep(Path(upload))))
    name = (hub_id or "").strip()
    if not name:
        raise NothingChosen("No Hub id is given yet.", "Write an id such as HuggingFaceTB/smoltalk and press Enter.")
    if is_path(name):
        raise DataError(f"{name} names a file of this machine.", "Upload the file, or give a Hub id.")
    return Source(name, (hub_config or "").strip() or None, (split or "").strip() or "train")


def keep(upload: Path) -> Path:
    """The uploaded file under a name that outlives the page, so that its run can be run again."""
    with upload.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    kept = runs_dir() / ".uploads" / digest / upload.name  # no run can have this name, be renamed to it and deleted
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Under its final name only when whole: a copy that was killed would be taken for the file ever after.
        part = kept.with_name(f".{secrets.token_hex(8)}.part")
        try:
            shutil.copyfile(upload, part)
            part.replace(kept)
        finally:
            part.unlink(missing_ok=True)
    return kept


# ---- what is kept ----


class Kept:
    """What takes long to make, by key. While all weigh more than `most`, what was used longest ago is let go; it is
    found again as long as somebody else still holds it, so that no work that goes on has to begin anew."""

    def __init__(self, most: int, weigh: Callable):
        self._most, self._weigh, self._lock = most, weigh, threading.Lock()
        self._kept: dict = {}  # key → (value, weight), what was used last at the end
        self._held = WeakValueDictionary()

    def get(self, key, make: Callable):
        value = self._held.get(key)
        value = make() if value is None else value
        with self._lock:
            value = self._held.setdefault(key, value)  # another thread may have made it meanwhile
            self._kept.pop(key, None)
            self._kept[key] = value, self._weigh(key, value)
            while len(self._kept) > 1 and sum(weight for _, weight in self._kept.values()) > self._most:
                del self._kept[next(iter(self._kept))]
        return value


MOST_KEPT = 250 * 2**20  # bytes, as `weight` counts them
_ENTRY = 10_000  # bytes


def weight(files: tuple, table: Table) -> int:
    """About the bytes of a table's files; rows of the Hub stay on the disk."""
    return _ENTRY + sum(size for *_, size in files) + len(table.rows)


_TABLES = Kept(MOST_KEPT, lambda key, table: weight(key[1], table))


def table_of(source: Source) -> Table:
    """The source's table, read once and again when its file changes."""
    return _TABLES.get((source, stamp(source.name)), lambda: read_table(*source))

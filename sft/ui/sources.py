"""Where rows come from, an example, a visitor's upload or the Hub, and the table that was read there."""

import hashlib
import secrets
import shutil
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

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
    kept = runs_dir() / "uploads" / digest / upload.name
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


def table_of(source: Source) -> Table:
    """The source's table, read once and again when its file changes."""
    return _table(source, stamp(source.name))


@lru_cache(maxsize=4)
def _table(source: Source, stamp: tuple) -> Table:
    return read_table(*source)

"""events.jsonl: one JSON object a line, appended by a run's process and read by pages while it grows.

A page asks every second and a run has thousands of lines, so what was read is kept and only what was appended since
is read again.
"""

import json
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

_KEPT_FILES = 32
_kept: OrderedDict[Path, "_Read"] = OrderedDict()
_lock = threading.Lock()


@dataclass
class _Read:
    """What of a file was read: its events, up to which byte, and by what the file is known again."""

    inode: int
    beginning: bytes = b""
    end: int = 0
    events: list[dict] = field(default_factory=list)


def append(path: Path, event: dict) -> None:
    """Adds one line, in one write. It begins on a fresh line also where a process died while it wrote the last one."""
    line = json.dumps(event, ensure_ascii=False).encode() + b"\n"
    with path.open("ab+") as file:
        if size := file.seek(0, 2):
            file.seek(size - 1)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def read(path: Path) -> list[dict]:
    """The events so far, less those that a resume has superseded. Lines that are no events are left out.

    The dicts are shared between callers: do not change them.
    """
    with _lock:
        try:
            with path.open("rb") as file:
                known = _known(path, file)
                file.seek(known.end)
                appended, newline, _ = file.read().rpartition(b"\n")  # what follows is still being written
        except FileNotFoundError:
            _kept.pop(path, None)
            return []
        known.end += len(appended) + len(newline)
        for line in filter(None, appended.split(b"\n")):
            _add(known.events, line)
        return known.events.copy()


def _known(path: Path, file) -> _Read:
    """What was read of this very file: not of one that had its name, or its place on the disk, before it."""
    beginning = file.read(100).partition(b"\n")[0]  # holds the time of the first event
    status = os.fstat(file.fileno())
    known = _kept.pop(path, None)
    same = known and known.inode == status.st_ino and known.end <= status.st_size
    if not same or not beginning.startswith(known.beginning):
        known = _Read(status.st_ino)
    known.beginning = beginning
    _kept[path] = known
    if len(_kept) > _KEPT_FILES:
        _kept.popitem(last=False)
    return known


def _add(events: list[dict], line: bytes) -> None:
    try:
        event = json.loads(line)
    except ValueError:
        return  # cut short by a kill or a full disk
    if not isinstance(event, dict) or "kind" not in event:
        return
    if event["kind"] == "start":
        step = event.get("resumed_from", 0)
        events[:] = [old for old in events if old["kind"] != "end" and old.get("step", 0) <= step]
    events.append(event)

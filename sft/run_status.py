"""status.json: how a run is doing, as the process that works on it says, and whether there still is one."""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

ACTIVE = ("queued", "preparing", "training", "saving")  # then finished, stopped, failed or interrupted
_START_GRACE = 10.0  # seconds that a process may take to write its first status


@dataclass(frozen=True)
class Status:
    """What `status.json` says.

    `queued`, `started` and `updated` are seconds since 1970: when the run last joined the line, was made, and wrote
    this. `pid` is None before the process wrote its first status.
    """

    state: str
    step: int = 0
    max_steps: int = 0
    pid: int | None = None
    process_started: float | None = None
    queued: float = 0.0
    started: float = 0.0
    updated: float = 0.0
    message: str = ""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    def process_lives(self) -> bool:
        if self.pid is None:  # the run was made, and the process is still starting
            return time.time() - self.updated < _START_GRACE
        try:
            process = psutil.Process(self.pid)
            # A number can be given to another process later, so the start time has to match as well.
            same = self.process_started is None or abs(process.create_time() - self.process_started) < 2
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True  # it is there, and belongs to someone else


def read_status(folder: Path) -> Status:
    """What the folder says, whether its process lives or not."""
    try:
        written = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        return Status(**{key: value for key, value in written.items() if key in Status.__dataclass_fields__})
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return Status("interrupted", message="The run folder has no status that can be read.")


def write_status(
    folder: Path,
    state: str,
    *,
    message: str = "",
    pid: int | None = None,
    step: int | None = None,
    max_steps: int | None = None,
    queued: float | None = None,
) -> None:
    """Replaces the status. `pid` is the process that works on the run: this one, unless another is given; 0 stands for
    none. Steps and place in line are kept unless they are given."""
    now, before = time.time(), read_status(folder)
    process = None if pid == 0 else psutil.Process(pid)
    given = {"step": step, "max_steps": max_steps, "queued": queued}
    status = replace(
        before,
        state=state,
        message=message,
        pid=process and process.pid,
        process_started=process and process.create_time(),
        started=before.started or now,
        updated=now,
        **{name: value for name, value in given.items() if value is not None},
    )
    temporary = folder / f".status-{os.getpid()}.json"
    temporary.write_text(json.dumps(vars(status)), encoding="utf-8")
    temporary.replace(folder / "status.json")

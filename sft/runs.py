"""The run folder: one training attempt on disk, readable while it is written.

Knows nothing about models or training. Writers replace `status.json` atomically and append whole lines to
`events.jsonl`, so a reader in another process never sees half of anything, and a run outlives every process.
"""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from sft.config import TrainConfig
from sft.errors import RunError

ACTIVE = ("queued", "preparing", "training", "saving")
ENDED = ("finished", "stopped", "failed", "interrupted")
LOCAL_OWNER = "local"
_START_GRACE = 10.0  # seconds that a process may take to write its first status
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def runs_dir(given: str | Path | None = None) -> Path:
    """Where run folders live: `--runs-dir`, else SFT_RUNS_DIR, else `runs`."""
    return Path(given or os.environ.get("SFT_RUNS_DIR") or "runs")


@dataclass(frozen=True)
class Status:
    """What `status.json` says, after the check that the process behind an active state still lives.

    `started` and `updated` are seconds since 1970; `pid` is None before the process wrote its first status.
    """

    state: str
    step: int = 0
    max_steps: int = 0
    pid: int | None = None
    process_started: float | None = None
    started: float = 0.0
    updated: float = 0.0
    message: str = ""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


@dataclass(frozen=True)
class Run:
    """A run folder. Two Runs of the same folder are equal; all state is on disk."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def log_file(self) -> Path:
        return self.folder / "log.txt"

    @property
    def owner(self) -> str:
        path = self.folder / "owner.txt"
        return path.read_text().strip() if path.is_file() else LOCAL_OWNER

    @property
    def has_adapter(self) -> bool:
        """Whether a whole adapter is there: the folder is put in place by one rename, after it is written."""
        return (self.adapter / "adapter_model.safetensors").is_file()

    def config(self) -> TrainConfig:
        return TrainConfig.load(self.folder / "config.yaml")

    # ---- status ----

    def status(self) -> Status:
        """The state now: `interrupted` where the folder says that a process works on it and none does."""
        try:
            written = json.loads((self.folder / "status.json").read_text(encoding="utf-8"))
            status = Status(**{key: value for key, value in written.items() if key in Status.__dataclass_fields__})
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return Status("interrupted", message="The run folder has no status that can be read.")
        if status.active and not self._process_lives(status):
            return Status(**{**vars(status), "state": "interrupted", "message": _gone(status)})
        return status

    def set_status(
        self, state: str, *, step: int = 0, max_steps: int = 0, message: str = "", pid: int | None = None
    ) -> None:
        """Replaces `status.json`. `pid` is the process that works on the run: this one, unless another is given.

        0 stands for none yet.
        """
        now = time.time()
        previous = self.folder / "status.json"
        started = json.loads(previous.read_text())["started"] if previous.is_file() else now
        process = None if pid == 0 else psutil.Process(pid)
        status = Status(
            state,
            step,
            max_steps,
            process.pid if process else None,
            process.create_time() if process else None,
            started,
            now,
            message,
        )
        temporary = self.folder / f".status-{os.getpid()}.json"
        temporary.write_text(json.dumps(vars(status)), encoding="utf-8")
        temporary.replace(previous)

    @staticmethod
    def _process_lives(status: Status) -> bool:
        if status.pid is None:  # created, and the process is still starting
            return time.time() - status.updated < _START_GRACE
        try:
            process = psutil.Process(status.pid)
            # A number can be given to another process later, so the start time has to match as well.
            same = status.process_started is None or abs(process.create_time() - status.process_started) < 2
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return True  # it is there, and belongs to someone else

    # ---- events and log ----

    def append_event(self, kind: str, **values) -> None:
        line = json.dumps({"time": time.time(), "kind": kind, **values}, ensure_ascii=False)
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def events(self, *kinds: str) -> list[dict]:
        """The events so far, of the given kinds or all. A last line still being written is left out."""
        path = self.folder / "events.jsonl"
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        events = [json.loads(line) for line in lines if line]
        return [event for event in events if not kinds or event["kind"] in kinds]

    def log_tail(self, lines: int = 15) -> str:
        if not self.log_file.is_file():
            return ""
        with self.log_file.open("rb") as file:
            file.seek(max(0, self.log_file.stat().st_size - 20_000))
            text = file.read().decode("utf-8", errors="replace")
        # A progress bar rewrites its line with carriage returns; only what it said last is of interest.
        return "\n".join(line.rsplit("\r", 1)[-1] for line in text.rstrip().split("\n")[-lines:])

    # ---- stop ----

    def ask_to_stop(self) -> None:
        (self.folder / "stop").touch()

    @property
    def stop_asked(self) -> bool:
        return (self.folder / "stop").exists()

    def delete(self) -> None:
        """Removes the folder. Raises RunError while its process works."""
        if self.status().active:
            raise RunError(f"The run {self.name} is still working.", "Stop it first.")
        shutil.rmtree(self.folder)


def create_run(config: TrainConfig, root: Path, name: str | None = None, owner: str = LOCAL_OWNER) -> Run:
    """A new run folder in state `queued`. Without a name one is made from data set and time.

    Raises RunError where the name is taken or is not a plain file name.
    """
    name = name or _new_name(config, root)
    if not _NAME.fullmatch(name):
        raise RunError(
            f"{name!r} cannot name a run.",
            "Use up to 100 letters, digits, dots, dashes and underscores, beginning with a letter or digit.",
        )
    folder = root / name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise RunError(f"There is already a run {name} in {root}.", "Give another --run-name.") from None
    run = Run(folder)
    if owner != LOCAL_OWNER:
        (folder / "owner.txt").write_text(owner)
    config.save(folder / "config.yaml")
    run.set_status("queued", max_steps=config.max_steps, message="Waiting for its process to start.", pid=0)
    return run


def _new_name(config: TrainConfig, root: Path) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(config.dataset).name.split(".")[0]).strip("-")[:40] or "run"
    name = f"{stem}-{time.strftime('%m%d-%H%M%S')}"
    return name if not (root / name).exists() else f"{name}-{secrets.token_hex(2)}"


def find_run(name: str, root: Path, owner: str | None = None) -> Run:
    """The run of that name; RunError names the nearest when there is none, or when it is someone else's."""
    path = root / name
    if _NAME.fullmatch(name) and (path / "config.yaml").is_file():
        run = Run(path)
        if owner is None or run.owner == owner:
            return run
    names = ", ".join(run.name for run in list(list_runs(root, owner))[:5]) or "none yet"
    raise RunError(f"There is no run {name!r} in {root}.", f"Runs there: {names}.")


def list_runs(root: Path, owner: str | None = None) -> Iterator[Run]:
    """All runs, newest first; with `owner`, that visitor's alone."""
    if not root.is_dir():
        return
    folders = [folder for folder in root.iterdir() if (folder / "config.yaml").is_file()]
    for folder in sorted(folders, key=lambda folder: (folder / "config.yaml").stat().st_mtime, reverse=True):
        run = Run(folder)
        if owner is None or run.owner == owner:
            yield run


def _gone(status: Status) -> str:
    if status.pid is None:
        return "Its process never started."
    return f"The process {status.pid} ended without a word at step {status.step}; it was killed, or ran out of memory."

"""The run folder: one training attempt on disk, readable while it is written.

Knows nothing about models or training. Writers replace `status.json` atomically and append whole lines to
`events.jsonl`, so a reader in another process never sees half of anything, and a run outlives every process.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from sft import events
from sft.config import TrainConfig
from sft.errors import RunError

ACTIVE = ("queued", "preparing", "training", "saving")
ENDED = ("finished", "stopped", "failed", "interrupted")
LOCAL_OWNER = "local"
_START_GRACE = 10.0  # seconds that a process may take to write its first status
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def runs_dir(given: str | Path | None = None) -> Path:
    """Where run folders live: `--runs-dir`, else SFT_RUNS_DIR, else `runs`."""
    return Path(given or os.environ.get("SFT_RUNS_DIR") or "runs")


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
    def model(self) -> Path:
        """Where full fine-tuning puts the whole model."""
        return self.folder / "model"

    @property
    def result(self) -> Path | None:
        """What training made, the adapter or the model: each is put in place by one rename, after it is written."""
        return next((folder for folder in (self.adapter, self.model) if folder.is_dir()), None)

    @property
    def has_result(self) -> bool:
        return self.result is not None

    def config(self) -> TrainConfig:
        return TrainConfig.load(self.folder / "config.yaml")

    # ---- checkpoints ----

    @property
    def checkpoint(self) -> Path | None:
        """The newest checkpoint, from which the run resumes. One rename puts it in place, so it is whole."""
        found = [path for path in self.folder.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
        return max((path for path in found if _CHECKPOINT.fullmatch(path.name)), key=step_of, default=None)

    @property
    def staging(self) -> Path:
        """Where the next checkpoint is written until it is whole."""
        return self.folder / "checkpoint.writing"

    @property
    def resumable(self) -> bool:
        return self.status().state in ("stopped", "failed", "interrupted")

    # ---- status ----

    def status(self) -> Status:
        """The state now: `interrupted` where the folder says that a process works on it and none does."""
        status = self.written_status()
        if status.active and not _process_lives(status):
            return replace(status, state="interrupted", message=self._what_ended_it(status))
        return status

    def written_status(self) -> Status:
        """What the folder says, alive or not: much cheaper where there are hundreds."""
        try:
            written = json.loads((self.folder / "status.json").read_text(encoding="utf-8"))
            return Status(**{key: value for key, value in written.items() if key in Status.__dataclass_fields__})
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return Status("interrupted", message="The run folder has no status that can be read.")

    def set_status(
        self,
        state: str,
        *,
        step: int = 0,
        max_steps: int = 0,
        message: str = "",
        pid: int | None = None,
        queued: float | None = None,
    ) -> None:
        """Replaces `status.json`. `pid` is the process that works on the run: this one, unless another is given.

        0 stands for none. `queued` is kept unless it is given.
        """
        now, before = time.time(), self.written_status()
        process = None if pid == 0 else psutil.Process(pid)
        status = Status(
            state,
            step,
            max_steps,
            process.pid if process else None,
            process.create_time() if process else None,
            queued or before.queued,
            before.started or now,
            now,
            message,
        )
        temporary = self.folder / f".status-{os.getpid()}.json"
        temporary.write_text(json.dumps(vars(status)), encoding="utf-8")
        temporary.replace(self.folder / "status.json")

    def _what_ended_it(self, status: Status) -> str:
        """Why a process that ended without a word may have: the reader's guess, with what it is made from."""
        if status.pid is None:
            return "Its process never started."
        ended = f"The process {status.pid} ended without a word at step {status.step}"
        if not os.access(self.folder, os.W_OK):
            return f"{ended}; its folder cannot be written."
        held = next((event["memory"] for event in reversed(self.events("log")) if event.get("memory")), None)
        of_memory = f" It held {_gb(held)} of the {_gb(psutil.virtual_memory().total)} of memory." if held else ""
        return f"{ended}; it was killed, or ran out of memory.{of_memory}"

    # ---- events and log ----

    def append_event(self, kind: str, **values) -> None:
        events.append(self.folder / "events.jsonl", {"time": time.time(), "kind": kind, **values})

    def events(self, *kinds: str) -> list[dict]:
        """The events so far, of the given kinds or all, without those of steps that a resume took back.

        They are shared: do not change them.
        """
        return [event for event in events.read(self.folder / "events.jsonl") if not kinds or event["kind"] in kinds]

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
        with _locked(self.folder.parent):
            self._refuse_while_active()
            shutil.rmtree(self.folder)

    def enter_line(self) -> None:
        """A run that ended without finishing joins the end of the line again, as `queued`.

        Raises RunError where it works still or has finished. What a process left half-written is removed.
        """
        with _locked(self.folder.parent):
            self._refuse_while_active()
            before = self.written_status()
            if before.state == "finished":
                raise RunError(f"The run {self.name} is finished: there is nothing to resume.", "Start a new run.")
            self.tidy()
            (self.folder / "stop").unlink(missing_ok=True)
            self.set_status(
                "queued",
                step=step_of(self.checkpoint),
                max_steps=self.config().max_steps,
                message="Waiting for its process to start.",
                pid=0,
                queued=time.time(),
            )

    def tidy(self) -> None:
        """Removes what a process that is gone has left half-written; a result that had to give way comes back."""
        for old in self.folder.glob("*.before"):
            if not (result := old.with_suffix("")).exists():
                old.rename(result)
        for left in [*self.folder.glob("*.writing"), *self.folder.glob("*.before")]:
            shutil.rmtree(left)
        for left in self.folder.glob(".status-*.json"):
            left.unlink()

    def _refuse_while_active(self) -> None:
        if self.status().active:
            raise RunError(f"The run {self.name} is still working.", "Stop it first.")


def step_of(checkpoint: Path | None) -> int:
    """The step after which a checkpoint was written; 0 for none."""
    return int(_CHECKPOINT.fullmatch(checkpoint.name)[1]) if checkpoint else 0


def create_run(config: TrainConfig, root: Path, name: str | None = None, owner: str = LOCAL_OWNER) -> Run:
    """A new run folder in state `queued`. Without a name one is made from data set and time.

    Raises RunError where the name is taken or is not a plain file name.
    """
    name = name or _new_name(config, root)
    _check_name(name)
    with _locked(root):
        run = Run(root / name)
        try:
            run.folder.mkdir()
        except FileExistsError:
            raise RunError(f"There is already a run {name} in {root}.", "Give another --run-name.") from None
        if owner != LOCAL_OWNER:
            (run.folder / "owner.txt").write_text(owner)
        config.save(run.folder / "config.yaml")
        waiting = "Waiting for its process to start."
        run.set_status("queued", max_steps=config.max_steps, message=waiting, pid=0, queued=time.time())
    return run


def rename(run: Run, name: str) -> Run:
    """The run under its new name. Raises RunError while it works, and where the name is taken or cannot be one."""
    _check_name(name)
    folder = run.folder.with_name(name)
    with _locked(folder.parent):
        run._refuse_while_active()
        if folder.exists():
            raise RunError(f"There is already a run {name} in {folder.parent}.", "Give another name.")
        run.folder.rename(folder)
    return Run(folder)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise RunError(
            f"{name!r} cannot name a run.",
            "Use up to 100 letters, digits, dots, dashes and underscores, beginning with a letter or digit.",
        )


@contextmanager
def _locked(root: Path):
    """One process at a time makes, resumes, renames or deletes runs: whoever joins the line sees who is ahead.

    Raises RunError where the folder cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root, os.O_RDONLY)
    except OSError as error:
        raise _unwritable(root, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise _unwritable(root, error) from error
    finally:
        os.close(descriptor)


def _unwritable(root: Path, error: OSError) -> RunError:
    return RunError(f"The runs in {root} cannot be changed: {error}", "Make room there, or give another --runs-dir.")


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


def differing(runs: list[Run]) -> dict[str, list]:
    """The settings in which the runs' configs differ → the value of each run, in their order."""
    configs = [asdict(run.config()) for run in runs]
    columns = {name: [config[name] for config in configs] for name in (configs[0] if configs else ())}
    return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}


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


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"

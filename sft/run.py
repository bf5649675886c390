"""The run folder: one training attempt on disk, readable while it is written.

Knows nothing about models or training. Writers replace `status.json` atomically and append whole lines to
`events.jsonl`, so a reader in another process never sees half of anything, and a run outlives every process.
"""

import os
import re
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from sft import events
from sft.config import TrainConfig
from sft.errors import RunError
from sft.run_status import Status, read_status, write_status
from sft.runs_lock import locked

LOCAL_OWNER = "local"
LITTLE = 16_384  # bytes of room in which not even a status fits reliably
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


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
        try:
            return (self.folder / "owner.txt").read_text().strip()
        except FileNotFoundError:
            return LOCAL_OWNER

    @property
    def model(self) -> Path:
        """Where full fine-tuning puts the whole model."""
        return self.folder / "model"

    @property
    def result(self) -> Path | None:
        """What training made, the adapter or the model: each is put in place by one rename, after it is written.

        The one that a resumed run had before counts until then: a kill may come between the two renames.
        """
        places = (self.adapter, self.model)
        before = (folder.with_name(f"{folder.name}.before") for folder in places)
        return next((folder for folder in (*places, *before) if folder.is_dir()), None)

    @property
    def has_result(self) -> bool:
        return self.result is not None

    @property
    def snapshots(self) -> list[int]:
        """The steps, rising, after which the adapter was kept as it was then."""
        return sorted(int(folder.name) for folder in self.folder.glob("snapshots/*") if folder.name.isdecimal())

    def snapshot(self, step: int) -> Path:
        """The adapter as it was after that step, where it is one of `snapshots`. One rename put it in place."""
        return self.folder / "snapshots" / str(step)

    def config(self) -> TrainConfig:
        return TrainConfig.load(self.folder / "config.yaml")

    @property
    def base_fingerprint(self) -> str | None:
        """The fingerprint of the base model that it was tuned from, once training has begun; see models.py."""
        return next((event.get("base") for event in reversed(self.events("start"))), None)

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
        if status.active and not status.process_lives():
            return replace(status, state="interrupted", message=self._what_ended_it(status))
        return status

    def written_status(self) -> Status:
        """What the folder says, alive or not: much cheaper where there are hundreds."""
        return read_status(self.folder)

    def set_status(self, state: str, **told) -> None:
        """Replaces `status.json`. What may be told besides, `write_status` says."""
        write_status(self.folder, state, **told)

    def _what_ended_it(self, status: Status) -> str:
        """Why a process that ended without a word may have: the reader's guess, with what it is made from."""
        if status.pid is None:
            return "Its process never started."
        ended = f"The process {status.pid} ended without a word at step {status.step}"
        if not os.access(self.folder, os.W_OK):
            return f"{ended}; its folder cannot be written."
        held = next((event["memory"] for event in reversed(self.events("log")) if event.get("memory")), None)
        if any(event.get("device") != "cpu" for event in self.events("start")):  # it is a GPU's
            held = None
        of_memory = (
            f" It held {gigabytes(held)} of the {gigabytes(psutil.virtual_memory().total)} of memory." if held else ""
        )
        no_room = shutil.disk_usage(self.folder).free < LITTLE
        of_disk = " The disk of its folder is full now." if no_room else ""
        return f"{ended}; it was killed, or ran out of memory.{of_memory}{of_disk}"

    # ---- events and log ----

    def append_event(self, kind: str, **values) -> None:
        events.append(self.folder / "events.jsonl", {"time": time.time(), "kind": kind, **values})

    def events(self, *kinds: str) -> list[dict]:
        """The events so far, of the given kinds or all, without those of steps that a resume took back.

        They are shared: do not change them.
        """
        return [event for event in events.read(self.folder / "events.jsonl") if not kinds or event["kind"] in kinds]

    def log_tail(self, lines: int = 15, name: str = "log.txt") -> str:
        """The last lines of a file that a process of the run printed into."""
        path = self.folder / name
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 20_000))
            text = file.read().decode("utf-8", errors="replace")
        # A progress bar rewrites its line with carriage returns; only what it said last is of interest.
        return "\n".join(line.rsplit("\r", 1)[-1] for line in text.rstrip().split("\n")[-lines:])

    # ---- the line, and the end ----

    def enter_line(self) -> None:
        """A run that ended without finishing joins the end of the line again, as `queued`.

        Raises RunError where it works still or has finished. What a process left half-written is removed.
        """
        with locked(self.folder.parent):
            self.refuse_while_active()
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

    def leave_line(self) -> bool:
        """Called by the run's own process when it is its turn: the run is `preparing`. False where it was withdrawn."""
        with locked(self.folder.parent):
            status = self.written_status()
            if (status.state, status.pid) != ("queued", os.getpid()):
                return False  # withdrawn, and by now perhaps resumed by another process
            if self.stop_asked:
                self._withdraw()
                return False
            self.set_status("preparing", message="Loading the libraries.")
            return True

    def ask_to_stop(self) -> None:
        """Asks the run to save and end, which it does within seconds. One that still waits in line has ended at once:
        its process, if there is one, sees this and goes."""
        with locked(self.folder.parent):
            (self.folder / "stop").touch()
            if self.written_status().state == "queued":
                self._withdraw()

    def _withdraw(self) -> None:
        self.set_status("stopped", message="Withdrawn from the line.", pid=0)

    @property
    def stop_asked(self) -> bool:
        return (self.folder / "stop").exists()

    def reconcile(self) -> None:
        """Where no process works on the run: removes what one has left, and writes down that it is gone if it did not
        say so itself."""
        with locked(self.folder.parent):
            status = self.status()
            if status.active:
                return
            self.tidy()
            if self.written_status().active:
                self.set_status(status.state, message=status.message, pid=0)

    def tidy(self) -> None:
        """Removes what is half-written or superseded; a result that had to give way comes back.

        For the process that works on the run, or where none does and the lock is held.
        """
        for old in self.folder.glob("*.before"):
            if not (result := old.with_suffix("")).exists():
                old.rename(result)
        wanted = None if self.written_status().state == "finished" else self.checkpoint
        for pattern in ("*.writing", "*.before", "checkpoint-*"):
            for left in self.folder.glob(pattern):
                if left != wanted:
                    shutil.rmtree(left)
        for left in self.folder.glob(".status-*.json"):
            left.unlink(missing_ok=True)

    def delete(self) -> None:
        """Removes the folder. Raises RunError while its process works."""
        with locked(self.folder.parent) as aside:
            self.refuse_while_active()
            self.folder.rename(aside)  # so that nobody finds what is left of it

    def refuse_while_active(self) -> None:
        if self.status().active:
            raise RunError(f"The run {self.name} is still working.", "Stop it first.")


def step_of(checkpoint: Path | None) -> int:
    """The step after which a checkpoint was written; 0 for none."""
    return int(_CHECKPOINT.fullmatch(checkpoint.name)[1]) if checkpoint else 0


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds in words, as exactly as a forecast can be: 42 s, 2 min 40 s, 3 h 20 min."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    tens, minutes = round(seconds / 10), round(seconds / 60)
    if tens < 360:
        return _both(tens // 6, "min", tens % 6 * 10, "s")
    return _both(minutes // 60, "h", minutes % 60, "min")


def _both(large: int, unit: str, small: int, part: str) -> str:
    return f"{large:,} {unit} {small} {part}" if small else f"{large:,} {unit}"

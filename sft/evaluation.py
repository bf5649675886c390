"""The evaluation of a run, in its folder: the last whole one, and how far one under way has come.

`evaluation.json` and `evaluating.json` are replaced by one rename each, so a reader sees a whole document, and an
evaluation that fails, stops or dies leaves the one before it as it was. Knows nothing about models.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import psutil

from sft.errors import RunError, UserError
from sft.run import Run
from sft.run_status import Status
from sft.runs import list_runs, training_in
from sft.runs_lock import locked

RESULT, PROGRESS = "evaluation.json", "evaluating.json"
MOST_EXAMPLES = 64  # every row is read with all of them before it
BESIDE = "A training is under way on the same cores: it and a measurement slow each other down."
FAILED = "failed"  # the stage of an evaluation that ended without a result
_NUMBER = (int, float)
_TOLD = {"stage": (str,), "message": (str,), "share": _NUMBER, "started": _NUMBER, "process_started": _NUMBER}
_HELD = {"arms": (dict,), "verdict": (dict,), "rows": (list,), "settings": (dict,)}
_PIDS = range(1, 2**31)
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Settings:
    """What is measured and how. The rows are those of the file `data`, else the run's own held-out part; `limit` takes
    so many of them, drawn by `seed`. `system` and `examples`, drawn too, are what the prompted arm gets; see
    best_prompt.py.

    Raises RunError for more than MOST_EXAMPLES.
    """

    data: str | None = None
    limit: int | None = None
    system: str | None = None
    examples: int = 3
    seed: int = 0

    def __post_init__(self):
        if self.examples > MOST_EXAMPLES:
            raise RunError(
                f"{self.examples} examples are more than a prompt is measured with.", f"Take {MOST_EXAMPLES} at most."
            )

    def as_options(self) -> list[str]:
        """As the command line takes them."""
        return [f"--{name}={value}" for name, value in asdict(self).items() if value is not None]


def read_evaluation(run: Run) -> dict | None:
    """The last whole evaluation, as `evaluate --json` printed it; None where there is none."""
    return _read(run, RESULT, _HELD)


def read_progress(run: Run) -> dict | None:
    """How far an evaluation under way has come; None where none is.

    `stage` is in words, `share` from 0 to 1, `started` seconds since 1970, `message` what else there is to say. Where
    it ended without a result the stage is "failed" and the message says why, until the next one begins.
    """
    told = _read(run, PROGRESS, {**_TOLD, "pid": (int,)})
    if told is None or told["pid"] not in _PIDS:
        return None
    if told["stage"] == FAILED or _lives(told):
        return told
    message = f"The process {told['pid']} ended without a word: it was killed, or ran out of memory."
    return {**told, "stage": FAILED, "message": message}


def under_way(run: Run) -> bool:
    progress = read_progress(run)
    return progress is not None and progress["stage"] != FAILED


def claim(run: Run, pid: int) -> dict:
    """Says that the process `pid` evaluates the run, and returns what it says.

    Raises RunError where another process does, and where another run of the folder is being evaluated: each needs the
    memory and the cores of all.
    """
    with locked(run.folder.parent):
        told = read_progress(run)
        if told and told["stage"] != FAILED and told["pid"] != pid:
            raise RunError(f"The run {run.name} is being evaluated already.", "Wait until that has ended, or stop it.")
        for other in list_runs(run.folder.parent):
            if other.name != run.name and under_way(other):
                if other.owner == run.owner:
                    raise RunError(f"The run {other.name} is being evaluated.", "Wait for its end, or stop it.")
                raise RunError("Another visitor's run is being evaluated.", "Wait for its end: one goes at a time.")
        forget_progress(run)
        told = {
            "stage": "loading",
            "share": 0.0,
            "message": BESIDE if training_in(run.folder.parent) else "",
            "pid": pid,
        }
        told |= {"process_started": psutil.Process(pid).create_time(), "started": time.time()}
        _write(run, PROGRESS, told)
    return told


@contextmanager
def reporting(run: Run) -> Iterator[Report]:
    """Yields what tells the run's folder how far this process has come with its evaluation: a stage and a share.

    Afterwards nothing is under way; an error stays as its message.
    """
    told = claim(run, os.getpid())

    def report(stage: str, share: float) -> None:
        _write(run, PROGRESS, {**told, "stage": stage, "share": share})

    try:
        yield report
    except UserError as error:
        _write(run, PROGRESS, {**told, "stage": FAILED, "message": str(error)})
        raise
    except Exception as error:  # ours: the log has all of it
        _write(run, PROGRESS, {**told, "stage": FAILED, "message": f"{type(error).__name__}: {error}"})
        raise
    except KeyboardInterrupt:
        forget_progress(run)
        raise
    else:
        forget_progress(run)


def keep(run: Run, document: dict) -> None:
    """Replaces the last evaluation."""
    _write(run, RESULT, document)


def forget_progress(run: Run) -> None:
    """After this nothing is under way, and what a killed process left half-written is gone."""
    for left in (run.folder / PROGRESS, *run.folder.glob(".evaluat*")):
        left.unlink(missing_ok=True)


def _lives(told: dict) -> bool:
    return Status("", pid=told["pid"], process_started=told["process_started"]).process_lives()


def _read(run: Run, name: str, wanted: dict[str, tuple[type, ...]]) -> dict | None:
    """The document, if it is one that we wrote: with values of the `wanted` types."""
    try:
        found = json.loads((run.folder / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    ours = isinstance(found, dict) and all(type(found.get(key)) in types for key, types in wanted.items())
    return found if ours else None


def _write(run: Run, name: str, document: dict) -> None:
    temporary = run.folder / f".{name}-{os.getpid()}"
    try:
        temporary.write_text(json.dumps(document, ensure_ascii=False, allow_nan=False), encoding="utf-8")
        temporary.replace(run.folder / name)
    except OSError as error:
        raise RunError(f"The evaluation cannot be kept in {run.folder}: {error}", "Make room there.") from None

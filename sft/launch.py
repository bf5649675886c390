"""Starts, queues, stops and resumes the processes that train and evaluate; what they do is read from run folders.

A run started here is `python -m sft train` in a process of its own, at lower priority, with its output in the run's
log file. It outlives the app. Such a process first imports what training needs, some seconds of work, and then waits
to hear which run it is for; one can be started ahead, to shorten the way from Start to the first step. One that has
heard nothing ends when the app does.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from sft.config import TrainConfig
from sft.errors import RunError
from sft.evaluation import FAILED, Settings, claim, forget_progress, read_progress
from sft.run import LOCAL_OWNER, Run
from sft.runs import create_run, list_runs

_NICENESS = 10
_MAIN_STARTS_WITHIN = 60.0  # seconds in which the processes of one run all begin
_lock = threading.Lock()
_standby: subprocess.Popen | None = None
_children: list[subprocess.Popen] = []  # kept so that ended ones can be reaped


def start(config: TrainConfig, root: Path, owner: str = LOCAL_OWNER, name: str | None = None) -> Run:
    """A new run, and the process that carries it out (once the runs before it have ended)."""
    run = create_run(config, root, name, owner)
    _hand_over(run)
    return run


def resume(run: Run) -> None:
    """A process that goes on with the run from its newest checkpoint, at the end of the line.

    Raises RunError where the run works still, or has finished.
    """
    run.enter_line()
    _hand_over(run)


def stop(run: Run) -> None:
    """Asks a run to save and end; see `Run.ask_to_stop`."""
    run.ask_to_stop()


def reconcile(root: Path) -> None:
    """Writes down which runs have lost their process, and removes what such a process left half-written.

    For the start of the app. Runs whose process lives go on, and nothing of theirs is touched.
    """
    for run in list_runs(root):
        with suppress(RunError):  # a folder that cannot be written tells its readers the same without it
            run.reconcile()


def _hand_over(run: Run) -> None:
    """Tells a process of its own, which stands by or is started, to carry out the run."""
    process = _take_standby()
    # Before the process hears of it, so that nobody takes the run for dead while the process still imports.
    run.set_status("queued", message="Loading the libraries.", pid=process.pid)
    config = str(run.folder / "config.yaml")
    _tell(process, ["train", config, "--run-name", run.name, "--runs-dir", str(run.folder.parent)], run.log_file)


def _tell(process: subprocess.Popen, command: list[str], log: Path) -> None:
    """Gives a process that stands by its command line, and the file for what it prints."""
    with suppress(BrokenPipeError):  # it has just died: whoever reads what it works on sees that
        process.stdin.write(json.dumps({"command": command, "log": str(log.resolve())}).encode() + b"\n")
        process.stdin.close()


def evaluate(run: Run, settings: Settings) -> None:
    """A process that evaluates the run, beside whatever trains; `evaluation.read_progress` follows it.

    Raises RunError where this run, or another one of its folder, is being evaluated already.
    """
    process = _take_standby()
    with process.stdin:  # whatever goes wrong: a process that has heard nothing ends as soon as this is closed
        claim(run, process.pid)
        options = [*settings.as_options(), "--runs-dir", str(run.folder.parent)]
        _tell(process, ["evaluate", run.name, *options], run.folder / "evaluate.log")


def stop_evaluation(run: Run) -> None:
    """Ends the process that evaluates the run, if one does. The evaluation before it stays."""
    progress = read_progress(run)
    if progress and progress["stage"] != FAILED:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(progress["pid"])
            process.kill()  # it has nothing to save: what it writes is put in place by a rename
            process.wait(timeout=10)
    forget_progress(run)


def stand_by() -> None:
    """Keeps one process ready that has imported what training needs."""
    global _standby
    with _lock:
        _children[:] = [child for child in _children if child.poll() is None]
        if _standby is None or _standby.poll() is not None:
            _standby = _spawn()


def _take_standby() -> subprocess.Popen:
    """The process that stands by, or a new one; nobody else gets it."""
    global _standby
    with _lock:
        ready, _standby = _standby, None
    return ready if ready and ready.poll() is None else _spawn()


def _spawn() -> subprocess.Popen:
    package = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "sft", "standby"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path},
        start_new_session=True,  # a Ctrl-C that ends the app leaves the training alone
    )
    psutil.Process(process.pid).nice(_NICENESS)
    _children.append(process)
    return process


def place(run: Run) -> int:
    """How many runs are ahead of this one in the line; 0 for one that does not wait."""
    return len(_ahead(run, list_runs(run.folder.parent))) if run.status().state == "queued" else 0


def wait_in_line(run: Run, poll_seconds: float = 0.5) -> bool:
    """Returns True when no run is ahead any more, and this one `preparing`; False as soon as it is withdrawn.

    Called by the run's own process.
    """
    ahead, shown = _ahead(run, list_runs(run.folder.parent)), None
    while ahead and not run.stop_asked:
        if run.written_status().pid != os.getpid():
            break
        if len(ahead) != shown:
            shown = len(ahead)
            message = f"Waiting for {shown} earlier {'run' if shown == 1 else 'runs'} to end."
            run.set_status("queued", message=message)
        time.sleep(poll_seconds)
        ahead = _ahead(run, ahead)  # nobody comes in ahead later, but one of them may have gone to the end of the line
    return run.leave_line()


def wait_for_main(run: Run, poll_seconds: float = 0.5) -> bool:
    """What `wait_in_line` returns, in the other processes of the same run, on the main one's machine."""
    heard, deadline = False, time.monotonic() + _MAIN_STARTS_WITHIN
    while True:
        status = run.status()
        if status.state == "queued":
            heard = True
        elif status.active:
            return True
        elif heard or time.monotonic() > deadline:
            return False
        time.sleep(poll_seconds)


def _ahead(run: Run, others: Iterable[Run]) -> list[Run]:
    """Those of the others that joined the line earlier and still wait or work."""
    mine = (run.written_status().queued, run.name)
    return [
        other
        for other in others
        if (status := other.written_status()).active and (status.queued, other.name) < mine and other.status().active
    ]

"""Starts, queues and stops training processes; what they do is read from their run folders.

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
from contextlib import suppress
from pathlib import Path

import psutil

from sft.config import TrainConfig
from sft.runs import LOCAL_OWNER, Run, create_run, list_runs

_NICENESS = 10
_lock = threading.Lock()
_standby: subprocess.Popen | None = None
_children: list[subprocess.Popen] = []  # kept so that ended ones can be reaped


def start(config: TrainConfig, root: Path, owner: str = LOCAL_OWNER, name: str | None = None) -> Run:
    """A new run, and the process that carries it out (once the runs before it have ended)."""
    run = create_run(config, root, name, owner)
    task = {
        "command": ["train", str(run.folder / "config.yaml"), "--run-name", run.name, "--runs-dir", str(root)],
        "log": str(run.log_file.resolve()),
    }
    process = _take_standby()
    # Before the process hears of it, so that nobody takes the run for dead while the process still imports.
    run.set_status("queued", max_steps=config.max_steps, message="Loading the libraries.", pid=process.pid)
    with suppress(BrokenPipeError):  # it has just died: the run's status says so to every reader
        process.stdin.write(json.dumps(task).encode() + b"\n")
        process.stdin.close()
    return run


def stop(run: Run) -> None:
    """Asks a run to save and end; it does so at its next step, or at once while it waits in line."""
    run.ask_to_stop()


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


def runs_ahead(run: Run) -> list[Run]:
    """Runs of the same folder that began earlier and still wait or work."""
    mine = (run.status().started, run.name)
    earlier = [other for other in list_runs(run.folder.parent) if other != run]
    return [other for other in earlier if (status := other.status()).active and (status.started, other.name) < mine]


def wait_in_line(run: Run, poll_seconds: float = 0.5) -> None:
    """Returns when no earlier run is left, or when this one is asked to stop. Called by the run's own process."""
    place = None
    while (ahead := len(runs_ahead(run))) and not run.stop_asked:
        if ahead != place:
            run.set_status(
                "queued", max_steps=run.status().max_steps, message=f"Waiting for {ahead} earlier run(s) to end."
            )
            place = ahead
        time.sleep(poll_seconds)

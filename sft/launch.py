"""Starts, queues and stops training processes; what they do is read from their run folders.

A run started here is `python -m sft train` in a process of its own, at lower priority, with its output in the run's
log file. It outlives the app. To shorten the way from Start to the first step, one process can stand by that has
already imported what training needs (some seconds of work); it ends by itself when the app does.
"""

import json
import os
import subprocess
import sys
import threading
import time
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
    command = ["train", str(run.folder / "config.yaml"), "--run-name", run.name, "--runs-dir", str(root)]
    if not _hand_to_standby(run, command):
        with run.log_file.open("ab") as log:
            _spawn(command, stdin=subprocess.DEVNULL, output=log)
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
            _standby = _spawn(["standby"], stdin=subprocess.PIPE, output=subprocess.DEVNULL)


def _hand_to_standby(run: Run, command: list[str]) -> bool:
    global _standby
    with _lock:
        ready, _standby = _standby, None
        if ready is None or ready.poll() is not None:
            return False
        task = {"command": command, "log": str(run.log_file.resolve())}
        try:
            ready.stdin.write(json.dumps(task).encode() + b"\n")
            ready.stdin.close()
        except BrokenPipeError:
            return False
        return True


def _spawn(command: list[str], stdin, output) -> subprocess.Popen:
    package = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "sft", *command],
        stdin=stdin,
        stdout=output,
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

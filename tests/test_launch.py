"""Training processes: they outlive nothing they should not, wait their turn, stop when asked, and are seen to die."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from sft import launch
from sft.config import TrainConfig
from sft.errors import RunError
from sft.runs import create_run


@pytest.fixture
def config(tiny_model, write_rows):
    path = write_rows([{"question": f"{n}?", "answer": f"{n}!"} for n in range(20)])

    def make(**settings):
        return TrainConfig.from_dict({"model": str(tiny_model), "dataset": str(path), **settings})

    return make


def until(run, *states, seconds=120):
    """The status once the run is in one of the states."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = run.status()
        if status.state in states:
            return status
        time.sleep(0.05)
    raise AssertionError(f"{run.status()} after {seconds} s\n{run.log_tail()}")


def test_a_process_that_stands_by_takes_the_next_run(config, tmp_path):
    launch.stand_by()
    ready = launch._standby
    launch.stand_by()
    assert launch._standby is ready  # one is enough
    run = launch.start(config(max_steps=2), tmp_path)
    status = until(run, "finished", "failed", "interrupted")
    assert status.state == "finished", run.log_tail()
    assert status.pid == ready.pid
    assert "step 2/2" in run.log_tail()
    assert launch._standby is None


def test_a_standby_ends_with_the_app():
    app = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time; from sft import launch; launch.stand_by()\n"
            "print(launch._standby.pid, flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = int(app.stdout.readline())
    app.kill()
    app.wait()
    process = psutil.Process(pid)
    process.wait(timeout=30)
    assert not psutil.pid_exists(pid)


def test_a_killed_training_is_seen_within_five_seconds_and_nothing_else_is_touched(config, tmp_path):
    other = create_run(config(), tmp_path, "other")
    other.set_status("finished")
    run = launch.start(config(max_steps=100_000), tmp_path)
    until(run, "training")
    os.kill(run.status().pid, signal.SIGKILL)
    status = until(run, "interrupted", seconds=5)
    assert "killed, or ran out of memory" in status.message
    assert other.status().state == "finished"
    launch.resume(run)
    until(run, "training")
    launch.reconcile(tmp_path)  # an app that starts leaves a run alone whose process lives
    assert run.status().state == "training"
    with pytest.raises(RunError, match="still working"):
        launch.resume(run)
    launch.stop(run)
    until(run, "stopped", seconds=10)
    dead = launch.start(config(max_steps=9), tmp_path, name="dead")
    os.kill(dead.status().pid, signal.SIGKILL)
    until(dead, "interrupted", seconds=5)
    listed = subprocess.run(
        [sys.executable, "-m", "sft", "runs", "--runs-dir", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    assert "interrupted" in listed
    assert dead.written_status().state == "queued"
    (dead.folder / "checkpoint.writing").mkdir()
    launch.reconcile(tmp_path)
    assert dead.written_status().state == "interrupted" and "killed" in dead.written_status().message
    assert not dead.staging.exists()


def test_one_training_at_a_time_and_the_next_waits_in_line(config, tmp_path):
    first = launch.start(config(max_steps=100_000), tmp_path, name="first")
    status = first.status()  # alive from the first moment on: nobody may take it for dead and begin beside it
    assert status.state == "queued" and psutil.pid_exists(status.pid) and status.process_started
    assert until(first, "training").pid != os.getpid()
    second = launch.start(config(max_steps=2), tmp_path, name="second")
    third = launch.start(config(max_steps=2), tmp_path, name="third")
    deadline = time.monotonic() + 30
    while "Waiting for 1 earlier run to end." not in second.status().message and time.monotonic() < deadline:
        time.sleep(0.1)
    assert second.status().state == third.status().state == "queued"
    assert [launch.place(run) for run in (first, second, third)] == [0, 1, 2]
    launch.stop(third)  # withdrawn while it waits, or while its process still imports
    assert (third.status().state, third.status().message) == ("stopped", "Withdrawn from the line.")
    third.enter_line()  # as for resuming it
    assert launch.place(third) == 2
    launch.stop(third)
    assert third.status().state == "stopped"
    assert first.status().state == "training"
    launch.stop(first)
    assert until(first, "stopped", "failed").state == "stopped"
    assert first.has_result
    assert until(second, "finished", "failed", "interrupted").state == "finished", second.log_tail()
    assert second.has_result and "step 2/2" in second.log_tail()
    assert third.status().state == "stopped" and not third.events("start")


def test_a_run_that_has_gone_to_the_end_of_the_line_is_not_waited_for(config, tmp_path):
    first, second = create_run(config(), tmp_path, "first"), create_run(config(), tmp_path, "second")
    first.set_status("training")
    second.set_status("queued")
    waiting = threading.Thread(target=launch.wait_in_line, args=(second, 0.5), daemon=True)
    waiting.start()
    while "Waiting for 1 earlier run" not in second.written_status().message:
        time.sleep(0.01)
    first.set_status("stopped")
    first.enter_line()  # sooner than the second has seen it end
    waiting.join(timeout=3)
    assert second.status().state == "preparing"


def test_a_run_that_fails_keeps_its_reason_and_its_log(config, tmp_path):
    run = launch.start(config(model="./nowhere"), tmp_path)
    status = until(run, "failed", "interrupted")
    assert status.state == "failed"
    assert "There is no folder ./nowhere" in status.message
    time.sleep(0.5)
    assert "There is no folder ./nowhere" in run.log_tail()
    assert "Traceback" not in run.log_tail()

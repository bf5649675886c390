"""What may happen to a run and must not harm it: kills at any moment, a full disk, a folder that becomes read-only.

Processes are really killed. They are forks of one that has imported what training needs, which takes seconds.
SFT_KILLS=20 kills as many.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from sft.config import TrainConfig
from sft.runs import create_run

KILLS = int(os.environ.get("SFT_KILLS", "3"))
ROWS = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(20)]
FORKS = """
import os, sys
from pathlib import Path

import sft.train
from sft import checkpoints
from sft.cli import main
from sft.run import Run

checkpoints.SECONDS_BETWEEN, checkpoints.TIME_SHARE = 0.0, 1e9  # one at every step, so that kills hit them too
for line in sys.stdin:
    run = Run(Path(line.strip()))
    child = os.fork()
    if not child:
        log = os.open(run.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run.set_status("queued", max_steps=run.config().max_steps)
        task = ["train", f"{run.folder}/config.yaml", "--run-name", run.name, "--runs-dir", str(run.folder.parent)]
        os._exit(main(task))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def forks():
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        yield parent
        parent.stdin.close()


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return TrainConfig.from_dict(
        {
            "model": str(tiny_model), "dataset": str(rows), "eval_share": 0.2, "max_steps": 12, "learning_rate": 0.01,
            "lora_r": 4, "lora_dropout": 0.2, "eval_steps": 4,
        }
    )  # fmt: skip


def begin(forks, run) -> int:
    """The number of the process that works on the run, from its first status on."""
    print(run.folder, file=forks.stdin, flush=True)
    child = int(forks.stdout.readline())
    while run.written_status().pid != child:
        time.sleep(0.001)
    return child


def exit_code(forks) -> int:
    return int(forks.stdout.readline())


def losses(run):
    return {(kind, event["step"]): event["loss"] for kind in ("log", "eval") for event in run.events(kind)}


@pytest.fixture(scope="module")
def whole(forks, config, tmp_path_factory):
    """The losses of a run that nothing happens to, and the seconds that its process takes from its first status on."""
    run = create_run(config, tmp_path_factory.mktemp("runs"), "whole")
    begin(forks, run)
    began = time.monotonic()
    assert exit_code(forks) == 0, run.log_tail()
    return losses(run), time.monotonic() - began


def assert_finished_like(whole, forks, run):
    assert exit_code(forks) == 0, run.log_tail()
    assert run.status().state == "finished" and run.has_result
    assert losses(run) == pytest.approx(whole[0], abs=1e-4)
    assert not list(run.folder.glob("*.writing")) and not list(run.folder.glob(".status-*"))


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_run_killed_at_any_moment_resumes_with_the_losses_of_a_whole_one(forks, config, tmp_path, whole, seed):
    run = create_run(config, tmp_path, "killed")
    chance = random.Random(seed)
    for _ in range(chance.choice([1, 1, 2])):  # a resumed run may be killed too
        child = begin(forks, run)
        time.sleep(chance.uniform(0, whole[1]))
        with suppress(ProcessLookupError):  # it was quicker
            os.kill(child, signal.SIGKILL)
        code = exit_code(forks)
        status = run.status()
        if code == 0:
            assert status.state == "finished" and losses(run) == pytest.approx(whole[0], abs=1e-4)
            return
        assert status.state == "interrupted" and "killed" in status.message and run.resumable
        assert all("kind" in event for event in run.events())
        run.enter_line()
    begin(forks, run)
    assert_finished_like(whole, forks, run)


def mount(*arguments) -> None:
    if subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let the test mount a file system")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", folder)
    yield folder
    while os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def at_step(run, step: int, child: int) -> None:
    """Returns while the process waits, right after that step."""
    deadline = time.monotonic() + 30
    while not any(event["step"] >= step for event in run.events("log")):
        assert time.monotonic() < deadline, run.log_tail()
        time.sleep(0.001)
    os.kill(child, signal.SIGSTOP)


def fill(folder: Path, free: int) -> Path:
    """A file that leaves so many bytes on the disk."""
    filler = folder / "filler"
    room = os.statvfs(folder)
    filler.write_bytes(bytes(room.f_bavail * room.f_bsize - free))
    return filler


@pytest.mark.parametrize("free", [24_000, 40_000, 56_000, 72_000])
def test_a_full_disk_costs_checkpoints_and_then_the_end_but_not_the_run(forks, config, small_disk, whole, free):
    run = create_run(config, small_disk / "runs", "full")
    child = begin(forks, run)
    at_step(run, 3, child)
    filler = fill(small_disk, free=free)
    os.kill(child, signal.SIGCONT)
    assert exit_code(forks) == 2, run.log_tail()
    status = run.status()
    assert status.state == "failed" and "The disk is full at step 12" in status.message
    assert "Free some space" in status.message
    assert "The disk is full: the checkpoint of step" in str(run.events("warning"))
    assert "Traceback" not in run.log_tail()
    assert run.resumable and run.checkpoint and not list(run.folder.glob("*.writing"))
    filler.unlink()
    run.enter_line()
    begin(forks, run)
    assert_finished_like(whole, forks, run)


def test_where_there_is_no_room_for_a_last_word_the_reader_says_why(forks, config, small_disk):
    run = create_run(config, small_disk / "runs", "full")
    child = begin(forks, run)
    at_step(run, 3, child)
    fill(small_disk, free=4096)
    os.kill(child, signal.SIGKILL)
    assert exit_code(forks) == -signal.SIGKILL
    assert run.status().state == "interrupted" and "The disk of its folder is full now." in run.status().message


def test_a_folder_that_becomes_read_only_ends_the_run_with_a_reason_and_stays_readable(
    forks, config, small_disk, whole
):
    run = create_run(config, small_disk / "runs", "locked")
    child = begin(forks, run)
    at_step(run, 3, child)
    mount("--bind", small_disk, small_disk)  # over it, so that the log, which is open, does not keep it writable
    mount("-o", "remount,bind,ro", small_disk)
    os.kill(child, signal.SIGCONT)
    assert exit_code(forks) == 2
    status = run.status()
    assert status.state == "interrupted" and "its folder cannot be written" in status.message
    assert len(run.events("log")) >= 3
    assert "error: The run's folder cannot be written" in run.log_tail()
    assert "Traceback" not in run.log_tail()
    subprocess.run(["umount", "-l", str(small_disk)], check=True)
    run.enter_line()
    begin(forks, run)
    assert_finished_like(whole, forks, run)

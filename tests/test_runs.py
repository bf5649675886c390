"""The run folder: atomic status, appended events, and what a reader concludes when a process is gone."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sft.config import TrainConfig
from sft.errors import RunError
from sft.run import Run
from sft.runs import create_run, differing, find_run, list_runs, rename, runs_dir

CONFIG = TrainConfig.from_dict({"dataset": "examples/support-json.jsonl", "max_steps": 5})


def test_a_new_run_is_queued_and_keeps_its_config(tmp_path):
    run = create_run(CONFIG, tmp_path)
    assert run.name.startswith("support-json-")
    assert (run.status().state, run.status().max_steps) == ("queued", 5)
    assert run.config() == CONFIG
    assert not run.has_result


def test_names_are_plain_and_taken_once(tmp_path):
    create_run(CONFIG, tmp_path, "one")
    with pytest.raises(RunError, match="already a run one"):
        create_run(CONFIG, tmp_path, "one")
    for name in ("../out", "a/b", ".hidden", ""):
        if name:
            with pytest.raises(RunError, match="cannot name a run"):
                create_run(CONFIG, tmp_path, name)


def test_two_runs_in_the_same_second_have_two_names(tmp_path):
    assert len({create_run(CONFIG, tmp_path).name for _ in range(5)}) == 5


def test_runs_belong_to_their_owner(tmp_path):
    create_run(CONFIG, tmp_path, "mine", owner="alice")
    create_run(CONFIG, tmp_path, "yours", owner="bob")
    assert [run.name for run in list_runs(tmp_path, "alice")] == ["mine"]
    assert find_run("mine", tmp_path, "alice").name == "mine"
    for name in ("yours", "none", "../mine"):
        with pytest.raises(RunError, match="There is no run"):
            find_run(name, tmp_path, "alice")


def test_where_runs_live(monkeypatch, tmp_path):
    monkeypatch.delenv("SFT_RUNS_DIR", raising=False)
    assert str(runs_dir()) == "runs"
    monkeypatch.setenv("SFT_RUNS_DIR", str(tmp_path))
    assert runs_dir() == tmp_path
    assert runs_dir("other").name == "other"


def working_process(run: Run) -> subprocess.Popen:
    """A process that says that it works on the run, and then does nothing."""
    code = (
        "import sys, time; from pathlib import Path; from sft.runs import Run\n"
        "Run(Path(sys.argv[1])).set_status('training', step=3, max_steps=5); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run.folder)], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def test_a_killed_process_leaves_an_interrupted_run(tmp_path):
    run = create_run(CONFIG, tmp_path)
    process = working_process(run)
    assert run.status().state == "training"
    with pytest.raises(RunError, match="still working"):
        run.delete()
    os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while run.status().state != "interrupted" and time.monotonic() < deadline:
        time.sleep(0.05)  # the process is a zombie until it is waited for: that counts as gone
    status = run.status()
    assert status.state == "interrupted"
    assert "at step 3" in status.message
    process.wait()
    run.delete()
    assert not run.folder.exists()


def test_a_process_number_that_was_given_away_again_is_not_the_run(tmp_path):
    run = create_run(CONFIG, tmp_path)
    run.set_status("training", step=1, max_steps=5)
    path = run.folder / "status.json"
    status = json.loads(path.read_text())
    assert status["pid"] == os.getpid()
    path.write_text(json.dumps({**status, "process_started": status["process_started"] - 100}))
    assert run.status().state == "interrupted"


def test_a_status_of_another_version_is_read(tmp_path):
    run = create_run(CONFIG, tmp_path)
    run.set_status("training", step=2, max_steps=5)
    path = run.folder / "status.json"
    status = {**json.loads(path.read_text()), "colour": "red"}
    del status["process_started"]
    path.write_text(json.dumps(status))
    assert (run.status().state, run.status().step) == ("training", 2)
    path.write_text("[]")
    assert run.status().state == "interrupted"


def test_a_run_whose_process_never_started_is_interrupted_after_a_while(tmp_path):
    run = create_run(CONFIG, tmp_path)
    path = run.folder / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "updated": time.time() - 60}))
    assert run.status().state == "interrupted"
    assert "never started" in run.status().message


def test_a_reader_never_sees_half_of_a_status(tmp_path):
    run = create_run(CONFIG, tmp_path)
    done = threading.Event()

    def write():
        for step in range(300):
            run.set_status("training", step=step, max_steps=300, message="x" * 2000)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    reads = 0
    while not done.is_set():
        assert run.status().max_steps in (5, 300)
        reads += 1
    thread.join()
    assert reads
    assert run.status().step == 299


def test_events_are_read_while_the_last_line_is_being_written(tmp_path):
    run = create_run(CONFIG, tmp_path)
    run.append_event("log", step=1, loss=0.5)
    run.append_event("eval", step=1, loss=0.7)
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "kind": "log", "st')
    assert [event["kind"] for event in run.events()] == ["log", "eval"]
    assert [event["loss"] for event in run.events("eval")] == [0.7]


def test_the_log_tail_shows_the_end_of_each_progress_line(tmp_path):
    run = create_run(CONFIG, tmp_path)
    assert run.log_tail() == ""
    run.log_file.write_text("first\n10%\r50%\r100%\nlast\n")
    assert run.log_tail(2) == "100%\nlast"


def test_half_a_line_of_events_is_left_out_and_the_next_one_begins_fresh(tmp_path):
    run = create_run(CONFIG, tmp_path)
    run.append_event("log", step=1, loss=0.5)
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "kind": "log", "st')
    assert len(run.events()) == 1
    run.append_event("log", step=2, loss=0.4)
    assert [event["step"] for event in run.events("log")] == [1, 2]


def test_events_that_a_resume_took_back_are_left_out(tmp_path):
    run = create_run(CONFIG, tmp_path)
    run.append_event("start", step=0, resumed_from=0)
    for step in (1, 2, 3):
        run.append_event("log", step=step, loss=9.0)
    run.append_event("end", step=3, state="stopped")
    assert len(run.events()) == 5
    run.append_event("start", step=2, resumed_from=2)
    run.append_event("log", step=3, loss=1.0)
    assert [(event["step"], event["loss"]) for event in run.events("log")] == [(1, 9.0), (2, 9.0), (3, 1.0)]
    assert not run.events("end")


def test_only_what_was_appended_is_parsed_again(tmp_path, monkeypatch):
    from sft import events

    run = create_run(CONFIG, tmp_path)
    for step in range(100):
        run.append_event("log", step=step)
    assert len(run.events()) == 100
    parsed, loads = [], events.json.loads
    monkeypatch.setattr(events.json, "loads", lambda line: parsed.append(line) or loads(line))
    run.events()
    assert not parsed
    run.append_event("log", step=100)
    assert len(run.events()) == 101 and len(parsed) == 1


def test_another_file_of_the_same_name_is_read_anew(tmp_path):
    run = create_run(CONFIG, tmp_path, "one")
    run.append_event("log", step=1)
    assert run.events()[0]["step"] == 1
    run.set_status("finished")
    run.delete()
    run = create_run(CONFIG, tmp_path, "one")
    assert run.events() == []
    run.append_event("log", step=2)
    run.append_event("log", step=3)
    assert [event["step"] for event in run.events()] == [2, 3]


def test_a_run_is_renamed_unless_it_works_or_the_name_cannot_be(tmp_path):
    run, other = create_run(CONFIG, tmp_path, "one"), create_run(CONFIG, tmp_path, "other")
    with pytest.raises(RunError, match="still working"):
        rename(run, "two")
    run.set_status("finished")
    for name, said in (("other", "already a run other"), ("../two", "cannot name a run")):
        with pytest.raises(RunError, match=said):
            rename(run, name)
    assert rename(run, "two").status().state == "finished"
    assert {run.name for run in list_runs(tmp_path)} == {"two", other.name}


def test_runs_differ_in_settings(tmp_path):
    one, two = create_run(CONFIG, tmp_path), create_run(dataclasses.replace(CONFIG, lora_r=4, seed=1), tmp_path)
    assert differing([one, two]) == {"lora_r": [16, 4], "seed": [42, 1]}
    assert differing([one, one]) == differing([one]) == differing([]) == {}


def test_a_run_that_ended_joins_the_line_again_and_at_its_end(tmp_path):
    run, other = create_run(CONFIG, tmp_path), create_run(CONFIG, tmp_path)
    with pytest.raises(RunError, match="still working"):
        run.enter_line()
    run.set_status("failed", step=3)
    run.ask_to_stop()
    run.enter_line()
    assert run.status().state == "queued" and not run.stop_asked
    assert run.status().queued > other.status().queued and run.status().started < other.status().started
    run.set_status("finished")
    assert not run.resumable
    with pytest.raises(RunError, match="nothing to resume"):
        run.enter_line()


def test_a_killed_run_says_what_memory_it_held(tmp_path):
    run = create_run(CONFIG, tmp_path)
    process = working_process(run)
    run.append_event("log", step=3, memory=3_100_000_000)
    process.kill()
    process.wait()
    assert "It held 3.1 GB of the" in run.status().message


def test_a_run_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """Also where the disk is full, or the process is killed, while it is made or deleted."""

    def full(config, path):
        path.write_text("model: emb")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunError, match=r"cannot be changed: .*No space left"):
        patch.setattr(TrainConfig, "save", full)
        create_run(CONFIG, tmp_path, "one")
    assert not list(tmp_path.iterdir())
    (tmp_path / ".aside").mkdir()  # what a kill leaves
    (tmp_path / ".aside" / "config.yaml").write_text("model: emb")
    assert not list(list_runs(tmp_path))
    run = create_run(CONFIG, tmp_path, "one")
    assert list(tmp_path.iterdir()) == [run.folder]
    run.set_status("finished")
    run.delete()
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_superseded_or_needed_no_more_is_removed(tmp_path):
    run = create_run(CONFIG, tmp_path)
    for step in (2, 4):  # a kill came between the newer and the removal of the older
        (run.folder / f"checkpoint-{step}").mkdir()
        (run.folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    run.set_status("failed", step=4)
    run.reconcile()
    assert [path.name for path in run.folder.glob("checkpoint*")] == ["checkpoint-4"]
    run.set_status("finished")
    run.reconcile()
    assert not list(run.folder.glob("checkpoint*"))


def test_a_run_that_works_is_not_reconciled(tmp_path):
    run = create_run(CONFIG, tmp_path)
    run.set_status("training", step=3)
    run.staging.mkdir()
    run.reconcile()
    assert run.staging.is_dir() and run.written_status().state == "training"


def test_a_run_leaves_the_line_unless_it_was_withdrawn(tmp_path):
    run = create_run(CONFIG, tmp_path)
    run.set_status("queued", step=3)
    assert run.leave_line() and run.status().state == "preparing" and run.status().step == 3
    run.ask_to_stop()
    assert run.stop_asked and run.status().state == "preparing"  # its process hears of it
    run.set_status("queued")
    assert not run.leave_line() and run.status().state == "stopped"
    run.enter_line()  # for another process
    assert not run.leave_line() and run.status().state == "queued"


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_kill_between_the_renames_that_put_a_result_in_place_loses_none(tmp_path, kind):
    run = create_run(CONFIG, tmp_path)
    (run.folder / f"{kind}.before").mkdir()
    (run.folder / f"{kind}.writing").mkdir()
    assert run.result == run.folder / f"{kind}.before"
    run.set_status("failed")
    run.reconcile()
    assert run.result == run.folder / kind and not list(run.folder.glob("*.writing"))


def test_runs_that_cannot_be_made_say_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be changed"):
        create_run(CONFIG, tmp_path / "file" / "runs")

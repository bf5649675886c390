"""The evaluation in a run folder: whole or not at all, one at a time, and a process that died is seen."""

import json
import os
import subprocess
import sys

import pytest

from sft import launch
from sft.config import TrainConfig
from sft.errors import DataError, RunError
from sft.evaluation import (
    BESIDE,
    FAILED,
    PROGRESS,
    Settings,
    claim,
    keep,
    read_evaluation,
    read_progress,
    reporting,
    under_way,
)
from sft.runs import create_run


@pytest.fixture
def run(tmp_path):
    return create_run(TrainConfig.from_dict({"dataset": "rows.jsonl"}), tmp_path, "mine")


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def test_there_is_none_before_the_first(run):
    assert read_evaluation(run) is None and read_progress(run) is None and not under_way(run)


def test_what_is_kept_is_read_again(run):
    keep(run, {"arms": {}, "verdict": {"sentence": "Tune: 98 % …"}, "rows": [], "settings": {}})
    assert read_evaluation(run)["verdict"]["sentence"] == "Tune: 98 % …"
    (run.folder / "evaluation.json").write_text('{"arms": ')
    assert read_evaluation(run) is None


@pytest.mark.parametrize(
    "written", ["[]", "{}", "3", "null", pytest.param("[" * 100_000, id="deep"), '{"stage": "loading"}', "\ud800"]
)
def test_what_was_not_written_by_us_is_none(run, written):
    for name in ("evaluation.json", PROGRESS):
        (run.folder / name).write_bytes(written.encode(errors="surrogatepass"))
    assert read_evaluation(run) is None and read_progress(run) is None
    claim(run, os.getpid())
    assert under_way(run)


@pytest.mark.parametrize("pid", ["a", -5, 0, 1e30, 10**30, True, None])
def test_what_is_no_process_evaluates_nothing(run, pid):
    claim(run, os.getpid())
    told = json.loads((run.folder / PROGRESS).read_text())
    (run.folder / PROGRESS).write_text(json.dumps({**told, "pid": pid}))
    assert read_progress(run) is None


def test_what_json_has_no_word_for_is_not_kept(run):
    with pytest.raises(ValueError, match="not JSON compliant"):
        keep(run, {"arms": {"base": {"loss": float("nan")}}, "verdict": {}, "rows": [], "settings": {}})
    assert read_evaluation(run) is None


def test_progress_is_told_and_forgotten_at_the_end(run):
    with reporting(run) as report:
        assert read_progress(run)["stage"] == "loading"
        report("base model", 0.25)
        told = read_progress(run)
        assert (told["stage"], told["share"], told["pid"], told["message"]) == ("base model", 0.25, os.getpid(), "")
        assert under_way(run)
    assert read_progress(run) is None
    assert {path.name for path in run.folder.iterdir()} == {"config.yaml", "status.json"}


def test_the_users_error_stays_to_be_read_until_the_next_begins(run):
    with pytest.raises(DataError), reporting(run):
        raise DataError("No rows.", "Give some.")
    told = read_progress(run)
    assert (told["stage"], told["message"]) == (FAILED, "No rows.\n→ Give some.")
    assert not under_way(run)
    with reporting(run):
        assert read_progress(run)["stage"] != FAILED


def test_an_error_of_ours_is_told_by_its_name(run):
    with pytest.raises(ZeroDivisionError), reporting(run):
        raise ZeroDivisionError("rows / 0")
    told = read_progress(run)
    assert (told["stage"], told["message"]) == (FAILED, "ZeroDivisionError: rows / 0")


def test_an_evaluation_that_is_interrupted_leaves_nothing(run):
    with pytest.raises(KeyboardInterrupt), reporting(run):
        raise KeyboardInterrupt
    assert read_progress(run) is None


def test_one_at_a_time(run, sleeper):
    claim(run, sleeper.pid)
    with pytest.raises(RunError, match="being evaluated already"), reporting(run):
        pass
    assert read_progress(run)["pid"] == sleeper.pid
    claim(run, sleeper.pid)  # the process itself, when it has come so far


def test_one_run_of_a_folder_at_a_time(run, sleeper, tmp_path):
    other = create_run(TrainConfig.from_dict({"dataset": "rows.jsonl"}), tmp_path, "other")
    claim(other, sleeper.pid)
    with pytest.raises(RunError, match="The run other is being evaluated"), reporting(run):
        pass
    assert read_progress(run) is None
    (other.folder / "owner.txt").write_text("stranger")
    with pytest.raises(RunError, match="Another visitor's run is being evaluated"):
        claim(run, os.getpid())
    sleeper.kill()
    sleeper.wait()
    with reporting(run):
        assert under_way(run)


def test_another_one_that_ends_meanwhile_gives_way(run, sleeper, monkeypatch):
    """Whatever is read of the other one is read once: it may be gone a moment later."""
    claim(run, sleeper.pid)
    monkeypatch.setattr("sft.evaluation._lives", lambda told: (run.folder / PROGRESS).unlink() or True)
    with pytest.raises(RunError, match="being evaluated already"):
        claim(run, os.getpid())


def test_a_process_that_died_is_told_and_gives_way(run, sleeper):
    claim(run, sleeper.pid)
    (run.folder / f".{PROGRESS}-{sleeper.pid}").write_text('{"stage"')
    sleeper.kill()
    sleeper.wait()
    told = read_progress(run)
    assert told["stage"] == FAILED and f"process {sleeper.pid} ended without a word" in told["message"]
    with reporting(run):
        pass
    assert not list(run.folder.glob(".evaluat*"))


def test_a_process_that_is_not_told_to_evaluate_ends(run, monkeypatch):
    waiting = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    monkeypatch.setattr(launch, "_take_standby", lambda: waiting)
    monkeypatch.setattr(launch, "claim", lambda run, pid: {}["pid"])
    with pytest.raises(KeyError):
        launch.evaluate(run, Settings())
    assert waiting.wait(5) == 0


def test_a_number_given_to_another_process_is_not_the_same_one(run):
    claim(run, os.getpid())
    told = json.loads((run.folder / PROGRESS).read_text())
    (run.folder / PROGRESS).write_text(json.dumps({**told, "process_started": told["process_started"] - 100}))
    assert not under_way(run)


def test_a_training_on_the_same_cores_is_told(run, tmp_path):
    other = create_run(TrainConfig.from_dict({"dataset": "rows.jsonl"}), tmp_path, "busy")
    other.set_status("training")
    claim(run, os.getpid())
    assert read_progress(run)["message"] == BESIDE


def test_more_examples_than_a_prompt_takes_are_refused():
    assert Settings(examples=64).examples == 64
    with pytest.raises(RunError, match=r"65 examples(.|\n)*Take 64 at most"):
        Settings(examples=65)


def test_settings_are_options_of_the_command():
    from sft.cli import _parser

    given = Settings(limit=5, system="-- Be brief.\nAlways.", examples=0, seed=7)
    options = _parser().parse_args(["evaluate", "mine", *given.as_options()])
    assert Settings(options.data, options.limit, options.system, options.examples, options.seed) == given
    options = _parser().parse_args(["evaluate", "mine"])
    assert Settings(options.data, options.limit, options.system, options.examples, options.seed) == Settings()

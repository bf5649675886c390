"""Resuming: the losses are those of a run that nobody interrupted, wherever it was interrupted."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from sft import checkpoints
from sft.config import TrainConfig
from sft.errors import RunError
from sft.runs import create_run
from sft.train import train

ROWS = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(20)]
HARD = {  # all that a resumed run could get wrong: order over epochs, dropout, accumulation, measuring between
    "lora_dropout": 0.3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "eval_steps": 2,
    "lr_scheduler_type": "linear", "warmup_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def make(**settings):
        return TrainConfig.from_dict(
            {
                "model": str(tiny_model), "dataset": str(path), "eval_share": 0.2, "max_steps": 7,
                "learning_rate": 0.01, "lora_r": 4, "lora_alpha": 8, **HARD, **settings,
            }
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The same run, uninterrupted."""
    run = create_run(config(), tmp_path_factory.mktemp("runs"), "whole")
    train(config(), run)
    return run


def stopping(run, kind: str, step: int, calls: int = 0):
    """The same run, which asks itself to stop when it writes that event, or so many looks for a stop later."""

    class Stopping(type(run)):
        left = None

        def append_event(self, given, **values):
            super().append_event(given, **values)
            if (given, values.get("step")) == (kind, step):
                object.__setattr__(self, "left", calls)

        @property
        def stop_asked(self):
            if self.left == 0:
                self.ask_to_stop()
            if self.left:
                object.__setattr__(self, "left", self.left - 1)
            return super().stop_asked

    return Stopping(run.folder)


def losses(run, kind="log"):
    return {event["step"]: event["loss"] for event in run.events(kind)}


def assert_same(run, whole):
    assert run.status().state == "finished"
    for kind in ("log", "eval"):
        assert losses(run, kind) == pytest.approx(losses(whole, kind), abs=1e-4)


@pytest.mark.parametrize(("step", "calls"), [(1, 0), (1, 2), (4, 0), (4, 1), (4, 2), (4, 4)])
def test_a_run_stopped_anywhere_resumes_with_the_losses_of_a_whole_one(config, tmp_path, whole, step, calls):
    run = create_run(config(), tmp_path / "runs", "parts")
    train(config(), stopping(run, "log", step, calls))
    status = run.status()
    assert (status.state, status.step) in [("stopped", step), ("stopped", step + 1)]
    assert run.checkpoint.name == f"checkpoint-{status.step}"
    assert run.has_result
    run.enter_line()
    train(config(), run)
    assert_same(run, whole)
    assert run.checkpoint is None and not list(run.folder.glob("*.writing"))
    seconds = [event["seconds"] for event in run.events("log")]
    assert seconds == sorted(seconds)
    tokens = [event["tokens"] for event in run.events("log")]
    assert tokens == [event["tokens"] for event in whole.events("log")]


def test_stopped_again_and_again(config, tmp_path, whole):
    run = create_run(config(), tmp_path / "runs", "parts")
    for step in range(1, 7):
        train(config(), stopping(run, "log", step))
        run.enter_line()
    train(config(), run)
    assert_same(run, whole)
    starts = run.events("start")
    assert starts[0]["resumed_from"] == 0 and len({event["data"] for event in starts}) == 1
    assert [event["state"] for event in run.events("end")] == ["finished"]


def test_a_run_is_stopped_before_its_first_step_and_resumes(config, tmp_path, whole):
    run = create_run(config(), tmp_path / "runs", "parts")
    run.ask_to_stop()
    train(config(), run)
    assert run.status().state == "stopped" and not run.has_result and run.resumable
    run.enter_line()
    train(config(), stopping(run, "start", 0, calls=2))
    assert run.status().state == "stopped" and not run.has_result
    run.enter_line()
    train(config(), run)
    assert_same(run, whole)


def test_what_was_cut_short_is_no_checkpoint(config, tmp_path, whole):
    """What a kill leaves: files in the staging folder, half a line of events, a checkpoint without its last file."""
    run = create_run(config(), tmp_path / "runs", "parts")
    train(config(), stopping(run, "log", 3))
    stopped = run.checkpoint
    half = run.folder / "checkpoint-6"
    shutil.copytree(stopped, half)
    (half / "trainer_state.json").unlink()
    shutil.copytree(stopped, run.staging / "checkpoint-5")
    shutil.copytree(run.adapter, run.folder / "adapter.before")
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "kind": "log", "step": 9, "lo')
    assert run.checkpoint == stopped
    run.enter_line()
    assert not run.staging.exists() and not (run.folder / "adapter.before").exists()
    train(config(), run)
    assert_same(run, whole)


def test_what_came_after_the_checkpoint_is_superseded(config, tmp_path, whole):
    run = create_run(config(), tmp_path / "runs", "parts")
    train(config(), stopping(run, "log", 3))
    run.append_event("log", step=5, loss=99.0, tokens=10**6, seconds=10**6)
    run.enter_line()
    train(config(), run)
    assert_same(run, whole)
    assert "99.0" in (run.folder / "events.jsonl").read_text()


def test_checkpoints_come_at_a_pace_that_costs_little(config, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(checkpoints, "TIME_SHARE", 1e9)
    run = create_run(config(), tmp_path / "runs", "often")
    train(config(), run)
    assert [event["step"] for event in run.events("checkpoint")] == [1, 2, 3, 4, 5, 6]
    monkeypatch.setattr(checkpoints, "TIME_SHARE", 1e-9)
    run = create_run(config(), tmp_path / "runs", "once")
    train(config(), run)
    assert [event["step"] for event in run.events("checkpoint")] == [1]


def test_other_rows_are_refused(config, tmp_path, write_rows):
    settings = config(dataset=str(write_rows(ROWS)))
    run = create_run(settings, tmp_path / "runs", "parts")
    train(settings, stopping(run, "log", 3))
    run.enter_line()
    write_rows([{**row, "answer": "No."} for row in ROWS])
    with pytest.raises(RunError, match="data set has changed"):
        train(settings, run)
    assert run.status().state == "failed"
    write_rows(ROWS)
    run.enter_line()
    train(settings, run)
    assert run.status().state == "finished"


def test_another_base_model_is_refused(config, tmp_path, tiny_model):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    settings, weights = config(model=str(base)), base / "model.safetensors"
    run = create_run(settings, tmp_path / "runs", "parts")
    train(settings, stopping(run, "log", 3))
    run.enter_line()
    before = load_file(weights)
    save_file({name: tensor * 2 for name, tensor in before.items()}, weights, {"format": "pt"})
    with pytest.raises(RunError, match="base model has changed since the run began"):
        train(settings, run)
    assert run.status().state == "failed"
    shutil.copy(tiny_model / "model.safetensors", weights)
    run.enter_line()
    train(settings, run)
    assert run.status().state == "finished"


def test_the_chat_format_is_that_of_the_day_it_began(config, tmp_path, monkeypatch, tiny_model):
    dated = tmp_path / "dated"
    shutil.copytree(tiny_model, dated)
    template = (dated / "chat_template.jinja").read_text()
    (dated / "chat_template.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}" + template)
    settings = config(model=str(dated))
    run = create_run(settings, tmp_path / "runs", "parts")
    train(settings, stopping(run, "log", 3))
    about = run.folder / "chat_format.json"
    began = json.loads(about.read_text())
    from sft import training_format

    class Tomorrow(training_format.date):
        @classmethod
        def today(cls):
            return cls(2099, 1, 1)

    monkeypatch.setattr(training_format, "date", Tomorrow)
    run.enter_line()
    train(settings, run)
    assert run.status().state == "finished"
    assert json.loads(about.read_text()) == began

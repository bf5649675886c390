"""What is told before a run starts, against what the run then is: the rows of each step, the work, the memory."""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from sft import calibration, forecast, models
from sft.calibration import Calibration
from sft.cli import main
from sft.config import TrainConfig
from sft.prepare import prepare
from sft.train import build_trainer
from sft.training_format import training_format

ROWS = [{"question": f"What is {n} and {'so ' * (n % 7)}{n}?", "answer": f"It is {2 * n}."} for n in range(23)]
COSTS = Calibration(
    work=[1.0, 0.1, 0.01, 0.001, 0.0], forward=0.5, start_up=5.0, reply_token=0.02, checkpoint=0.3, saving=0.2,
    settled=10**9, token_bytes=1e6, load_peak=10**8, padded=False, waited=0.0,
)  # fmt: skip


@pytest.fixture
def config(tiny_model, write_rows, tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))

    def make(**settings):
        return TrainConfig.from_dict(
            {
                "model": str(tiny_model), "dataset": str(write_rows(ROWS)), "eval_share": 0.2, "max_steps": 12,
                "eval_steps": 5, "lora_r": 4, **settings,
            }
        )  # fmt: skip

    return make


def prepared(settings):
    folder = models.locate(settings.model)
    chat_format = training_format(settings, folder, print)
    return folder, chat_format, prepare(settings, chat_format, print)


@pytest.mark.parametrize("together", [1, 3])
def test_the_steps_are_those_that_the_trainer_takes(config, tmp_path, together):
    settings = config(gradient_accumulation_steps=together, max_steps=8, eval_strategy="no")
    folder, chat_format, rows = prepared(settings)
    trainer = build_trainer(settings, models.load_base(folder), chat_format, rows, tmp_path / "run" / "staging")
    seen, collate = [], trainer.data_collator

    def noting(batch):
        seen.append([row["input_ids"] for row in batch])
        return collate(batch)

    trainer.data_collator = noting
    trainer.train()
    foretold = [[row["input_ids"] for row in batch] for step in forecast._steps(settings, rows) for batch in step]
    assert seen[: len(foretold)] == foretold  # the trainer fetches one batch ahead
    assert len(seen) <= len(foretold) + 1


def test_a_long_run_is_forecast_from_some_of_its_steps(config):
    settings = config(max_steps=100_000)
    steps = list(forecast._steps(settings, prepared(settings)[2]))
    assert forecast.LOOKED_AT <= len(steps) < 2 * forecast.LOOKED_AT


def test_seconds_are_the_sum_of_what_each_thing_costs(config, monkeypatch):
    monkeypatch.setattr(forecast, "calibration", lambda *given: COSTS)
    monkeypatch.setattr(forecast, "known", lambda *given: COSTS)
    settings = config(per_device_train_batch_size=1)
    found = forecast.forecast(settings)
    _, _, rows = prepared(settings)
    steps = list(forecast._steps(settings, rows))
    tokens = sum(len(row["input_ids"]) for step in steps for batch in step for row in batch)
    labels = sum(label != -100 for step in steps for batch in step for row in batch for label in row["labels"][1:])
    assert found.parts["training"] == pytest.approx(12 * 1.1 + 0.01 * tokens + 0.001 * labels)
    assert found.parts["start"] == 5.0
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    once = forecast.forecast(config(per_device_train_batch_size=1, eval_steps=12)).parts["held-out"]
    assert found.parts["held-out"] == pytest.approx(3 * once) and once > 0
    assert forecast.forecast(config(eval_strategy="no")).parts["held-out"] == 0
    longest = max(len(row["input_ids"]) for step in steps for batch in step for row in batch)
    assert found.memory_bytes == found.lora_bytes == 10**9 + longest * 10**6


def test_the_command_measures_once_and_tells_what_to_expect(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibration, "DISTURBED", 1.0)  # other tests may be running
    path = tmp_path / "run.yaml"
    config().save(path)
    assert main(["forecast", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 3 < found["seconds"] < 300
    assert 0.2e9 < found["memory_bytes"] < 3e9
    assert found["memory_bytes"] == found["lora_bytes"]
    assert found["finetuning_type"] == "lora"
    measured = calibration.known(config(), models.locate(config().model))
    assert all(cost >= 0 for cost in measured.work) and any(measured.work)
    assert 0 < measured.forward < 2  # about a third, where nothing else runs
    assert asdict(measured)["padded"] is False
    assert 0 <= measured.waited < 1
    monkeypatch.setattr(calibration, "_measure", lambda *given: pytest.fail("measured again"))
    assert main(["forecast", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("about ") and "LoRA" in said
    assert calibration.known(config(lora_r=8), models.locate(config().model)) is None


def test_what_other_programs_disturbed_is_told_and_not_kept(config, tmp_path, capsys, monkeypatch):
    """The measuring itself is left out: how long it waits for other programs is for the day to say."""
    waits = iter([0.5, 0.02])

    def measured(command, **given):
        Path(command[-1]).write_text(json.dumps({**asdict(COSTS), "waited": next(waits)}))
        return subprocess.Popen(["true"])

    monkeypatch.setattr(calibration, "subprocess", SimpleNamespace(Popen=measured))
    path = tmp_path / "run.yaml"
    config().save(path)
    assert main(["forecast", str(path)]) == 0
    assert "Other programs worked while this was measured" in capsys.readouterr().out
    assert calibration.known(config(), models.locate(config().model)) is None
    assert main(["forecast", str(path)]) == 0
    assert "Other programs" not in capsys.readouterr().out
    assert calibration.known(config(), models.locate(config().model)).waited == 0.02


def test_what_does_not_fit_is_refused_before_anything_is_measured(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sft.memory.available", lambda: 1000)
    monkeypatch.setattr(calibration, "_measure", lambda *given: pytest.fail("measured"))
    path = tmp_path / "run.yaml"
    config().save(path)
    assert main(["forecast", str(path)]) == 2
    assert "GB of memory" in capsys.readouterr().err

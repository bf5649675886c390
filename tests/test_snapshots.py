"""Snapshots: which steps are kept, that they are the adapter of that step, and what a resume makes of them."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_checkpoints import ROWS, stopping

from sft import snapshots
from sft.config import TrainConfig
from sft.run import Run
from sft.runs import create_run
from sft.snapshots import due_steps
from sft.train import train


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def make(**settings):
        given = {"model": str(tiny_model), "dataset": str(path), "max_steps": 5, "learning_rate": 0.01, "lora_r": 4}
        return TrainConfig.from_dict({**given, **settings})

    return make


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    run = create_run(config(), tmp_path_factory.mktemp("runs"), "whole")
    train(config(), run)
    return run


def weights(run: Run, step: int):
    return load_file(run.snapshot(step) / "adapter_model.safetensors")


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("count", "max_steps", "steps"),
    [(4, 60, {12, 24, 36, 48}), (1, 7, {4}), (4, 3, {1, 2}), (4, 1, set()), (0, 60, set()), (100, 5, {1, 2, 3, 4})],
)
def test_snapshots_part_the_way_to_the_last_step_evenly(count, max_steps, steps):
    assert due_steps(count, max_steps) == steps


def test_a_snapshot_is_the_adapter_as_it_was_after_that_step(config, tmp_path, whole):
    assert whole.snapshots == [1, 2, 3, 4]
    shorter = create_run(config(), tmp_path / "runs", "shorter")
    train(config(), stopping(shorter, "log", 2))
    step = shorter.status().step
    assert_equal(weights(whole, step), load_file(shorter.adapter / "adapter_model.safetensors"))
    assert (whole.snapshot(step) / "adapter_config.json").is_file()


def test_a_resumed_run_takes_those_anew_that_came_after_its_checkpoint(config, tmp_path, whole):
    run = create_run(config(), tmp_path / "runs", "parts")
    train(config(), stopping(run, "log", 2))
    later, half = run.snapshot(4), run.folder / "snapshot.writing"
    for left in (later, half):  # a kill after step 4 left the one, a kill in the middle the other
        left.mkdir()
        (left / "adapter_model.safetensors").write_bytes(b"of another time")
    assert run.snapshots[-1] == 4
    run.enter_line()
    assert not half.exists()
    train(config(), run)
    assert run.snapshots == [1, 2, 3, 4]
    for step in run.snapshots:
        assert_equal(weights(run, step), weights(whole, step))


@pytest.mark.parametrize("settings", [{"snapshots": 0}, {"finetuning_type": "full", "learning_rate": 1e-3}])
def test_none_are_kept_where_none_are_wanted(config, tmp_path, settings):
    settings = config(**settings, max_steps=2)
    run = create_run(settings, tmp_path / "runs", "none")
    train(settings, run)
    assert run.has_result and run.snapshots == [] and not (run.folder / "snapshots").exists()


def full_disk(monkeypatch):
    save = PeftModel.save_pretrained

    def refused(self, folder, **kwargs):
        save(self, folder, **kwargs)
        if folder.name == "snapshot.writing":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(PeftModel, "save_pretrained", refused)


def nearly_full_disk(monkeypatch):
    monkeypatch.setattr(snapshots.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))


@pytest.mark.parametrize("fill", [full_disk, nearly_full_disk])
def test_a_full_disk_costs_the_snapshot_and_not_the_run(config, tmp_path, monkeypatch, fill):
    fill(monkeypatch)
    settings = config(snapshots=1, max_steps=2)
    run = create_run(settings, tmp_path / "runs", "full")
    train(settings, run)
    assert run.status().state == "finished" and run.snapshots == []
    assert "The disk is full: the snapshot of step 1 is not written" in str(run.events("warning"))
    assert not (run.folder / "snapshot.writing").exists()

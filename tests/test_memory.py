"""What fits into memory, known from file headers, and what is said where it does not."""

import json
import math
from dataclasses import replace

import pytest

from sft import memory, models
from sft.config import TrainConfig
from sft.errors import ConfigError


@pytest.fixture
def config(tiny_model):
    return TrainConfig.from_dict({"model": str(tiny_model), "dataset": "rows.jsonl", "lora_r": 4})


def test_shapes_are_those_of_the_loaded_model(tiny_model):
    found = memory.shapes(tiny_model)
    assert {name: tuple(p.shape) for name, p in models.load_base(tiny_model).named_parameters()} == found


def test_a_model_that_sees_too_is_known_by_the_config_of_its_text(config, tiny_model, tmp_path):
    about = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"text_config": about}))
    (tmp_path / "model.safetensors").symlink_to(tiny_model / "model.safetensors")
    assert memory.estimate(config, tmp_path, 100) == memory.estimate(config, tiny_model, 100)


def test_full_fine_tuning_needs_sixteen_bytes_a_weight_and_lora_four(config, tiny_model):
    total = sum(map(math.prod, memory.shapes(tiny_model).values()))
    lora = memory.estimate(config, tiny_model, 1) - memory.LIBRARIES
    full = memory.estimate(replace(config, finetuning_type="full"), tiny_model, 1) - memory.LIBRARIES
    assert full > 16 * total
    assert 4 * total < lora < full
    assert memory.estimate(config, tiny_model, 1000) > memory.estimate(config, tiny_model, 10)
    assert memory.estimate(replace(config, lora_r=64), tiny_model, 1) - memory.LIBRARIES > lora
    few = replace(config, target_modules="q_proj")
    assert memory.estimate(few, tiny_model, 1) - memory.LIBRARIES < lora


def test_what_does_not_fit_is_refused_with_the_smallest_change_that_does(config, tiny_model, monkeypatch):
    full = replace(config, finetuning_type="full")
    fits = memory.estimate(config, tiny_model, 4000)
    monkeypatch.setattr(memory, "available", lambda: fits)
    memory.check_fits(config, tiny_model, 4000)
    with pytest.raises(ConfigError, match=r"all weights of .* takes about .* GB") as refused:
        memory.check_fits(full, tiny_model, 4000)
    assert refused.value.hint.startswith("Set finetuning_type to lora: that takes about")
    with pytest.raises(ConfigError) as refused:
        memory.check_fits(config, tiny_model, 5000)
    assert refused.value.hint.startswith("Set max_length to 256")
    monkeypatch.setattr(memory, "available", lambda: 1000)
    with pytest.raises(ConfigError, match="a LoRA adapter") as refused:
        memory.check_fits(config, tiny_model, 10)
    assert "smaller model" in refused.value.hint


def test_what_was_measured_is_believed_before_the_estimate(config, tiny_model, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10e9)
    memory.check_fits(config, tiny_model, 10, measured=9e9)
    with pytest.raises(ConfigError, match=r"11\.0 GB"):
        memory.check_fits(config, tiny_model, 10, measured=11e9)


def test_a_run_that_does_not_fit_loads_nothing(config, tiny_model, tmp_path, write_rows, monkeypatch):
    from sft.runs import create_run
    from sft.train import train

    monkeypatch.setattr(memory, "available", lambda: 1000)
    monkeypatch.setattr(models, "load_base", lambda *given: pytest.fail("the model was loaded"))
    settings = replace(config, dataset=str(write_rows([{"question": "One?", "answer": "1"}])))
    run = create_run(settings, tmp_path)
    with pytest.raises(ConfigError, match="GB of memory"):
        train(settings, run)
    assert run.status().state == "failed"

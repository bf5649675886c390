"""A run from config to adapter, on a tiny model: what moves, what stays, what is written, how it ends."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations import is_trackio_available

from sft import data, models
from sft.chat_format import IGNORED, ChatFormat
from sft.config import TrainConfig
from sft.errors import ConfigError, DataError, ModelError, RunError
from sft.prepare import prepare
from sft.runs import create_run
from sft.train import build_trainer, train

ROWS = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(24)]


@pytest.fixture
def config(tiny_model, write_rows):
    def make(**settings):
        return TrainConfig.from_dict(
            {
                "model": str(tiny_model), "dataset": str(write_rows(ROWS)), "eval_share": 0.25, "max_steps": 6,
                "learning_rate": 0.01, "eval_steps": 3, "lora_r": 4, "lora_alpha": 8, **settings,
            }
        )  # fmt: skip

    return make


def finish(config, tmp_path, name="one"):
    run = create_run(config, tmp_path / "runs", name)
    train(config, run)
    return run


def test_a_run_ends_with_an_adapter_and_all_that_it_takes_to_use_it(config, tmp_path):
    run = finish(config(), tmp_path)
    assert (run.status().state, run.status().step) == ("finished", 6)
    assert {path.name for path in run.adapter.iterdir()} >= {
        "adapter_model.safetensors", "adapter_config.json", "tokenizer.json",
    }  # fmt: skip
    for name in ("config.yaml", "chat_format.json", "chat_template.jinja", "events.jsonl"):
        assert (run.folder / name).is_file(), name
    assert not (run.folder / "adapter.writing").exists()
    assert run.config() == config()


def test_a_tokenizer_that_knows_more_tokens_than_its_model_is_refused(config, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "smaller")
    model = models.load_base(tiny_model)
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "smaller")
    with pytest.raises(ModelError, match="knows 300 tokens, and its tokenizer gave number 3"):
        finish(config(model=str(tmp_path / "smaller")), tmp_path)


def test_the_events_tell_the_whole_story(config, tmp_path):
    run = finish(config(), tmp_path)
    start, end = run.events("start")[0], run.events("end")[0]
    assert (start["rows"], start["held_out_rows"], start["max_steps"]) == (18, 6, 6)
    assert 0 < start["trainable_parameters"] < start["total_parameters"]
    logs = run.events("log")
    assert [event["step"] for event in logs] == [1, 2, 3, 4, 5, 6]
    assert all(event["tokens"] > 0 and event["seconds"] > 0 for event in logs)
    assert [event["step"] for event in run.events("eval")] == [3, 6]
    assert end["state"] == "finished"
    assert logs[-1]["loss"] < logs[0]["loss"]


def test_the_adapter_moved_and_the_base_did_not(config, tmp_path):
    from peft import PeftModel

    settings = config()
    before = load_file(models.locate(settings.model) / "model.safetensors")
    run = finish(settings, tmp_path)
    adapter = load_file(run.adapter / "adapter_model.safetensors")
    moved = [name for name, weights in adapter.items() if "lora_B" in name and weights.abs().sum() > 0]
    assert moved and len(moved) == len(adapter) // 2
    assert not [name for name in adapter if "lora_" not in name]
    model = PeftModel.from_pretrained(models.load_base(models.locate(settings.model)), str(run.adapter))
    base = {name.replace(".base_layer", "").removeprefix("base_model.model."): weights
            for name, weights in model.state_dict().items()}  # fmt: skip
    for name, weights in before.items():
        assert torch.equal(base[name], weights), name


def test_the_trainer_learns_exactly_the_ids_that_the_preview_shows(config, tmp_path):
    settings = config()
    run = create_run(settings, tmp_path)
    chat_format = ChatFormat.of(models.load_tokenizer(models.locate(settings.model)))
    prepared = prepare(settings, chat_format, print)
    trainer = build_trainer(
        settings, models.load_base(models.locate(settings.model)), chat_format, prepared, run.folder
    )
    split = data.load_split(settings)
    for dataset, conversations in ((trainer.train_dataset, split.train), (trainer.eval_dataset, split.held_out)):
        assert len(dataset) == len(conversations)
        for row, conversation in zip(dataset, conversations, strict=True):
            rendered = chat_format.render(conversation.messages)
            assert row["input_ids"] == rendered.token_ids
            assert [int(label != IGNORED) for label in row["labels"]] == rendered.assistant_mask


def test_the_same_seed_gives_the_same_losses(config, tmp_path):
    first, second = (finish(config(), tmp_path, name) for name in ("one", "two"))
    assert [e["loss"] for e in first.events("log")] == [e["loss"] for e in second.events("log")]


def test_held_out_loss_is_the_mean_over_tokens(config, tmp_path):
    from sft.evaluate import evaluate, rows_of

    run = finish(config(), tmp_path)
    arms = evaluate(run, *rows_of(run)).arms
    assert arms["tuned"].value("loss") == pytest.approx(run.events("eval")[-1]["loss"], abs=1e-4)
    assert arms["tuned"].value("loss") < arms["base"].value("loss")


def test_a_stopped_run_keeps_its_adapter(config, tmp_path):
    settings = config(max_steps=1000, eval_strategy="no")
    run = create_run(settings, tmp_path)
    original = run.append_event

    class StopsAtThree(type(run)):
        def append_event(self, kind, **values):
            original(kind, **values)
            if kind == "log" and values["step"] == 3:
                self.ask_to_stop()

    train(settings, StopsAtThree(run.folder))
    assert run.status().state == "stopped"
    assert run.status().step in (3, 4)  # a step is logged after its end, so the next one's end may be the first to see
    assert run.has_result


def test_a_run_stopped_before_its_first_step_has_no_adapter(config, tmp_path):
    run = create_run(config(), tmp_path)
    run.ask_to_stop()
    train(config(), run)
    assert run.status().state == "stopped"
    assert not run.has_result and not run.staging.exists()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"max_length": 8}, DataError, "No row of"),
        ({"model": "./nowhere"}, ModelError, "There is no folder"),
        ({"dataset": "nowhere.jsonl"}, DataError, "There is no file"),
    ],
)
def test_a_run_that_cannot_be_says_why_in_its_status(config, tmp_path, settings, error, said):
    settings = config(**settings)
    run = create_run(settings, tmp_path)
    with pytest.raises(error, match=said):
        train(settings, run)
    assert run.status().state == "failed"
    assert said in run.status().message
    assert run.events("end")[0]["state"] == "failed"


def test_a_run_that_diverges_fails_and_says_so(config, tmp_path):
    settings = config(learning_rate=1.0, max_grad_norm=1000, lora_alpha=4096, max_steps=60, eval_strategy="no")
    run = create_run(settings, tmp_path)
    with pytest.raises(RunError, match=r"the loss at step \d+ is nan"):
        train(settings, run)
    assert run.status().state == "failed"
    assert "Lower the learning rate" in run.status().message
    assert "NaN" not in (run.folder / "events.jsonl").read_text()


def test_a_run_that_gets_no_memory_says_what_to_change_and_can_be_resumed(config, tmp_path, monkeypatch):
    from sft import trainer

    plain, calls = trainer.token_losses, iter([False] * 2 + [True])
    settings = config(eval_strategy="no", eval_share=None)
    run = create_run(settings, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(RunError, match="Out of memory at step 2"):
        patch.setattr(trainer, "token_losses", lambda *of: torch.empty(2**50) if next(calls) else plain(*of))
        train(settings, run)
    assert run.status().state == "failed" and "Lower per_device_train_batch_size" in run.status().message
    assert run.resumable and not run.staging.exists()
    run.enter_line()
    train(settings, run)
    assert run.status().state == "finished"


def test_a_row_that_the_template_refuses_is_named_or_skipped(config, tmp_path, tiny_model, write_rows):
    import shutil

    strict = tmp_path / "strict"
    shutil.copytree(tiny_model, strict)
    template = (strict / "chat_template.jinja").read_text()
    rule = "{% if 'odd' in messages[0]['content'] %}{{ raise_exception('too odd') }}{% endif %}"
    (strict / "chat_template.jinja").write_text(rule + template)
    path = str(write_rows([*ROWS, {"question": "An odd one?", "answer": "Yes."}], "odd.jsonl"))
    settings = config(model=str(strict), dataset=path, eval_share=None, max_steps=1)
    with pytest.raises(DataError, match=r"1 training rows are refused.*\n.*line 25: .*too odd"):
        train(settings, create_run(settings, tmp_path / "runs", "stops"))
    run = finish(config(model=str(strict), dataset=path, eval_share=None, max_steps=1, on_bad_rows="skip"), tmp_path)
    assert run.events("start")[0]["rows"] == 24
    assert "too odd" in str(run.events("warning"))


def test_layers_that_do_not_exist_are_told(config, tmp_path):
    settings = config(target_modules="foo_proj")
    with pytest.raises(ConfigError, match="names no layer"):
        train(settings, create_run(settings, tmp_path))


def test_cut_rows_are_told(config, tmp_path, write_rows):
    path = write_rows([*ROWS, {"question": "Long?", "answer": "Yes. " * 200}], "long.jsonl")
    run = finish(config(dataset=str(path), eval_share=None, max_length=100, max_steps=1), tmp_path)
    assert "1 training rows were cut at 100 tokens" in str(run.events("warning"))


def test_a_base_model_without_template_is_tuned_with_ours(config, tmp_path, tiny_base_model):
    run = finish(config(model=str(tiny_base_model)), tmp_path)
    about = json.loads((run.folder / "chat_format.json").read_text())
    assert about["origin"].startswith("plain")
    assert about["stop_tokens"] == ["<|endoftext|>"]


def test_gradient_accumulation_gives_the_losses_of_the_larger_batch(config, tmp_path):
    whole = finish(config(per_device_train_batch_size=4, max_steps=3, eval_share=None), tmp_path, "whole")
    parts = finish(
        config(per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=3, eval_share=None),
        tmp_path, "parts",
    )  # fmt: skip
    for one, other in zip(whole.events("log"), parts.events("log"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)


def test_a_tracker_is_told_the_losses(config, tmp_path):
    run = finish(config(report_to="tensorboard", max_steps=2, eval_strategy="no"), tmp_path)
    (file,) = (run.folder / "tensorboard").iterdir()
    assert b"train/loss" in file.read_bytes()


@pytest.mark.skipif(is_trackio_available(), reason="it is installed")
def test_a_tracker_that_is_not_installed_is_told_before_anything_is_loaded(config, tmp_path):
    run = create_run(config(report_to="trackio", model="./nowhere"), tmp_path)
    with pytest.raises(ConfigError, match=r"report_to: trackio is not installed.\n→ Run `pip install trackio`"):
        train(run.config(), run)

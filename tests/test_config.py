"""TrainConfig: what YAML and --set may say, and how wrong settings are told."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from sft.config import TrainConfig, read_yaml, template_arguments
from sft.errors import ConfigError

RESERVED = (
    "messages", "conversations", "tools", "chat_template", "add_generation_prompt", "return_assistant_tokens_mask",
    "continue_final_message", "compiled_template", "self", "raise_exception", "strftime_now",
)  # fmt: skip
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_config_loads_and_says_its_command(path):
    TrainConfig.load(path)
    assert path.read_text().startswith(f"# python -m sft train examples/{path.name}\n")


def test_the_lessons_run_is_the_lessons():
    config = TrainConfig.load("examples/lesson.yaml")
    assert (config.model, config.dataset, config.dataset_config) == (
        "HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/smoltalk", "all",
    )  # fmt: skip
    assert (config.max_steps, config.per_device_train_batch_size, config.learning_rate, config.eval_steps) == (
        1000, 4, 5e-5, 50,
    )  # fmt: skip


def test_saving_and_loading_changes_nothing(tmp_path):
    config = TrainConfig.load("examples/support-json.yaml", ["learning_rate=1e-4", "eval_strategy=no"])
    assert (config.learning_rate, config.eval_strategy) == (1e-4, "no")
    config.save(tmp_path / "config.yaml")
    assert TrainConfig.load(tmp_path / "config.yaml") == config


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match=r"learning_rates: there is no such setting; did you mean learning_rate\?"):
        TrainConfig.from_dict({"dataset": "x.jsonl", "learning_rates": 1})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("max_steps", 0, "at least 1"),
        ("max_steps", 2.5, "whole number"),
        ("max_steps", True, "must be a number"),
        ("max_steps", None, "needs a value"),
        ("learning_rate", 0, "more than 0"),
        ("learning_rate", "fast", "must be a number"),
        ("learning_rate", float("nan"), "finite"),
        ("lora_r", -1, "at least 1"),
        ("max_length", 1, "at least 8"),
        ("lora_dropout", 1, "at most 0.9"),
        ("eval_share", 0.9, "at most 0.5"),
        ("lr_scheduler_type", "zigzag", "one of cosine"),
        ("on_bad_rows", "train", "one of stop, skip"),
        ("model", 5, "must be text"),
    ],
)
def test_numbers_out_of_range_are_refused(key, value, said):
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict({"dataset": "x.jsonl", key: value})
    assert f"{key}: " in str(caught.value)
    assert said in str(caught.value)


def test_all_problems_are_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict({"max_steps": 0, "seed": -1, "colour": "red"})
    assert all(key in str(caught.value) for key in ("max_steps", "seed", "colour"))


def test_settings_that_exclude_each_other():
    with pytest.raises(ConfigError, match="give only one"):
        TrainConfig.from_dict({"dataset": "x", "eval_share": 0.1, "eval_dataset": "y"})
    with pytest.raises(ConfigError, match="name the data set"):
        TrainConfig.from_dict({"max_steps": 3})


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(ConfigError, match="no config file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("max_steps: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("just words")
    with pytest.raises(ConfigError, match="holds no settings"):
        read_yaml(tmp_path / "b.yaml")
    with pytest.raises(ConfigError, match="has no '='"):
        TrainConfig.load("examples/support-json.yaml", ["max_steps"])


@pytest.mark.parametrize("digits", [400, 5000])  # too many for a float; too many to print
@pytest.mark.parametrize("key", ["seed", "learning_rate", "eval_share"])
def test_huge_numbers_are_refused(key, digits):
    with pytest.raises(ConfigError, match=f"{key}: is too large a number"):
        TrainConfig.from_dict({"dataset": "x.jsonl", key: 10**digits})


CHOKING = ["2024-13-45", "9" * 5000, "!!int x", "!!timestamp x", "!!bool x", "[" * 5000]


@pytest.mark.parametrize("text", CHOKING, ids=lambda text: text[:15])
def test_values_that_yaml_chokes_on(text):
    with pytest.raises(ConfigError, match=r"--set model=.* cannot be read") as caught:
        TrainConfig.load("examples/support-json.yaml", [f"model={text}"])
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("text", ["json", "regex: (", "contains:"])
def test_a_reply_format_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="eval_format: "):
        TrainConfig.from_dict({"dataset": "x", "eval_format": text})
    assert TrainConfig.from_dict({"dataset": "x", "eval_format": "regex: a+"}).eval_format == "regex: a+"


def test_every_setting_explains_itself():
    for item in fields(TrainConfig):
        assert item.metadata["help"], item.name
        assert item.metadata["label"], item.name


def test_targets_are_as_peft_takes_them():
    assert TrainConfig(dataset="x").targets() == "all-linear"
    assert TrainConfig.from_dict({"dataset": "x", "target_modules": ["q_proj", "v_proj"]}).targets() == [
        "q_proj", "v_proj",
    ]  # fmt: skip


def deep(levels: int) -> str:
    return '{"a": ' + "[" * levels + "]" * levels + "}"


def test_template_arguments_are_a_dict():
    documents = '{"documents": [{"title": "a", "text": "b"}]}'
    assert template_arguments(documents) == json.loads(documents)
    assert template_arguments(' {"bos_token": "", "think": null, "x": [[1]]}') == {
        "bos_token": "", "think": None, "x": [[1]],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "are not JSON"),
        ("x", "are not JSON"),
        ('{"a": 1,\n}', "line 2"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"bos_token": 5}', "bos_token must be text, not 5"),
        ('{"eos_token": ["a"]}', 'eos_token must be text, not ["a"]'),
        ('{"bos_token": null}', "bos_token must be text, not null"),
        ('{"documents": "a"}', "documents must be a list of objects"),
        (deep(200), "nested more than 50 deep"),
        (deep(99_999), "nested too deeply"),
        ('{"a": "\\ud800"}', "not valid Unicode"),
        *((json.dumps({name: []}), f"{name} cannot be a template argument") for name in RESERVED),
    ],
)
def test_template_arguments_that_cannot_be_are_told(text, said):
    with pytest.raises(ConfigError) as caught:
        template_arguments(text)
    assert said in caught.value.message and caught.value.hint


def test_no_argument_that_the_renderer_has_itself_is_let_through():
    from inspect import signature

    from transformers.utils import chat_template_utils as theirs

    names = {*signature(theirs.render_jinja_template).parameters, "messages"}
    names |= {*signature(theirs._render_with_assistant_indices).parameters} - {"template_kwargs"}
    assert names - {"kwargs", "documents"} <= set(RESERVED)


def test_full_fine_tuning_trains_no_tokens_apart():
    with pytest.raises(ConfigError, match="trains every token already"):
        TrainConfig.from_dict(
            {"dataset": "x", "finetuning_type": "full", "trainable_token_indices": "<|im_end|>"}
        )  # fmt: skip


@pytest.mark.parametrize("key", ["finetuning_type", "report_to"])
def test_choices_are_named(key):
    with pytest.raises(ConfigError, match=f"{key}: must be one of"):
        TrainConfig.from_dict({"dataset": "x", key: "wandb"})

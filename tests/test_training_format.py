"""The chat format of a run: what its config names, refused or told where the model cannot learn it."""

import pytest

from sft.chat_format import ChatFormat, preset
from sft.config import TrainConfig
from sft.errors import ConfigError, TemplateError
from sft.models import load_tokenizer
from sft.training_format import trained_token_ids, training_format


def made(folder, **settings):
    warnings = []
    config = TrainConfig.from_dict({"model": str(folder), "dataset": "rows.jsonl", **settings})
    return training_format(config, folder, warnings.append), warnings


def test_without_a_choice_it_is_the_models_own_or_plain(tiny_model, tiny_base_model):
    assert made(tiny_model)[0].hash == ChatFormat.of(load_tokenizer(tiny_model)).hash
    chat_format, warnings = made(tiny_base_model)
    assert (chat_format.chat_template, warnings) == (preset("plain"), [])


def test_a_preset_or_a_file_takes_its_place(tiny_base_model, tmp_path):
    assert made(tiny_base_model, chat_template="chatml")[0].chat_template == preset("chatml")
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    chat_format = made(tiny_base_model, chat_template=str(own))[0]
    assert (chat_format.chat_template, chat_format.origin) == (own.read_text(), str(own))
    with pytest.raises(ConfigError, match="chat_template: chatnl is neither a preset nor a file"):
        made(tiny_base_model, chat_template="chatnl")


def test_a_template_whose_markers_are_no_tokens_is_refused(tiny_base_model):
    with pytest.raises(TemplateError, match=r"<\|eot_id\|>.*splits into ordinary pieces"):
        made(tiny_base_model, chat_template="llama3")


def test_a_template_that_never_stops_is_told(tiny_base_model, tmp_path):
    own = tmp_path / "own.jinja"
    own.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    (warning,) = made(tiny_base_model, chat_template=str(own))[1]
    assert "never learns to stop" in warning


def test_markers_that_were_never_trained_are_told_unless_the_run_trains_them(pretrained_base_model):
    both = "<|im_start|>,<|im_end|>"
    (warning,) = made(pretrained_base_model, chat_template="chatml")[1]
    assert f"trainable_token_indices: {both}" in warning
    (warning,) = made(pretrained_base_model, chat_template="chatml", trainable_token_indices="<|im_start|>")[1]
    assert "never trained on <|im_end|>:" in warning
    assert not made(pretrained_base_model, chat_template="chatml", trainable_token_indices=both)[1]


def test_tokens_are_named_by_text_or_number(tiny_base_model):
    tokenizer = load_tokenizer(tiny_base_model)

    def ids(tokens):
        config = TrainConfig.from_dict({"dataset": "x", "model": "tiny", "trainable_token_indices": tokens})
        return trained_token_ids(config, tokenizer)

    assert ids(None) == ids("") == []
    assert ids("<|im_end|>, 1 ,<|im_start|>") == ids([2, "<|im_start|>"]) == [1, 2]
    for wrong in ("<|im_and|>", str(len(tokenizer)), "-1"):
        with pytest.raises(ConfigError, match=r"trainable_token_indices: .* is no token of tiny"):
            ids(wrong)

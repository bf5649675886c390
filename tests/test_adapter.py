"""What is trained: the adapter as PEFT makes it of a config, with trained tokens in models of both kinds."""

import pytest
import torch
from peft import get_peft_model
from tiny_models import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from sft.adapter import _put_in_place, adapter_config
from sft.config import TrainConfig


@pytest.mark.parametrize("tied", [True, False])
def test_trained_tokens_are_read_and_written_anew_in_tied_and_untied_models(tied):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=400, tie_word_embeddings=tied, **sizes))
    config = TrainConfig.from_dict({"dataset": "x", "trainable_token_indices": "<|im_end|>"})
    tuned = get_peft_model(model, adapter_config(config, model, tiny_tokenizer(None)))
    logits = tuned(torch.tensor([[5, 2, 7]])).logits
    logits[0, :, 2].sum().backward()
    trained = {name: weights.grad for name, weights in tuned.named_parameters() if "trainable_tokens" in name}
    assert len(trained) == (1 if tied else 2)
    assert all(gradient.shape == (1, 16) and gradient.abs().sum() > 0 for gradient in trained.values())


def test_full_fine_tuning_has_no_adapter():
    assert adapter_config(TrainConfig.from_dict({"dataset": "x", "finetuning_type": "full"}), None, None) is None


def test_what_is_saved_again_takes_the_place_of_what_was(tmp_path):
    for text in ("first", "second"):
        (tmp_path / "writing").mkdir()
        (tmp_path / "writing/file").write_text(text)
        _put_in_place(tmp_path / "writing", tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (tmp_path / "adapter/file").read_text() == "second"

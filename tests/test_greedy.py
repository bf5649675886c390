"""Greedy replies with a draft: the same as without, in fewer passes, on every kind of cache."""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from sft.greedy import answering, greedy

EOS = 2  # of every small model, and `generate` stops at it whatever it is told
SMALL = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS,
}  # fmt: skip


def small(kind: str = "llama", **settings):
    """A random model of any architecture, in float64."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **SMALL, **settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation="sdpa").eval()


def generated(model, prompt: list[int], room: int, stops: list[int]) -> list[int]:
    config = GenerationConfig(max_new_tokens=room, do_sample=False, eos_token_id=stops, pad_token_id=0)
    output = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), generation_config=config
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 6, "head_dim": 8}),
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    ],
)
def test_a_draft_changes_no_token(kind, settings):
    rng = random.Random(0)
    model = small(kind, **settings)
    for length in (1, 9):
        prompt = [rng.randrange(3, 400) for _ in range(length)]
        wanted = generated(model, prompt, 24, [EOS])
        half_wrong = [token if rng.random() < 0.6 else rng.randrange(3, 400) for token in wanted]
        with answering(model):
            for drafts in ([], [wanted], [half_wrong], [half_wrong[5:], wanted[:9]]):
                assert greedy(model, prompt, drafts, [EOS], 24) == wanted, drafts


def test_a_reply_ends_with_its_stop_token_also_where_that_was_drafted():
    model, prompt = small(), [5, 6, 7]
    free = generated(model, prompt, 20, [EOS])
    stop = free[11]
    wanted = free[: free.index(stop) + 1]
    with answering(model):
        assert greedy(model, prompt, [], [stop], 20) == wanted
        assert greedy(model, prompt, [free], [stop], 20) == wanted


def test_a_right_draft_saves_passes():
    model, prompt, passes = small(), [5, 6, 7], []
    free = generated(model, prompt, 34, [EOS])
    assert len(free) == 34
    model.register_forward_pre_hook(lambda *given: passes.append(1))
    with answering(model):
        greedy(model, prompt, [free], [], 34)
    assert len(passes) == 2  # 16 read ahead and one more, twice


def test_a_reply_is_given_up_within_a_token():
    asked = iter([False, False, True])
    with answering(model := small()):
        assert len(greedy(model, [5, 6], [], [], 50, lambda: next(asked))) == 2


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model = small().train(training)
    before, use_cache = torch.get_rng_state(), model.config.use_cache
    with answering(model):
        assert not model.training
        greedy(model, [5, 6], [], [], 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.training, model.config.use_cache) == (training, use_cache)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())

"""Flat batches: losses and gradients are those of plain padded batches, whatever the rows share."""

import random

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from sft.chat_format import IGNORED
from sft.trainer import EXACT, FlatCollator, PaddedCollator, collator_for, shared_prefix, token_losses


@pytest.fixture(scope="module")
def model(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)


def row(ids, prompt):
    return {"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]}


def random_rows(draw, count, prefix):
    shared = [draw.randrange(3, 300) for _ in range(prefix)]
    rows = []
    for _ in range(count):
        ids = shared + [draw.randrange(3, 300) for _ in range(draw.randrange(3, 12))]
        rows.append(row(ids, max(1, min(len(ids) - 1, prefix + draw.randrange(-1, 3)))))
    return rows


def plain_losses(model, rows):
    """Each row alone through the whole model: the definition."""
    losses = []
    for item in rows:
        logits = model(input_ids=torch.tensor([item["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(item["labels"][1:])
        losses.append(F.cross_entropy(logits[targets != IGNORED], targets[targets != IGNORED], reduction="none"))
    return torch.cat(losses)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_losses_and_gradients_equal_those_of_each_row_alone(model, prefix, count):
    rows = random_rows(random.Random(prefix * 10 + count), count, prefix)
    expected = plain_losses(model, rows)
    model.zero_grad()
    expected.mean().backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    found = token_losses(model, FlatCollator()(rows)).double()
    assert torch.allclose(found, expected, atol=1e-5)
    model.zero_grad()
    found.mean().backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)


def test_the_layout_of_a_batch():
    batch = FlatCollator()([row([1, 2, 3, 4], 3), row([1, 2, 5, 6, 7], 3)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert batch["shift_labels"].tolist() == [[IGNORED, IGNORED, 4, IGNORED, 6, 7, IGNORED]]
    sees = batch["attention_mask"][0, 0]
    assert sees[4].tolist() == [True, True, False, False, True, False, False]
    assert batch["num_tokens"] == 9


def test_a_prefix_never_predicts_a_label():
    assert shared_prefix([[1, 2, 3, 4], [1, 2, 3, 5]], [[IGNORED, IGNORED, 3, 4], [IGNORED] * 3 + [5]]) == 1
    assert shared_prefix([[1, 2, 3], [1, 2, 3]], [[IGNORED] * 3] * 2) == 2  # a token of each row stays outside
    assert shared_prefix([[1, 2, 3]], [[IGNORED, 2, 3]]) == 0
    assert shared_prefix([[1, 2], [1, 2]], [[1, 2], [1, 2]]) == 0


SMALL = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def small(kind, attention="sdpa", **settings):
    """A random model of any architecture, in float64."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, **SMALL, **settings)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64, attn_implementation=attention).eval()


@pytest.mark.parametrize(
    ("kind", "attention", "settings"),
    [
        ("llama", "sdpa", {}),
        ("qwen2", "sdpa", {}),
        ("qwen3", "sdpa", {"head_dim": 8}),
        ("llama", "eager", {}),
        ("mistral", "sdpa", {"sliding_window": 4, "head_dim": 8}),
        ("mistral", "sdpa", {"sliding_window": None, "head_dim": 8}),
        ("gemma3_text", "sdpa", {"sliding_window": 4, "head_dim": 8}),
        ("gpt2", "sdpa", {"n_embd": 32, "n_head": 4, "n_layer": 2}),
        ("lfm2", "sdpa", {"layer_types": ["conv", "full_attention"]}),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_every_architecture_gets_the_layout_that_is_exact_for_it(kind, attention, settings):
    model, rows = small(kind, attention, **settings), random_rows(random.Random(3), 4, 6)
    collator = collator_for(model, rows)
    with torch.no_grad():
        assert torch.allclose(token_losses(model, collator(rows)).double(), plain_losses(model, rows), atol=1e-5)
    if kind in EXACT and attention == "sdpa":
        assert isinstance(collator, FlatCollator)
    if settings.get("sliding_window") or attention == "eager" or kind == "lfm2":
        assert isinstance(collator, PaddedCollator)


def test_a_padded_batch_counts_only_real_tokens():
    batch = PaddedCollator()([row([1, 2, 3, 4], 3), row([5, 6], 1)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert batch["shift_labels"].tolist() == [[IGNORED, IGNORED, 4, IGNORED], [6, IGNORED, IGNORED, IGNORED]]
    assert batch["num_tokens"] == 6

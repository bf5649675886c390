"""The fast ways through a model give the losses and gradients of the plain one, whatever the rows share."""

import random

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from sft.attention import EACH_ROW, EachRow, each_row
from sft.batches import FlatCollator, PaddedCollator
from sft.chat_format import IGNORED
from sft.layers import FastLayer, speed_up
from sft.trainer import EXACT, Trainer, collator_for, device_arguments, to_device, token_losses

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def row(ids, prompt):
    return {"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]}


def random_rows(draw, count, prefix):
    """Rows of 3 to 11 own tokens that share the first `prefix`; labels begin near the end of what is shared."""
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


def losses_of(model, batch):
    return torch.cat([token_losses(model, part) for part in batch["parts"]])


def gradients(model, losses):
    model.zero_grad()
    losses.sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def close(found: dict, wanted: dict) -> bool:
    assert found.keys() == wanted.keys()
    return all(torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5) for name in wanted)


def with_lora(model, **settings):
    """The model with LoRA whose B is not zero, so that every matrix matters and gets a gradient."""
    model = get_peft_model(
        model, LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": "all-linear", **settings})
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.mark.parametrize("prefix", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("tokens", [10, 1000])
def test_losses_and_gradients_equal_those_of_each_row_alone(prefix, count, tokens):
    model = small("llama")
    rows = random_rows(random.Random(prefix * 10 + count), count, prefix)
    expected = plain_losses(model, rows)
    wanted = gradients(model, expected)
    model.set_attn_implementation(EACH_ROW)
    found = losses_of(model, FlatCollator(tokens)(rows))
    assert torch.allclose(found.double().sort().values, expected.sort().values, atol=1e-5)
    assert close(gradients(model, found), wanted)


@pytest.mark.parametrize("kind", sorted(EXACT))
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
@pytest.mark.parametrize("prefix", [0, 6])
def test_fast_layers_give_the_gradients_of_plain_ones(kind, targets, prefix):
    torch.manual_seed(0)
    model = with_lora(small(kind, **({"head_dim": 8} if kind == "qwen3" else {})), target_modules=targets)
    rows = random_rows(random.Random(prefix), 4, prefix)
    expected = plain_losses(model, rows)
    wanted = gradients(model, expected)
    batch = collator_for(model, rows)(rows)
    assert speed_up(model) == 2
    found = losses_of(model, batch)
    assert torch.allclose(found.double().sort().values, expected.sort().values, atol=1e-5)
    assert close(gradients(model, found), wanted)
    assert len(wanted) == 2 * 2 * (7 if targets == "all-linear" else 2)


@pytest.mark.parametrize("attend", [each_row, EachRow.apply])
def test_in_bfloat16_the_gradients_of_many_rows_are_summed_up_without_rounding(attend):
    """A thousand rows share their first token and have one of their own. bfloat16 holds three digits."""
    count = 1000
    rows = torch.tensor([[0, own] for own in range(1, count + 1)])
    back = torch.tensor([0, *range(1, 2 * count, 2)])
    torch.manual_seed(0)
    states = [torch.randn(1, count + 1, 8).bfloat16() for _ in range(3)]

    def gradient_of_shared(dtype):
        query, key, value = (state.to(dtype).requires_grad_() for state in states)
        attend(query, key, value, rows, back, None).sum().backward()
        return value.grad[0, 0].double()

    wanted = gradient_of_shared(torch.float64)
    assert torch.allclose(gradient_of_shared(torch.bfloat16), wanted, rtol=0.01)


@pytest.mark.parametrize("device", DEVICES)
def test_in_bfloat16_fast_layers_are_as_close_to_the_truth_as_plain_ones(device):
    """The truth: the same weights in float64. Plain layers compute under autocast, as training has it on a GPU."""
    rows = random_rows(random.Random(2), 12, 6)
    model = with_lora(small("qwen2").bfloat16()).to(device)
    exact = with_lora(small("qwen2")).to(device)
    exact.load_state_dict(model.state_dict())
    batch = collator_for(model, rows)(rows)
    batch["parts"] = [to_device(part, device) for part in batch["parts"]]
    collator_for(exact, rows)
    wanted = gradients(exact, losses_of(exact, batch))

    def errors():
        with torch.autocast(device, torch.bfloat16):
            losses = losses_of(model, batch)
        found = gradients(model, losses)
        assert found.keys() == wanted.keys()
        return torch.tensor([(found[name] - wanted[name]).norm() / wanted[name].norm() for name in wanted])

    plain = errors()
    assert speed_up(model) == 2
    fast = errors()
    assert plain.mean() > 1e-3  # bfloat16 it is
    assert fast.mean() < 1.1 * plain.mean() and fast.max() < 1.5 * plain.max()


def test_a_sped_up_model_generates_as_before():
    model = with_lora(small("llama")).eval()
    prompt = torch.tensor([[5, 6, 7, 8]])
    before = model.generate(input_ids=prompt, max_new_tokens=5, do_sample=False)
    rows = random_rows(random.Random(0), 3, 2)
    collator_for(model, rows)
    speed_up(model)
    assert torch.equal(model.generate(input_ids=prompt, max_new_tokens=5, do_sample=False), before)


@pytest.mark.parametrize(
    "settings", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}], ids=lambda value: str(value)
)
def test_layers_with_anything_else_stay_as_they_are(settings):
    model = with_lora(small("llama"), **settings)
    assert speed_up(model) == 0


@pytest.mark.parametrize("settings", [{"attention_dropout": 0.1}, {"hidden_act": "gelu"}], ids=lambda value: str(value))
def test_models_with_anything_else_keep_their_layers(settings):
    assert speed_up(with_lora(small("llama", **settings))) == 0


def test_what_a_model_does_to_its_logits_is_part_of_the_loss():
    model = with_lora(small("nanochat", final_logit_softcapping=30.0))
    rows = random_rows(random.Random(5), 4, 3)
    expected = plain_losses(model, rows)
    wanted = gradients(model, expected)
    found = losses_of(model, collator_for(model, rows)(rows))
    assert torch.allclose(found.double().sort().values, expected.sort().values, atol=1e-5)
    assert close(gradients(model, found), wanted)


def test_whole_models_are_trained_the_plain_way():
    model = small("llama")
    rows = random_rows(random.Random(1), 4, 3)
    wanted = gradients(model, plain_losses(model, rows))
    batch = collator_for(model, rows)(rows)
    assert speed_up(model) == 0
    assert close(gradients(model, losses_of(model, batch)), wanted)


def trained(trainer_class, rows, tmp_path, **settings):
    """Losses of some steps from the same start, and the weights after them."""
    torch.manual_seed(0)
    model = with_lora(small("llama").float())
    own = trainer_class is Trainer
    arguments = SFTConfig(
        output_dir=str(tmp_path), max_steps=4, learning_rate=1e-2, logging_steps=1, report_to="none", disable_tqdm=True,
        save_strategy="no", remove_unused_columns=False, max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True}, **{**device_arguments(), **settings},
    )  # fmt: skip
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(None),
        **({"data_collator": collator_for(model, rows)} if own else {}),
    )  # fmt: skip
    trainer.train()
    if own:
        assert isinstance(trainer.model.get_base_model().model.layers[0].forward, FastLayer)
    return [log["loss"] for log in trainer.state.log_history if "loss" in log], trainer.model.state_dict()


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 3}], ids=["plain", "accumulated"])
def test_a_training_has_the_losses_and_weights_of_trls_own(tmp_path, settings):
    rows = random_rows(random.Random(7), 24, 4)
    ours, moved = trained(Trainer, rows, tmp_path, per_device_train_batch_size=3, **settings)
    theirs, wanted = trained(SFTTrainer, rows, tmp_path, per_device_train_batch_size=3, **settings)
    assert len(ours) == len(theirs) == 4
    assert ours == pytest.approx(theirs, abs=2e-4)  # TRL rounds what it logs
    assert close(moved, wanted)


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
    with torch.no_grad():
        wanted = plain_losses(model, rows).sort().values
        collator = collator_for(model, rows)
        found = losses_of(model, collator(rows)).double().sort().values
    assert torch.allclose(found, wanted, atol=1e-5)
    assert (model.config._attn_implementation == EACH_ROW) == isinstance(collator, FlatCollator)
    if kind in EXACT and attention == "sdpa":
        assert isinstance(collator, FlatCollator)
    if settings.get("sliding_window") or attention == "eager" or kind == "lfm2":
        assert isinstance(collator, PaddedCollator)

"""Adapters as PEFT saves them, beside PEFT's own model: the same numbers, and what is not plain LoRA is refused."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from sft.errors import ModelError
from sft.lora import adapt, load_adapter
from sft.passes import Reader, Row

IDS = [[5, 6, 1, 7, 2], [9, 2, 8], [4, 4, 4, 4]]
BOTH = ("model.embed_tokens", "lm_head")
KINDS = {
    "all-linear": {"target_modules": "all-linear"},
    "a few layers": {"target_modules": ["q_proj", "down_proj"]},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "the head too": {"target_modules": ["lm_head", "v_proj"]},
    "tokens": {"target_modules": "all-linear", "trainable_token_indices": {name: [1, 2] for name in BOTH}},
    "tokens of the embedding, which is the head too": {
        "target_modules": "all-linear",
        "trainable_token_indices": {BOTH[0]: [1, 2]},
    },
}


def load(folder, tied=True):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(folder, tie_word_embeddings=tied).eval()


def make_adapter(folder, model, kind, seed=1):
    """An adapter with random numbers everywhere, as PEFT saves it."""
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, **kind))
    torch.manual_seed(seed)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # PEFT's, about tied embeddings
def test_each_row_is_what_pefts_own_model_makes_of_it(kind, tiny_model, tmp_path):
    one, two = (make_adapter(tmp_path / str(seed), load(tiny_model), KINDS[kind], seed) for seed in (1, 2))
    reader = Reader(load(tiny_model))
    rows = [Row(load_adapter(one, reader.model)), Row(), Row(load_adapter(two, reader.model))]
    found = reader.read(rows, IDS, [3, 1, 2])
    wanted = [PeftModel.from_pretrained(load(tiny_model), str(one)), load(tiny_model)]
    wanted.append(PeftModel.from_pretrained(load(tiny_model), str(two)))
    for logits, model, ids, count in zip(found, wanted, IDS, [3, 1, 2], strict=True):
        with torch.inference_mode():
            alone = model.eval()(input_ids=torch.tensor([ids])).logits[0, -count:]
        torch.testing.assert_close(logits, alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[0][-1], reader.read([Row()], [IDS[0]])[0][-1], atol=1e-2)


def test_layers_that_hold_their_weights_the_other_way_round_are_taken_too(tmp_path):
    config = GPT2Config(vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4)

    def plain():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()

    kind = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    folder = make_adapter(tmp_path / "a", plain(), kind)
    reader = Reader(plain())
    base, tuned = reader.read([Row(), Row(load_adapter(folder, reader.model))], [IDS[0]] * 2)
    with torch.inference_mode():
        alone = PeftModel.from_pretrained(plain(), str(folder)).eval()(input_ids=torch.tensor(IDS[:1])).logits[0, -1:]
    torch.testing.assert_close(tuned, alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(base, tuned, atol=1e-2)


def test_beside_bfloat16_an_adapter_computes_in_float32_as_peft_does(tiny_model, tmp_path):
    folder = make_adapter(tmp_path / "a", load(tiny_model), KINDS["all-linear"])
    ours, theirs = (load(tiny_model).to(torch.bfloat16) for _ in range(2))
    parts, name = adapt(ours), "model.layers.0.mlp.up_proj"
    layer, adapter = ours.get_submodule(name), load_adapter(folder, ours)
    alone = PeftModel.from_pretrained(theirs, str(folder)).eval().base_model.model.get_submodule(name)
    parts.tokens = [(slice(None), adapter)]
    x = torch.randn(64, 32, dtype=torch.bfloat16)
    with torch.inference_mode():
        found, wanted = layer(x), alone(x)
    assert found.dtype == torch.bfloat16
    assert (found == wanted).float().mean() > 0.99  # what differs is the order of bfloat16 sums in the base's product


def damage(folder, how):
    weights, about = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:50])
    elif how == "no config":
        about.write_text("{")
    elif how == "another config":
        about.write_text("[]")
    elif how == "rank 0":
        about.write_text(json.dumps({**json.loads(about.read_text()), "r": 0}))
    elif how == "tokens as a list":
        about.write_text(json.dumps({**json.loads(about.read_text()), "trainable_token_indices": [1, 2]}))
    elif how == "ranks that differ":
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
        save_file({**load_file(weights), name: torch.zeros(32, 3)}, weights)
    elif how == "a norm":
        name = "base_model.model.model.layers.0.input_layernorm.lora_{}.weight"
        more = {name.format("A"): torch.zeros(4, 32), name.format("B"): torch.zeros(32, 4)}
        save_file({**load_file(weights), **more}, weights)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        *((how, "is damaged") for how in ("cut", "no config", "another config", "rank 0", "tokens as a list")),
        *((how, "does not fit its base model") for how in ("ranks that differ", "a norm")),
    ],
)
def test_a_damaged_adapter_is_told_in_words(how, said, tiny_model, tmp_path):
    folder = make_adapter(tmp_path / "a", load(tiny_model), KINDS["all-linear"])
    damage(folder, how)
    model = load(tiny_model)
    adapt(model)
    with pytest.raises(ModelError, match=said):
        load_adapter(folder, model)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"use_dora": True}, "use_dora is True"), ({"bias": "all"}, "bias is 'all'"), ({"peft_type": "IA3"}, "peft_type"),
     ({"rank_pattern": {"q_proj": 2}}, "rank_pattern")],
)  # fmt: skip
def test_more_than_lora_is_refused(change, said, tiny_model, tmp_path):
    folder = make_adapter(tmp_path / "a", load(tiny_model), KINDS["all-linear"])
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=said):
        load_adapter(folder, Reader(load(tiny_model)).model)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("layers.0.self_attn.q_proj.lora_A.weight", (4, 31)), ("layers.7.self_attn.q_proj.lora_A.weight", (4, 32)),
     ("layers.0.self_attn.q_proj.extra", (1,))],
)  # fmt: skip
def test_an_adapter_of_another_model_is_refused(name, shape, tiny_model, tmp_path):
    path = make_adapter(tmp_path / "a", load(tiny_model), KINDS["all-linear"]) / "adapter_model.safetensors"
    save_file({**load_file(path), f"base_model.model.model.{name}": torch.zeros(shape)}, path)
    with pytest.raises(ModelError, match="does not fit its base model"):
        load_adapter(path.parent, Reader(load(tiny_model)).model)

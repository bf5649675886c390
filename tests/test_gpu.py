"""What a GPU does otherwise: bfloat16 and its own attention kernels.

These need one that has bfloat16, and SFT_GPU=1 python -m pytest tests/test_gpu.py tests/test_trainer.py
All other tests, and without SFT_GPU these too, see no GPU.
"""

import random
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, LlamaConfig
from trl import SFTConfig, SFTTrainer

from sft.attention import EACH_ROW, each_row
from sft.batches import FlatCollator
from sft.chat_format import IGNORED
from sft.layers import FastLayer
from sft.lora import load_adapter
from sft.models import precision
from sft.passes import Reader, Row
from sft.trainer import Trainer, collator_for, device_arguments, token_losses

pytestmark = pytest.mark.skipif(precision() != torch.bfloat16, reason="needs a GPU with bfloat16, and SFT_GPU=1")


def small(dtype):
    """A random Llama on the GPU, with LoRA whose every matrix matters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).to("cuda")
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def rows_that_share(prefix, count=24):
    draw = random.Random(prefix)
    shared = [draw.randrange(3, 300) for _ in range(prefix)]
    rows = []
    for _ in range(count):
        ids = shared + [draw.randrange(3, 300) for _ in range(draw.randrange(3, 40))]
        rows.append({"input_ids": ids, "labels": [IGNORED] * (prefix + 1) + ids[prefix + 1 :]})
    return rows


def plain_losses(model, rows):
    """Each row alone through the whole model: the definition."""
    losses = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]], device="cuda")).logits[0, :-1].float()
        targets = torch.tensor(row["labels"][1:], device="cuda")
        losses.append(F.cross_entropy(logits[targets != IGNORED], targets[targets != IGNORED], reduction="none"))
    return torch.cat(losses)


def gradients(model, losses):
    model.zero_grad()
    losses.sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("prefix", [0, 5, 50])
@pytest.mark.parametrize("tokens", [60, 4096])
def test_losses_and_gradients_equal_those_of_each_row_alone(prefix, tokens):
    model, rows = small(torch.float32), rows_that_share(prefix)
    expected = plain_losses(model, rows)
    wanted = gradients(model, expected)
    model.set_attn_implementation(EACH_ROW)
    parts = [{name: value.to("cuda") for name, value in part.items()} for part in FlatCollator(tokens)(rows)["parts"]]
    found = torch.cat([token_losses(model, part) for part in parts])
    assert torch.allclose(found.sort().values, expected.sort().values, atol=1e-4)
    moved = gradients(model, found)
    assert moved.keys() == wanted.keys()
    assert all(torch.allclose(moved[name], wanted[name], rtol=1e-3, atol=1e-3) for name in wanted)


def test_attention_goes_through_the_flash_kernel():
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # else a Hopper takes that one
    rows = torch.tensor([[0, 1, 2, 3], [0, 1, 4, 0]], device="cuda")
    back = torch.tensor([0, 1, 2, 3, 6], device="cuda")
    torch.manual_seed(0)
    states = [torch.randn(heads, 5, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for heads in (9, 3, 3)]
    found = {}
    for kernel in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):  # an error, where it does not take these
        with sdpa_kernel(kernel):
            result = each_row(*states, rows, back, None)
            found[kernel] = result, *torch.autograd.grad(result.float().square().sum(), states)
    assert all(torch.allclose(*pair, atol=0.05) for pair in zip(*found.values(), strict=True))


def trained(trainer_class, tmp_path):
    rows = rows_that_share(20, 32)
    model = small(torch.bfloat16)
    arguments = SFTConfig(
        output_dir=str(tmp_path), max_steps=8, learning_rate=1e-3, logging_steps=1, report_to="none", disable_tqdm=True,
        save_strategy="no", remove_unused_columns=False, max_length=None, per_device_train_batch_size=8,
        dataset_kwargs={"skip_prepare_dataset": True}, **(device_arguments() if trainer_class is Trainer else {}),
    )  # fmt: skip
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer(None),
        **({"data_collator": collator_for(model, rows)} if trainer_class is Trainer else {}),
    )  # fmt: skip
    assert trainer.args.bf16 and trainer.args.device.type == "cuda"
    trainer.train()
    if trainer_class is Trainer:
        assert isinstance(trainer.model.get_base_model().model.layers[0].forward, FastLayer)
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def test_a_training_in_bfloat16_has_the_losses_of_trls_own(tmp_path):
    ours, theirs = (trained(kind, tmp_path) for kind in (Trainer, SFTTrainer))
    assert len(ours) == 8 and ours[-1] < ours[0]
    assert ours == pytest.approx(theirs, abs=0.02)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_rows_that_are_read_together_have_the_logits_that_peft_gives_each(tmp_path, dtype, tolerance):
    tuned = small(dtype).eval()
    tuned.save_pretrained(tmp_path)
    plain = small(dtype).unload().eval()
    reader = Reader(plain)
    assert reader.together
    first, then = [[5, 6, 7, 8], [5, 6, 7, 8], [9, 10]], [[11], [11], [12, 13]]
    adapter = load_adapter(tmp_path, plain)
    rows = [Row(), Row(adapter), Row(adapter)]
    reader.read(rows, first)
    found = reader.read(rows, then)
    with torch.no_grad():
        for ids, more, logits, row in zip(first, then, found, rows, strict=True):
            with nullcontext() if row.adapter else tuned.disable_adapter():
                alone = tuned(input_ids=torch.tensor([ids + more], device="cuda")).logits[0, -1]
            assert torch.allclose(logits[0], alone, atol=tolerance)
    assert not torch.allclose(found[0], found[1], atol=tolerance)

"""Tiny models and their tokenizers, made in seconds, to test with what does not need a real one."""

import json
import shutil
from pathlib import Path

PRETRAINING_STEPS = 450  # after fewer, logits are too small for a few tuned steps to be sure of a token
CORPUS = [
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "Hello! What is the capital of France? Paris, of course.\n\nThank you.",
    '{"product": "kettle", "category": "fault", "priority": "normal", "order": null}',
    "user assistant system tool ### User: ### Assistant:",
]


def tiny_tokenizer(chat_template: str | None):
    """A byte-level tokenizer of 400 entries: every text has tokens, few texts have few."""
    tokenizer = _trained_tokenizer(CORPUS * 4, 400, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = chat_template
    return tokenizer


def _trained_tokenizer(texts: list[str], size: int, control: list[str]):
    """A byte-level tokenizer; the first of the control tokens ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=control, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=control[0], bos_token=control[0])


def save_tiny_model(folder, chat_template: str | None, seed: int = 0):
    """A random Llama of two layers and its tokenizer, saved as a model folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(chat_template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_pretrained_base_model(folder):
    """A small Llama that has really read the text of examples/domain.jsonl, ten times over, and its tokenizer.

    It goes on with any text, as base models do: documents are long, so the end-of-text token is rare, but trained.
    The other control tokens stand in no text, so their embeddings stay where they were.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    texts = [message["content"] for row in domain_rows() for message in row["messages"]]
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|spare_1|>", "<|spare_2|>"]
    tokenizer = _trained_tokenizer(texts, 640, control)
    documents = ["\n\n".join(texts[at : at + 20]) + "<|endoftext|>" for at in range(0, len(texts), 20)]
    ids = torch.tensor(tokenizer("".join(documents))["input_ids"])
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
        )
    )  # fmt: skip
    model.get_input_embeddings().weight.data *= 0.1  # far less than training moves the rows that it moves
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=PRETRAINING_STEPS)
    for _ in range(PRETRAINING_STEPS):
        batch = torch.stack([ids[at : at + 64] for at in torch.randint(len(ids) - 64, (8,))])
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def domain_rows() -> list[dict]:
    lines = (Path(__file__).parents[1] / "examples/domain.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def save_tiny_run(root, name: str, model, seed: int, owner: str = "local", snapshots: tuple[int, ...] = ()):
    """A finished run of a tiny model whose adapter is random: it answers at once, and like no other seed's."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sft.chat_format import ChatFormat
    from sft.config import TrainConfig
    from sft.runs import create_run

    config = TrainConfig.from_dict({"model": str(model), "dataset": "examples/support-json.jsonl", "max_steps": 8})
    run = create_run(config, root, name, owner)
    tokenizer = AutoTokenizer.from_pretrained(model)
    ChatFormat.of(tokenizer).save(run.folder)
    torch.manual_seed(seed)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora)
    for step in snapshots:
        tuned.save_pretrained(run.snapshot(step))
        for at, weights in tuned.named_parameters():
            weights.data *= 1.5 if "lora_B" in at else 1.0
    tuned.save_pretrained(run.adapter)
    tokenizer.save_pretrained(run.adapter)
    run.set_status("finished", step=8, max_steps=8)
    return run


def save_full_run(root, name: str, model):
    """A finished run that kept a whole model, whose weights differ a little from the base model's."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = save_tiny_run(root, name, model, seed=1)
    shutil.rmtree(run.adapter)
    tuned = AutoModelForCausalLM.from_pretrained(model)
    torch.manual_seed(len(name))
    for weights in tuned.parameters():
        weights.data += 0.01 * torch.randn_like(weights)
    tuned.save_pretrained(run.model)
    AutoTokenizer.from_pretrained(model).save_pretrained(run.model)
    return run

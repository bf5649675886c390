"""What is trained and how it is saved: a LoRA adapter on the frozen model, or in full fine-tuning the model itself."""

import shutil
from pathlib import Path

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from sft.chat_format import ChatFormat
from sft.config import TrainConfig
from sft.run import Run
from sft.trainer import Trainer
from sft.training_format import trained_token_ids


def adapter_config(config: TrainConfig, model: PreTrainedModel, tokenizer) -> LoraConfig | None:
    """The adapter as PEFT takes it; None where every weight of the model itself is trained."""
    if config.finetuning_type == "full":
        return None
    tokens = trained_token_ids(config, tokenizer)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.targets(),
        trainable_token_indices=dict.fromkeys(_embeddings(model), tokens) if tokens else None,
    )


def _embeddings(model: PreTrainedModel) -> list[str]:
    """Names of the layers that hold a row for each token: PEFT trains those of the head only if it is named too."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]


def save(trainer: Trainer, chat_format: ChatFormat, run: Run) -> None:
    """The adapter or the model, and its tokenizer, put in place together when all is written."""
    if not trainer.accelerator.is_main_process:
        return
    model, tokenizer = trainer.model, chat_format.tokenizer
    folder = run.adapter if isinstance(model, PeftModel) else run.model
    writing = folder.with_name(f"{folder.name}.writing")
    if folder == run.model:  # loaded without us, it answers in this format and stops where it should
        tokenizer.chat_template = chat_format.chat_template
        model.generation_config.eos_token_id = chat_format.stop_token_ids
    model.save_pretrained(writing, safe_serialization=True)
    tokenizer.save_pretrained(writing)
    _put_in_place(writing, folder)


def _put_in_place(writing: Path, folder: Path) -> None:
    """One rename, so that nobody finds half of it. What a run saved before it was resumed gives way."""
    before = folder.with_name(f"{folder.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
        folder.rename(before)
    writing.rename(folder)
    shutil.rmtree(before, ignore_errors=True)

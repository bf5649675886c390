"""What is trained on top of a frozen model: the LoRA adapter, as the config says, and how it is saved."""

from peft import LoraConfig

from sft.chat_format import ChatFormat
from sft.config import TrainConfig
from sft.runs import Run
from sft.trainer import Trainer


def adapter_config(config: TrainConfig) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.targets(),
    )


def save(trainer: Trainer, chat_format: ChatFormat, run: Run) -> None:
    """The adapter, tokenizer and chat format, put in place together when all is written."""
    if not trainer.accelerator.is_main_process:
        return
    writing = run.folder / "adapter.writing"
    trainer.model.save_pretrained(writing, safe_serialization=True)
    chat_format.tokenizer.save_pretrained(writing)
    chat_format.save(run.folder)
    writing.rename(run.adapter)

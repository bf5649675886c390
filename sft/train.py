"""train(config, run): load → format → adapter → fit → save.

Runs alone, under torchrun and under `accelerate launch`. Everything that a reader needs while it goes on is written
to the run folder by `Recorder`; only the main process writes.
"""

import math
import os
import time
import traceback
from datetime import date
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from peft.utils.error import NoMatchingPeftModuleError
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from sft import data, models
from sft.chat_format import ChatFormat
from sft.config import TrainConfig
from sft.errors import ConfigError, DataError, RunError, TemplateError, UserError, listed
from sft.messages import Conversation
from sft.runs import Run
from sft.sandbox import guarded
from sft.trainer import Trainer, collator_for

EVAL_BATCH = 8  # without a backward pass there is room for more rows than in training


class StopAsked(Exception):
    """The run was asked to stop before its first step."""


def train(config: TrainConfig, run: Run) -> None:
    """One run from its config to its adapter. The run folder ends in a state that says how it went."""
    recorder = Recorder(run, config.max_steps)
    try:
        recorder.state("preparing", "Loading the model and the data.")
        folder = models.locate(config.model, lambda stage, share: recorder.preparing(stage))
        chat_format = guarded(ChatFormat.of(models.load_tokenizer(folder)).as_of(date.today()))
        recorder.check_stop()
        rows, held_out = prepare(config, chat_format, recorder)
        recorder.check_stop()
        trainer = build_trainer(config, models.load_base(folder), chat_format, rows, held_out, run.folder)
        trainer.remove_callback(PrinterCallback)  # the recorder prints
        trainer.add_callback(recorder)
        recorder.start(trainer, rows, held_out)
        trainer.train()
        recorder.state("saving", "Writing the adapter.")
        save(trainer, chat_format, run)
        recorder.end("finished" if recorder.step >= config.max_steps else "stopped")
    except StopAsked:
        recorder.end("stopped", "Stopped before the first step; there is no adapter.")
    except UserError as error:
        recorder.end("failed", str(error))
        raise
    except Exception as error:
        traceback.print_exc()
        recorder.end("failed", f"{type(error).__name__}: {error}")
        raise


def prepare(config: TrainConfig, chat_format: ChatFormat, recorder: "Recorder") -> tuple[list[dict], list[dict]]:
    """Training and held-out rows as `input_ids` and `labels`; rows without a trained token are left out, aloud."""
    split = data.load_split(config)
    for warning in split.warnings:
        recorder.warn(warning)
    if not split.held_out and config.eval_strategy == "steps":
        recorder.warn("no rows are held out, so the held-out loss is not measured")
    rows = _encode(split.train, chat_format, config, "training", recorder)
    if not rows:
        raise DataError(
            f"No row of {config.dataset} has a token to train on within {config.max_length} tokens.",
            "Raise max_length, or look at the rows with `python -m sft check`.",
        )
    measured = split.held_out[: config.max_eval_samples]
    return rows, _encode(measured, chat_format, config, "held-out", recorder)


def _encode(
    conversations: list[Conversation], chat_format: ChatFormat, config: TrainConfig, part: str, recorder: "Recorder"
) -> list[dict]:
    rows, refused, cut, dropped = [], [], 0, 0
    for conversation in conversations:
        try:
            encoded = chat_format.encode(conversation, config.max_length)
        except TemplateError as error:
            refused.append(f"{conversation.place}: {error.message}")
            continue
        cut += encoded.verdict == "cut"
        dropped += encoded.verdict == "dropped"
        if encoded.verdict != "dropped":
            rows.append({"input_ids": encoded.input_ids, "labels": encoded.labels})
    if refused:
        problem = f"{len(refused)} {part} rows are refused by the model's chat template:\n{listed(refused)}"
        if config.on_bad_rows == "stop":
            raise DataError(problem, "Mend these rows, or set on_bad_rows to skip.")
        recorder.warn(problem)
    if cut:
        recorder.warn(f"{cut} {part} rows were cut at {config.max_length} tokens, so they lose their stop token")
    if dropped:
        recorder.warn(f"{dropped} {part} rows were left out: nothing to train on within {config.max_length} tokens")
    return rows


def build_trainer(
    config: TrainConfig, model, chat_format: ChatFormat, rows: list[dict], held_out: list[dict], folder: Path
) -> Trainer:
    """Our SFTTrainer with a LoRA adapter on the frozen model."""
    on_gpu = torch.cuda.is_available()
    tokenizer = chat_format.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # never used: flat batches have no padding
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=EVAL_BATCH,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        eval_strategy=config.eval_strategy if held_out else "no",
        eval_steps=config.eval_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a diverged run must not look like one of loss 0
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not on_gpu,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        # At this size recomputing the activations costs more time than the memory is worth.
        gradient_checkpointing=None,  # the older name, which TRL switches on
        activation_checkpointing=False,
        ddp_backend="gloo" if not on_gpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        max_length=None,  # rows are already cut
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.targets(),
    )
    try:
        return Trainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=tokenizer,
            peft_config=adapter,
            data_collator=collator_for(model, [*rows, *held_out]),
        )
    except NoMatchingPeftModuleError:
        raise ConfigError(
            f"target_modules {config.target_modules!r} names no layer of {config.model}.",
            "Write all-linear, or names such as q_proj,v_proj.",
        ) from None


def save(trainer: Trainer, chat_format: ChatFormat, run: Run) -> None:
    """The adapter, tokenizer and chat format, put in place together when all is written."""
    if not trainer.accelerator.is_main_process:
        return
    writing = run.folder / "adapter.writing"
    trainer.model.save_pretrained(writing, safe_serialization=True)
    chat_format.tokenizer.save_pretrained(writing)
    chat_format.save(run.folder)
    writing.rename(run.adapter)


class Recorder(TrainerCallback):
    """Writes what happens to the run folder, and carries a stop request to the trainer."""

    def __init__(self, run: Run, max_steps: int):
        self.run = run
        self.max_steps = max_steps
        self.step = 0
        self.main = os.environ.get("RANK", "0") == "0"
        self.trainer = None
        self.began = time.time()

    def state(self, state: str, message: str = "") -> None:
        if self.main:
            self.run.set_status(state, step=self.step, max_steps=self.max_steps, message=message)

    def event(self, kind: str, **values) -> None:
        if self.main:
            self.run.append_event(kind, **{"step": self.step, **values})

    def warn(self, message: str) -> None:
        if self.main:
            print(f"warning: {message}", flush=True)
        self.event("warning", message=message)

    def preparing(self, stage: str) -> None:
        self.state("preparing", stage)

    def check_stop(self) -> None:
        if self.run.stop_asked:
            raise StopAsked

    def start(self, trainer: Trainer, rows: list[dict], held_out: list[dict]) -> None:
        self.trainer = trainer
        trainable, total = trainer.model.get_nb_trainable_parameters()
        self.event(
            "start",
            max_steps=self.max_steps,
            rows=len(rows),
            held_out_rows=len(held_out),
            trainable_parameters=trainable,
            total_parameters=total,
            device=str(trainer.accelerator.device),
        )
        if self.main:
            print(
                f"{len(rows)} rows, {len(held_out)} held out; training {trainable:,} of {total:,} parameters "
                f"({trainable / total:.2%}) on {trainer.accelerator.device}",
                flush=True,
            )
        self.began = time.time()
        self.state("training")

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.step = state.global_step
        seconds = time.time() - self.began
        if "loss" in logs:
            tokens = self.trainer.tokens_seen
            if not math.isfinite(float(logs["loss"])):
                raise RunError(
                    f"Training diverged: the loss at step {self.step} is {logs['loss']}.", "Lower the learning rate."
                )
            gradient = float(logs.get("grad_norm", 0))
            self.event(
                "log",
                step=self.step,
                loss=float(logs["loss"]),
                learning_rate=float(logs["learning_rate"]),
                grad_norm=gradient if math.isfinite(gradient) else None,
                tokens=tokens,
                seconds=seconds,
            )
            line = f"step {self.step}/{self.max_steps}  loss {float(logs['loss']):.4f}  {tokens / seconds:.0f} tokens/s"
        elif "eval_loss" in logs:
            self.event("eval", step=self.step, loss=float(logs["eval_loss"]), seconds=seconds)
            line = f"step {self.step}/{self.max_steps}  held-out loss {float(logs['eval_loss']):.4f}"
        else:
            return
        if self.main:
            print(line, flush=True)
        self.state("training")

    def on_step_end(self, args, state, control, **kwargs):
        self.step = state.global_step
        if control.should_evaluate:
            self.state("training", "Measuring the held-out loss.")
        if self.run.stop_asked:
            control.should_training_stop = True

    def end(self, state: str, message: str = "") -> None:
        self.event("end", step=self.step, state=state, message=message, seconds=time.time() - self.began)
        self.state(state, message)
        if self.main and state in ("finished", "stopped"):
            print(f"{state} after {self.step} steps; the adapter is in {self.run.adapter}", flush=True)

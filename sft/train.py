"""train(config, run): load → format → adapter → fit → save; or on from the checkpoint of a run that was interrupted.

Runs alone, under torchrun and under `accelerate launch`. Everything that a reader needs while it goes on is written
to the run folder by `Recorder`; only the main process writes.
"""

import os
import sys
from pathlib import Path

import torch
from peft.utils.error import NoMatchingPeftModuleError
from transformers import PrinterCallback
from transformers.integrations import TensorBoardCallback, is_tensorboard_available, is_trackio_available
from trl import SFTConfig

from sft import failures, memory, models
from sft.adapter import adapter_config, save
from sft.chat_format import ChatFormat
from sft.checkpoints import Checkpoints
from sft.config import TrainConfig
from sft.errors import ConfigError, UserError
from sft.prepare import Prepared, prepare
from sft.recorder import Recorder, StopAsked
from sft.run import Run
from sft.samples import Samples, questions
from sft.sandbox import guarded
from sft.snapshots import Snapshots
from sft.trainer import Trainer, collator_for, device_arguments
from sft.training_format import training_format

EVAL_BATCH = 8  # without a backward pass there is room for more rows than in training


def train(config: TrainConfig, run: Run) -> None:
    """One run from its config, or from its newest checkpoint, to its adapter.

    The run folder ends in a state that says how it went.
    """
    recorder = Recorder(run, config.max_steps)
    try:
        _train(config, run, recorder)
    except StopAsked:
        recorder.end("stopped", "" if run.has_result else "Stopped before the first step; there is no adapter.")
    except UserError as error:
        _fail(recorder, str(error))
        raise
    except Exception as error:
        refused = failures.told(error, recorder.step, run.folder)
        _fail(recorder, str(refused or f"{type(error).__name__}: {error}"))
        if refused:
            raise refused from error
        raise
    if recorder.main:
        run.reconcile()  # nothing resumes from a run that has finished


def _train(config: TrainConfig, run: Run, recorder: Recorder) -> None:
    recorder.state("preparing", "Loading the model and the data.")
    _check_tracker(config.report_to)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # else all would load on the first
    folder = models.locate(config.model, lambda said, share: recorder.preparing(share, said))
    chat_format = _chat_format(config, folder, recorder)
    recorder.check_stop()
    prepared = prepare(config, chat_format, recorder.warn, recorder.preparing, recorder.check_stop)
    recorder.check_stop()
    recorder.refuse_other_rows(prepared)
    base = models.fingerprint(folder)
    recorder.refuse_other_base(base)
    memory.check_fits(config, folder, memory.longest(prepared))
    trainer = build_trainer(config, load_model(config, folder), chat_format, prepared, run.staging)
    checkpoints = Checkpoints(recorder)
    trainer.interrupt = recorder.check_stop
    trainer.remove_callback(PrinterCallback)  # the recorder prints
    trainer.add_callback(recorder)
    trainer.add_callback(checkpoints)
    if recorder.main and config.finetuning_type == "lora":
        trainer.add_callback(Snapshots(recorder, config.snapshots))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(run.folder / "tensorboard")  # its own choice is in the staging folder
    recorder.start(trainer, prepared, base)
    if recorder.main and (asked := questions(prepared.examples, chat_format, config)):
        trainer.add_callback(Samples(run, asked, chat_format))
    state = _fit(trainer, recorder, checkpoints)
    recorder.state("saving", "Writing the adapter.")
    save(trainer, chat_format, run)
    recorder.end(state)


def _fit(trainer: Trainer, recorder: Recorder, checkpoints: Checkpoints) -> str:
    """Trains to the end, or until it is asked to stop. Returns the state that the run ends in."""
    checkpoint = recorder.run.checkpoint
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except StopAsked:
        if recorder.step == 0:
            raise
    if recorder.step >= recorder.max_steps:
        return "finished"
    checkpoints.write()
    return "stopped"


def _chat_format(config: TrainConfig, folder: Path, recorder: Recorder) -> ChatFormat:
    """The run's chat format, kept in its folder from the start: a resumed run goes on with the day it began on."""
    kept = recorder.run.folder
    if (kept / "chat_format.json").is_file():
        return guarded(ChatFormat.load(kept, models.load_tokenizer(folder)))
    chat_format = training_format(config, folder, recorder.warn)
    if recorder.main:
        writing = kept / "chat_format.writing"
        writing.mkdir(exist_ok=True)
        chat_format.save(writing)
        for name in ("chat_template.jinja", "chat_format.json"):  # the last one tells that both are there
            (writing / name).replace(kept / name)
        writing.rmdir()
    return chat_format


def _fail(recorder: Recorder, reason: str) -> None:
    """Half-written files go first: on a full disk they leave room for the status."""
    try:
        if recorder.main:
            recorder.run.tidy()
        recorder.end("failed", reason)
    except OSError as error:
        print(f"The run's folder cannot be written, so it does not say how the run ended: {error}", file=sys.stderr)


def load_model(config: TrainConfig, folder: Path):
    """The base model, in float32 where all of it is trained: bfloat16 would lose small steps."""
    return models.load_base(folder, torch.float32 if config.finetuning_type == "full" else None)


def build_trainer(config: TrainConfig, model, chat_format: ChatFormat, prepared: Prepared, staging: Path) -> Trainer:
    """Our SFTTrainer with a LoRA adapter on the frozen model, or with the whole model.

    `staging` is the folder in its run's that takes what the trainer writes.
    """
    models.check_token(model, prepared.largest_token())
    tokenizer = chat_format.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # never used: flat batches have no padding
    try:
        return Trainer(
            model=model,
            args=_arguments(config, prepared, staging),
            train_dataset=prepared.train,
            eval_dataset=prepared.held_out,
            processing_class=tokenizer,
            peft_config=adapter_config(config, model, tokenizer),
            data_collator=collator_for(model, prepared.sample()),
            stop_token_ids=chat_format.stop_token_ids,
        )
    except NoMatchingPeftModuleError:
        raise ConfigError(
            f"target_modules {config.target_modules!r} names no layer of {config.model}.",
            "Write all-linear, or names such as q_proj,v_proj.",
        ) from None


def _arguments(config: TrainConfig, prepared: Prepared, staging: Path) -> SFTConfig:
    arguments = SFTConfig(
        output_dir=str(staging),
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
        eval_strategy=config.eval_strategy if prepared.held_out else "no",
        eval_steps=config.eval_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,  # a diverged run must not look like one of loss 0
        save_strategy="no",
        report_to=config.report_to,
        project="sft-playground",  # trackio's name for what belongs together
        run_name=staging.parent.name,
        disable_tqdm=True,
        remove_unused_columns=False,
        max_length=None,  # rows are already cut
        dataset_kwargs={"skip_prepare_dataset": True},
        **device_arguments(),
    )
    # More GPUs than one are for a launcher, which starts a process for each; one process alone takes the first.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _check_tracker(name: str) -> None:
    available = {"none": lambda: True, "tensorboard": is_tensorboard_available, "trackio": is_trackio_available}
    if not available[name]():
        raise ConfigError(
            f"report_to: {name} is not installed.", f"Run `pip install {name}`, or set report_to to none."
        )

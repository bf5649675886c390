"""Checkpoints: adapter, optimizer and schedule after a step, from which a run goes on as if nothing had happened.

One is written beside the run's other files, piece by piece, and put in place by one rename when it is whole. All
processes of a run decide alike when: the first one decides.
"""

import time

import torch
import transformers
from transformers import TrainerCallback

from sft import failures
from sft.recorder import Recorder

SECONDS_BETWEEN = 30.0  # at least; what is lost by a kill is at most this,
TIME_SHARE = 0.02  # or what it takes to spend no more than this share of the time on checkpoints


class Checkpoints(TrainerCallback):
    """Writes checkpoints at a pace that costs little, and gives every step randomness of its own."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder
        self.run = recorder.run
        self.written = recorder.resumed_from
        self.due = time.monotonic() + SECONDS_BETWEEN

    def on_step_begin(self, args, state, control, **kwargs):
        # Here and not at the step's end: by now its losses are measured and written down.
        if state.global_step and self.recorder.agree(time.monotonic() >= self.due):
            self.write()
        # Dropout draws from a seed of the step, so a resumed run draws the same whatever was drawn in between.
        torch.manual_seed((args.seed << 32) + state.global_step * args.world_size + args.process_index)

    def write(self) -> None:
        """A checkpoint of the last whole step, unless there is one. Where it cannot be written, a warning."""
        trainer = self.recorder.trainer
        step = trainer.state.global_step
        if step == self.written:
            return
        began = time.monotonic()
        problem = self._save(trainer)
        trainer.accelerator.wait_for_everyone()
        if self.recorder.main:
            self._put_in_place(step, problem)
        self.written = step  # or tried: the processes must go on alike, whichever of them had no room
        self.due = time.monotonic() + max(SECONDS_BETWEEN, (time.monotonic() - began) / TIME_SHARE)

    def _save(self, trainer) -> Exception | None:
        try:
            # not SFTTrainer's, which writes a model card first
            transformers.Trainer._save_checkpoint(trainer, trainer.model, trial=None)
        except Exception as error:  # each library has its own; that of tokenizers is no more than this
            full = failures.disk_full(error)
            if not full:
                raise
            return full
        return None

    def _put_in_place(self, step: int, problem: Exception | None) -> None:
        if problem is None:
            (self.run.staging / f"checkpoint-{step}").rename(self.run.folder / f"checkpoint-{step}")
        self.run.tidy()  # before a word is written, for which a full disk has no room yet
        if problem is None:
            self.recorder.event("checkpoint", step=step)
        else:
            self.recorder.warn(f"The disk is full: the checkpoint of step {step} is not written ({problem}).")

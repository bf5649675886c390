"""Writes what happens in a training to its run folder, and carries a stop request to the trainer.

Only the main process writes.
"""

import math
import os
import time

from transformers import TrainerCallback

from sft.errors import RunError
from sft.runs import Run
from sft.trainer import Trainer


class StopAsked(Exception):
    """The run was asked to stop before its first step."""


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
        parameters = [(parameter.numel(), parameter.requires_grad) for parameter in trainer.model.parameters()]
        trainable, total = sum(size for size, trained in parameters if trained), sum(size for size, _ in parameters)
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
            print(f"{state} after {self.step} steps; the result is in {self.run.result}", flush=True)

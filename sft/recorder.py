"""Writes what happens in a training to its run folder, and carries a stop request to the trainer.

Only the main process writes. What all processes must do alike, stop or write a checkpoint, the main process decides.
"""

import math
import os
import resource
import sys
import time

import torch
from transformers import TrainerCallback

from sft.errors import RunError
from sft.prepare import Prepared
from sft.run import Run, step_of
from sft.trainer import Trainer


class StopAsked(Exception):
    """The run was asked to stop, and does so here: before its first step, or in the middle of one."""


class Recorder(TrainerCallback):
    """Writes what happens to the run folder, and carries a stop request to the trainer.

    A resumed run's steps, tokens and seconds go on from those up to its checkpoint, so that its curves do too.
    """

    def __init__(self, run: Run, max_steps: int):
        self.run = run
        self.max_steps = max_steps
        self.resumed_from = self.step = step_of(run.checkpoint)
        self.main = os.environ.get("RANK", "0") == "0"
        self.alone = os.environ.get("WORLD_SIZE", "1") == "1"
        self.trainer = None
        earlier = [event for event in run.events("log") if event["step"] <= self.step]
        self.tokens_before = earlier[-1]["tokens"] if earlier else 0
        self.seconds_before = earlier[-1]["seconds"] if earlier else 0.0
        self.began = time.time()

    def state(self, state: str, message: str = "") -> None:
        if self.main:
            self.run.set_status(state, step=self.step, max_steps=self.max_steps, message=message)

    def event(self, kind: str, **values) -> None:
        if self.main:
            self.run.append_event(kind, **{"step": self.step, **values})

    def warn(self, message: str) -> None:
        if not self.main:
            return
        print(f"warning: {message}", flush=True)
        if message not in [event["message"] for event in self.run.events("warning")]:  # a resumed run warns again
            self.event("warning", message=message)

    def preparing(self, share: float, said: str) -> None:
        """Shows how much, 0 to 1, of the work before training is done."""
        self.state("preparing", f"{said} {share:.0%}" if share else said)
        self.check_stop()

    def refuse_other_rows(self, rows: Prepared) -> None:
        """Raises RunError where a resumed run would go on with other rows than it began with."""
        begun = [event["data"] for event in self.run.events("start") if event.get("data")]
        if self.resumed_from and begun and begun[0] != rows.fingerprint:
            raise RunError(
                "The data set has changed since the run began, so it cannot go on as it would have.",
                "Put the rows back as they were, or start a new run.",
            )

    def refuse_other_base(self, base: str) -> None:
        """Raises RunError where a resumed run would go on beside other weights than its adapter began with."""
        begun = [event["base"] for event in self.run.events("start") if event.get("base")]
        if self.resumed_from and begun and begun[0] != base:
            raise RunError(
                "The base model has changed since the run began: what was learned beside its old weights means nothing "
                "beside the new ones.",
                "Put the old weights back, or start a new run.",
            )

    def check_stop(self) -> None:
        """Raises StopAsked. Several processes stop only where all of them can: see `agree`."""
        if self.alone and self.run.stop_asked:
            raise StopAsked

    def agree(self, decision: bool) -> bool:
        """The main process's decision, in all processes. All must call it at the same place."""
        if self.alone:
            return decision
        shared = torch.tensor([int(decision)], device=self.trainer.accelerator.device)
        torch.distributed.broadcast(shared, src=0)
        return bool(shared.item())

    @property
    def seconds(self) -> float:
        """How long the run has trained, before it was interrupted too."""
        return self.seconds_before + time.time() - self.began

    def start(self, trainer: Trainer, prepared: Prepared, base: str) -> None:
        rows, held_out = len(prepared.train), len(prepared.held_out or ())
        self.trainer = trainer
        parameters = [(parameter.numel(), parameter.requires_grad) for parameter in trainer.model.parameters()]
        trainable, total = sum(size for size, trained in parameters if trained), sum(size for size, _ in parameters)
        self.event(
            "start",
            resumed_from=self.resumed_from,
            max_steps=self.max_steps,
            rows=rows,
            held_out_rows=held_out,
            data=prepared.fingerprint,
            base=base,
            trainable_parameters=trainable,
            total_parameters=total,
            device=str(trainer.accelerator.device),
        )
        if self.main:
            print(
                f"{rows} rows, {held_out} held out; training {trainable:,} of {total:,} parameters "
                f"({trainable / total:.2%}) on {trainer.accelerator.device}",
                flush=True,
            )
        self.began = time.time()
        self.state("training")
        if self.agree(self.run.stop_asked):
            raise StopAsked

    def on_train_begin(self, args, state, control, **kwargs):
        """Measures what a stop has left out at the step from which the run resumes."""
        due = args.eval_strategy == "steps" and self.step and self.step % args.eval_steps == 0
        if due and self.agree(self.step not in [event["step"] for event in self.run.events("eval")]):
            self.trainer.evaluate()

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.step = state.global_step
        if "loss" in logs:
            self._log(logs)
        elif "eval_loss" in logs:
            self._eval(logs)
        else:
            return
        self.state("training")

    def _log(self, logs: dict) -> None:
        if not math.isfinite(float(logs["loss"])):
            raise RunError(
                f"Training diverged: the loss at step {self.step} is {logs['loss']}.", "Lower the learning rate."
            )
        gradient = float(logs.get("grad_norm", 0))
        tokens, seconds = self.tokens_before + self.trainer.tokens_seen, self.seconds
        self.event(
            "log",
            loss=float(logs["loss"]),
            stop_loss=logs.get("stop_loss"),
            learning_rate=float(logs["learning_rate"]),
            grad_norm=gradient if math.isfinite(gradient) else None,
            tokens=tokens,
            seconds=seconds,
            memory=_peak_memory(),
        )
        self._say(f"loss {float(logs['loss']):.4f}  {tokens / seconds:.0f} tokens/s")

    def _eval(self, logs: dict) -> None:
        self.event("eval", loss=float(logs["eval_loss"]), stop_loss=logs.get("eval_stop_loss"), seconds=self.seconds)
        self._say(f"held-out loss {float(logs['eval_loss']):.4f}")

    def _say(self, figures: str) -> None:
        if self.main:
            print(f"step {self.step}/{self.max_steps}  {figures}", flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        self.step = state.global_step
        # After the last step the run is finished, asked to stop or not.
        if self.agree(self.run.stop_asked) and self.step < self.max_steps:
            control.should_training_stop = True
            control.should_evaluate = False  # it is caught up when the run resumes
        elif control.should_evaluate:
            self.state("training", "Measuring the held-out loss.")

    def end(self, state: str, message: str = "") -> None:
        self.event("end", state=state, message=message, seconds=self.seconds)
        self.state(state, message)
        if self.main and state in ("finished", "stopped"):
            where = f"the result is in {self.run.result}" if self.run.has_result else "there is no result"
            print(f"{state} after {self.step} steps; {where}", flush=True)


def _peak_memory() -> int:
    """The most bytes that this process has held: of the GPU's memory where it trains on one, else of the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

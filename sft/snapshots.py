"""Snapshots: the adapter as it was at some steps of the way, so that one can chat with the model as it was then."""

import errno
import shutil
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from transformers import TrainerCallback

from sft import failures
from sft.recorder import Recorder


class Snapshots(TrainerCallback):
    """Keeps so many adapters of a run, evenly over its steps; the last step's is the run's result.

    Each is written beside the run's other files and put in place by one rename. Only the main process writes.
    """

    def __init__(self, recorder: Recorder, count: int):
        self.recorder = recorder
        self.run = recorder.run
        self.steps = due_steps(count, recorder.max_steps)
        self.writing = self.run.folder / "snapshot.writing"  # tidied with whatever else is half-written

    def on_train_begin(self, args, state, control, **kwargs):
        """A resumed run takes those anew that came after the step from which it goes on."""
        for step in self.run.snapshots:
            if step > self.recorder.resumed_from:
                self.run.snapshot(step).rename(self.writing)
                shutil.rmtree(self.writing)

    def on_step_begin(self, args, state, control, model, **kwargs):
        # Here and not at the step's end: by now it has not diverged. One that a stop left out is made up for.
        step = state.global_step
        if step in self.steps and step not in self.run.snapshots:
            self._keep(step, model)

    def _keep(self, step: int, model: PeftModel) -> None:
        """Where it cannot be written, or would take the room that the run's result needs, a warning."""
        try:
            model.save_pretrained(self.writing)
            if shutil.disk_usage(self.writing).free < _size(self.writing):
                raise OSError(errno.ENOSPC, "No room would be left for the result")
            kept = self.run.snapshot(step)
            kept.parent.mkdir(exist_ok=True)
            self.writing.rename(kept)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not failures.disk_full(error):
                raise
            shutil.rmtree(self.writing, ignore_errors=True)  # before a word is written, for which there is no room yet
            self.recorder.warn(f"The disk is full: the snapshot of step {step} is not written ({error}).")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def due_steps(count: int, max_steps: int) -> set[int]:
    """So many steps, or as many as there are, that part the way to the last one evenly."""
    return {round(max_steps * part / (count + 1)) for part in range(1, count + 1)} - {0, max_steps}

"""Measures a training: `python -m sft.measure CONFIG.json RESULT.json`, a program that calibration.py starts.

The real trainer takes a few steps on made-up rows of several shapes. What a token, a label and so on cost follows from
how long the steps took.
"""

import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import torch
import transformers
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback

from sft import models
from sft.batches import PaddedCollator
from sft.calibration import Calibration, work_in
from sft.chat_format import IGNORED
from sft.config import TrainConfig
from sft.greedy import answering, greedy
from sft.prepare import Prepared
from sft.train import build_trainer, load_model
from sft.trainer import TOKENS_AT_ONCE
from sft.training_format import training_format

# Micro-batches as rows, their length, and how many of its tokens have a label.
SMALL, USUAL, LABELLED, LONG = (2, 32, 8), (8, 40, 10), (8, 40, 39), (1, 320, 80)
STEPS = [[SMALL], [USUAL], [LABELLED], [LONG], [SMALL, SMALL]]
WARM_UP, ROUNDS = [[SMALL], [SMALL], [USUAL]], 2


def measure(config: TrainConfig) -> Calibration:
    """Takes the steps and looks what they cost."""
    folder = models.locate(config.model)
    chat_format = training_format(config, folder, warn=print)
    steps = [*WARM_UP, *STEPS * ROUNDS]
    config = replace(config, max_steps=len(steps), gradient_accumulation_steps=1, warmup_steps=0, report_to="none")
    with tempfile.TemporaryDirectory() as scratch, Watch() as watch:
        rows = Dataset.from_list(_rows(*LONG, vocabulary=10))
        trainer = build_trainer(
            config, load_model(config, folder), chat_format, Prepared(rows, None, ""), Path(scratch)
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(watch)
        batches = [_batch(trainer, shapes) for shapes in steps]
        trainer.get_train_dataloader = lambda: DataLoader(batches, batch_size=None)
        load_peak, loaded = watch.peak(), time.time() - psutil.Process().create_time()
        trainer.train()
        work = np.array(list(map(work_in, batches)))
        costs = _costs(work, watch.seconds)
        predicted = work @ costs
        return Calibration(
            work=costs,
            forward=_forward(trainer, costs),
            start_up=loaded + max(0.0, watch.seconds[0] - predicted[0]),
            reply_token=_reply_token(trainer.model),
            checkpoint=_timed(lambda: transformers.Trainer._save_checkpoint(trainer, trainer.model, trial=None)),
            saving=_timed(lambda: trainer.model.save_pretrained(Path(scratch) / "saved")),
            **_memory(work[:, 2], watch.peaks),
            load_peak=load_peak,
            padded=isinstance(trainer.data_collator, PaddedCollator),
            waited=_waited(),
        )


def _memory(tokens: np.ndarray, peaks: list[int]) -> dict[str, float]:
    """A line through the peaks of the second small step, when the optimizer holds its state, and of the larger ones."""
    rise = (max(peaks[2:]) - peaks[1]) / float(tokens.max() - tokens[1])
    return {"token_bytes": rise, "settled": int(peaks[1] - rise * tokens[1])}


def _costs(work: np.ndarray, seconds: list[float]) -> list[float]:
    """The costs that fit each kind of step best; none is negative. Of its times the shortest is the least disturbed."""
    warm, kinds = len(WARM_UP), len(STEPS)
    times = np.array(seconds[warm:]).reshape(ROUNDS, kinds).min(axis=0)
    amounts, left = work[warm : warm + kinds].astype(float), list(range(work.shape[1]))
    while True:
        # Each step counts by its share of its own time, so that the short ones are fitted too.
        found = np.linalg.lstsq(amounts[:, left] / times[:, None], np.ones(kinds), rcond=None)[0]
        if (found >= 0).all():
            return [float(found[left.index(at)]) if at in left else 0.0 for at in range(work.shape[1])]
        del left[int(found.argmin())]


def _rows(rows: int, length: int, labelled: int, vocabulary: int) -> list[dict]:
    ids = np.random.default_rng(0).integers(0, vocabulary, (rows, length)).tolist()
    return [{"input_ids": row, "labels": [IGNORED] * (length - labelled) + row[-labelled:]} for row in ids]


def _sized(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape with as many more rows as a GPU takes more at once."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return shape[0] * TOKENS_AT_ONCE[device] // TOKENS_AT_ONCE["cpu"], *shape[1:]


def _batch(trainer, shapes: list[tuple[int, int, int]]) -> dict:
    """One batch of a micro-batch for each shape."""
    made = [trainer.data_collator(_rows(*shape, trainer.model.config.vocab_size)) for shape in map(_sized, shapes)]
    labels = torch.cat([batch["labels"] for batch in made], dim=1)
    return {
        "parts": [part for batch in made for part in batch["parts"]],
        "labels": labels,
        "shift_labels": labels,
        "num_tokens": sum(batch["num_tokens"] for batch in made),
    }


def _forward(trainer, costs: list[float]) -> float:
    """Seconds to measure the loss on a batch, over those that a step takes with it."""
    rows = _rows(*USUAL, trainer.model.config.vocab_size)
    held_out = Dataset.from_list(rows)
    trainer.evaluate(held_out)
    return _timed(lambda: trainer.evaluate(held_out)) / float(work_in(trainer.data_collator(rows)) @ np.array(costs))


def _reply_token(model) -> float:
    with answering(model):
        greedy(model, [1, 2, 3], [], [], 2)
        return _timed(lambda: greedy(model, [1, 2, 3], [], [], 8)) / 8


def _waited() -> float:
    """The share of the time in which threads of this process could have computed that they waited for a core instead.

    0 where the system does not tell. Shares of a machine that others see too say nothing here: this is our own time.
    """
    told = [path.read_text().split() for path in Path("/proc/self/task").glob("*/schedstat")]
    computed, waited = (sum(int(each[at]) for each in told) for at in (0, 1))
    return waited / (computed + waited) if told else 0.0


def _timed(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


class Watch(TrainerCallback):
    """Seconds of each step and the peak of memory in it.

    A CPU has no counter of peak memory that can be set back, so a thread looks every few milliseconds.
    """

    def __init__(self):
        self.seconds, self.peaks = [], []
        self.began, self.most = 0.0, 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        if not torch.cuda.is_available():
            self.thread.start()
        return self

    def __exit__(self, *problem) -> None:
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()

    def _look(self) -> None:
        while not self.ended.wait(0.005):
            self.most = max(self.most, psutil.Process().memory_info().rss)

    def peak(self) -> int:
        """The most that was held since the last call."""
        if torch.cuda.is_available():
            most = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            return most
        most, self.most = self.most, 0
        return most

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.seconds.append(now - self.began)
        self.began = now
        self.peaks.append(self.peak())


if __name__ == "__main__":
    found = measure(TrainConfig(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
    Path(sys.argv[2]).write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")

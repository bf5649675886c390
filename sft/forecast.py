"""How long a run will take and how much memory it will need, told before it starts.

From the real rows, in the order and in the micro-batches that the run will see, and from what a token costs on this
machine (calibration.py). For one process; several share the work.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader

from sft import memory, models
from sft.batches import FlatCollator, PaddedCollator
from sft.calibration import Calibration, calibration, known
from sft.checkpoints import SECONDS_BETWEEN, TIME_SHARE
from sft.config import TrainConfig
from sft.prepare import Prepared, prepare
from sft.samples import FRAMES, SHARE, questions
from sft.train import EVAL_BATCH
from sft.trainer import TOKENS_AT_ONCE
from sft.training_format import training_format

LOOKED_AT = 300  # steps, from all over the run: their mean is close enough to that of all

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Forecast:
    """`seconds` are from the command to its end, and `parts` say what of them goes where. `memory_bytes` is the peak;
    `lora_bytes` and `full_bytes` are that of either kind of training, estimated for the kind that the run is not.
    `disturbed`: other programs worked while the machine was measured, so alone the run will be quicker."""

    seconds: float
    parts: dict[str, float]
    memory_bytes: int
    free_bytes: int
    finetuning_type: str
    lora_bytes: int
    full_bytes: int
    disturbed: bool


def forecast(config: TrainConfig, report: Report = lambda stage, share: None) -> Forecast:
    """Prepares the rows, which the run then finds prepared, and measures the machine unless that was done before.

    Raises what the run itself would raise, also ConfigError where it would not fit into memory.
    """
    folder = models.locate(config.model, report)
    chat_format = training_format(config, folder, warn=lambda message: None)
    prepared = prepare(config, chat_format, lambda message: None, lambda share, said: report(said, share))
    memory.check_fits(config, folder, memory.longest(prepared))
    costs = calibration(config, folder, report)
    collate = _collator(costs)
    steps = [[collate(rows) for rows in batches] for batches in _steps(config, prepared)]
    largest = max(part["input_ids"].numel() for step in steps for batch in step for part in batch["parts"])
    need = {kind: _need(replace(config, finetuning_type=kind), folder, largest) for kind in ("lora", "full")}
    need[config.finetuning_type] = costs.memory(largest)
    memory.check_fits(config, folder, largest, need[config.finetuning_type])
    parts = _parts(config, prepared, costs, steps, questions(prepared.examples, chat_format, config))
    return Forecast(
        seconds=sum(parts.values()),
        parts=parts,
        memory_bytes=need[config.finetuning_type],
        free_bytes=memory.available(),
        finetuning_type=config.finetuning_type,
        lora_bytes=need["lora"],
        full_bytes=need["full"],
        disturbed=costs.disturbed,
    )


def _parts(config: TrainConfig, prepared: Prepared, costs: Calibration, steps: list, asked: list) -> dict[str, float]:
    """Seconds of each part of the run."""
    training = config.max_steps * sum(map(costs.step_seconds, steps)) / len(steps)
    held_out = _held_out(config, prepared, costs)
    return {
        "start": costs.start_up,
        "training": training,
        "held-out": held_out,
        "samples": _samples(asked, costs, training + held_out),
        "checkpoints": _checkpoints(costs, training + held_out),
        "saving": costs.saving,
    }


def _collator(costs: Calibration) -> FlatCollator | PaddedCollator:
    """The one that the trainer will choose for this model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return PaddedCollator() if costs.padded else FlatCollator(TOKENS_AT_ONCE[device])


def _steps(config: TrainConfig, prepared: Prepared) -> Iterator[list[list[dict]]]:
    """The batches of rows of each step, or of every so manieth in a long run."""
    size, together = config.per_device_train_batch_size, config.gradient_accumulation_steps
    epoch = -(-len(prepared.train) // size)  # batches
    in_epoch = -(-epoch // together)  # steps
    every = max(1, config.max_steps // LOOKED_AT)
    orders: dict[int, list[int]] = {}
    for step in range(0, config.max_steps, every):
        turn, place = divmod(step, in_epoch)
        if turn not in orders:
            orders = {turn: order(len(prepared.train), config.seed, turn)}
        batches = range(place * together, min((place + 1) * together, epoch))
        yield [[prepared.train[at] for at in orders[turn][number * size :][:size]] for number in batches]


def order(rows: int, seed: int, epoch: int) -> list[int]:
    """In which order the trainer takes the rows in an epoch, counted from 0."""
    sampler = SeedableRandomSampler(range(rows), data_seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def _held_out(config: TrainConfig, prepared: Prepared, costs: Calibration) -> float:
    if not prepared.held_out or config.eval_strategy == "no":
        return 0.0
    batches = DataLoader(prepared.held_out, batch_size=EVAL_BATCH, collate_fn=_collator(costs))
    measurements = -(-config.max_steps // config.eval_steps)  # one is at the end in any case
    return measurements * sum(map(costs.forward_seconds, batches))


def _samples(asked: list, costs: Calibration, rest: float) -> float:
    """The first and the last are always taken; those between take what the schedule of samples.py allows."""
    first = sum(costs.reply_seconds(len(question.prompt), question.room) for question in asked)
    return min(max(1.5 * first, 0.9 * SHARE * rest), FRAMES / 2 * first)


def _checkpoints(costs: Calibration, rest: float) -> float:
    pause = max(SECONDS_BETWEEN, costs.checkpoint / TIME_SHARE)
    return rest // pause * costs.checkpoint


def _need(config: TrainConfig, folder: Path, tokens: int) -> int:
    """Measured where that was done for this kind of training, else estimated."""
    costs = known(config, folder)
    return costs.memory(tokens) if costs else memory.estimate(config, folder, tokens)

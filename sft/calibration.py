"""How fast this machine trains and how much memory that takes, kept for each model, machine and kind of training.

The measuring is done by measure.py, in a process of its own: peak memory belongs to a process, and what it held must be
gone afterwards.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from sft.chat_format import IGNORED
from sft.config import TrainConfig
from sft.embedded import cache_dir
from sft.errors import ModelError
from sft.failures import no_memory

# What of a config changes how fast it trains and what that takes, apart from the rows.
SETTINGS = ("finetuning_type", "lora_r", "target_modules", "trainable_token_indices")
CODE = (  # of it too
    "trainer.py", "batches.py", "attention.py", "layers.py", "greedy.py", "measure.py", "calibration.py",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "trl", "peft")
SECONDS = 40  # on two slow cores; for the progress shown only
DISTURBED = 0.15  # share of the time spent waiting for a core from which other programs have slowed a measurement


@dataclass(frozen=True)
class Calibration:
    """What one of each costs, in seconds and bytes.

    `work` are the costs of what `work_in` counts. Without a gradient it takes `forward` of that. `start_up` is from the
    start of the process to the first step. `reply_token` is for one token of a reply. Memory rises from `settled` by
    `token_bytes` for each token of the largest micro-batch; loading alone took `load_peak`. `padded`: the model's
    batches are padded, see trainer.py. While it was measured, `waited` is the share of the time in which it could have
    computed, and other programs did.
    """

    work: list[float]
    forward: float
    start_up: float
    reply_token: float
    checkpoint: float
    saving: float
    settled: int
    token_bytes: float
    load_peak: int
    padded: bool
    waited: float

    @property
    def disturbed(self) -> bool:
        """Whether other programs made the machine look slower than it is."""
        return self.waited > DISTURBED

    def step_seconds(self, batches: list[dict]) -> float:
        """One step that learns from these batches."""
        return self.work[0] + sum(map(self._batch_seconds, batches))

    def forward_seconds(self, batch: dict) -> float:
        return self.forward * self._batch_seconds(batch)

    def reply_seconds(self, prompt: int, tokens: int) -> float:
        """A reply of so many tokens to a prompt of so many."""
        return self.forward * (self.work[1] + self.work[2] * prompt) + self.reply_token * tokens

    def _batch_seconds(self, batch: dict) -> float:
        return sum(cost * amount for cost, amount in zip(self.work[1:], work_in(batch)[1:], strict=True))

    def memory(self, tokens: int) -> int:
        """Peak bytes with `tokens` in the largest micro-batch."""
        return int(max(self.load_peak, self.settled + self.token_bytes * tokens))


def work_in(batch: dict) -> list[int]:
    """What takes time in a batch of a collator: the step, its micro-batches, their tokens, those with a label, and the
    pairs of places that attention looks at."""
    parts = batch["parts"]
    tables = [part.get("rows", part["input_ids"]) for part in parts]
    return [
        1,
        len(parts),
        sum(part["input_ids"].numel() for part in parts),
        int((batch["labels"] != IGNORED).sum()),
        sum(len(table) * table.shape[1] ** 2 for table in tables),
    ]


def calibration(config: TrainConfig, folder: Path, report: Callable[[str, float], None]) -> Calibration:
    """What was measured for this kind of training, measured now if need be. Raises ModelError where that fails.

    A measurement that was disturbed is not kept: the next forecast measures anew.
    """
    return known(config, folder) or _measure(config, _place(config, folder), report)


def known(config: TrainConfig, folder: Path) -> Calibration | None:
    """What was measured before, if it was."""
    place = _place(config, folder)
    return _read(place) if place.is_file() else None


def _read(place: Path) -> Calibration:
    return Calibration(**json.loads(place.read_text(encoding="utf-8")))


def _measure(config: TrainConfig, place: Path, report: Callable[[str, float], None]) -> Calibration:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="measuring-") as scratch:
        request, result, log = (Path(scratch) / name for name in ("config.json", "result.json", "log.txt"))
        request.write_text(json.dumps(asdict(config)), encoding="utf-8")
        command = [sys.executable, "-m", "sft.measure", str(request), str(result)]
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=_environment())
            began = time.monotonic()
            try:
                while process.poll() is None:
                    share = min((time.monotonic() - began) / SECONDS, 0.99)
                    report("Measuring how fast this machine trains the model (once)", share)
                    time.sleep(0.2)
            finally:
                process.kill()
        if process.returncode:
            failure = RuntimeError(f"The measuring of {config.model} failed:\n{log.read_text()}")
            if process.returncode > 0 and not no_memory(failure):
                raise failure
            ended = (
                "ran out of memory" if process.returncode > 0 else "was killed, as one that takes too much memory is"
            )
            raise ModelError(
                f"Training {config.model} could not be tried out: its process {ended}.",
                "Take a smaller model, or end programs that hold memory.",
            )
        measured = _read(result)
        if not measured.disturbed:
            result.replace(place)
        return measured


def _environment() -> dict[str, str]:
    package = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}


def _place(config: TrainConfig, folder: Path) -> Path:
    settings = [getattr(config, name) for name in SETTINGS] + [config.lora_dropout > 0]
    model = [(folder / "config.json").read_text(encoding="utf-8"), folder.name]
    model += [path.stat().st_size for path in sorted(folder.glob("*.safetensors"))]
    code = [hashlib.sha256((Path(__file__).parent / name).read_bytes()).hexdigest() for name in CODE]
    parts = [settings, model, _machine(), code, [version(package) for package in PACKAGES]]
    return cache_dir() / "calibration" / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.json"


def _machine() -> list:
    """Processor, cores, threads and GPUs."""
    about = Path("/proc/cpuinfo")
    names = [line for line in about.read_text().splitlines() if "model name" in line] if about.is_file() else []
    chosen = [os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")]
    told = [path.read_text().splitlines() for path in Path("/proc/driver/nvidia/gpus").glob("*/information")]
    gpus = sorted(line for lines in told for line in lines if line.startswith("Model:"))
    return [platform.machine(), platform.processor(), names, os.cpu_count(), *chosen, gpus]

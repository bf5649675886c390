"""What a run needs of the machine's memory and what is free: known before anything large is loaded.

The need is estimated from the headers of the model's files and from its config. What was measured on this machine
(calibration.py) is closer, and is used where it is there.
"""

import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from sft.config import TrainConfig
from sft.errors import ConfigError, ModelError
from sft.models import precision
from sft.prepare import Prepared
from sft.run import gigabytes

LIBRARIES = 700e6  # bytes of a process that has imported all that training needs
GRADIENT, ADAM = 4, 8  # bytes for each trained number
SHORT = 256  # tokens of a row that is short, and still a conversation
CGROUPS = (  # limit, use, and what of the use is only a cache of files: of version 2 and of version 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model, by its name. Only the files' headers are read."""
    from safetensors import SafetensorError, safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ModelError(f"{path} cannot be read: {error}", "Download the model again.") from None
    return found


def longest(prepared: Prepared) -> int:
    """The tokens of the longest row to train on or to measure: no micro-batch can be smaller than it."""
    return max(len(row["input_ids"]) for row in prepared.sample())


def estimate(config: TrainConfig, folder: Path, tokens: int) -> int:
    """Bytes that training takes at its peak, roughly: weights, gradients, Adam's two moments, and the activations of
    `tokens` in one micro-batch."""
    known = shapes(folder)
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    about = about.get("text_config") or about  # of a model that sees too
    linear = {name: shape for name, shape in known.items() if _is_linear(shape, about.get("vocab_size"))}
    total = sum(map(math.prod, known.values()))
    full = config.finetuning_type == "full"
    trained = total if full else sum(config.lora_r * sum(shape) for name, shape in linear.items() if _hit(name, config))
    stored = 4 if full else precision().itemsize
    kept = sum(shape[0] for shape in linear.values())  # what each linear layer gives, for each token
    # Trained weights keep a layer from going the short way of layers.py, which keeps about a third.
    activations = precision().itemsize * tokens * kept * (3 if full or config.lora_dropout else 1)
    at_once = 3 * tokens if full or config.trainable_token_indices else min(2 * tokens, 256)
    logits = 4 * about.get("vocab_size", 0) * at_once
    adapter = 0 if full else 4 * trained
    libraries = 0 if torch.cuda.is_available() else LIBRARIES
    return int(libraries + stored * total + adapter + (GRADIENT + ADAM) * trained + activations + logits)


def _is_linear(shape: tuple[int, ...], vocabulary: int | None) -> bool:
    return len(shape) == 2 and vocabulary not in shape  # else it is an embedding or the head


def _hit(name: str, config: TrainConfig) -> bool:
    targets = config.targets()
    return targets == "all-linear" or any(name.removesuffix(".weight").endswith(target) for target in targets)


def available() -> int:
    """Bytes that this process may come to hold: on the GPU where there is one, else in memory."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    free = [psutil.virtual_memory().available]
    for limit, use, cached in CGROUPS:
        root = Path("/sys/fs/cgroup")
        with suppress(OSError, ValueError):  # no such group, or "max": no limit
            held = int((root / use).read_text())
            stat = dict(line.split() for line in (root / use).with_name("memory.stat").read_text().splitlines())
            free.append(int((root / limit).read_text()) - held + int(stat.get(cached, 0)))
    return min(free) + psutil.Process().memory_info().rss


def check_fits(config: TrainConfig, folder: Path, tokens: int, measured: int | None = None) -> None:
    """Raises ConfigError where a run with `tokens` in a micro-batch needs more than is free. What was `measured` is
    believed before the estimate."""
    need, free = measured or estimate(config, folder, tokens), available()
    if need <= free:
        return
    what = "all weights" if config.finetuning_type == "full" else "a LoRA adapter"
    raise ConfigError(
        f"Training {what} of {config.model} takes about {gigabytes(need)} of memory, and {gigabytes(free)} are free.",
        _smaller(config, folder, tokens, free),
    )


def _smaller(config: TrainConfig, folder: Path, tokens: int, free: int) -> str:
    """The smallest change of the config with which it fits."""
    lora = replace(config, finetuning_type="lora")
    changes = [(lora, tokens, "Set finetuning_type to lora")] if config != lora else []
    if tokens > SHORT:
        changes.append((config, SHORT, f"Set max_length to {SHORT} and per_device_train_batch_size to 1"))
        changes.append((lora, SHORT, f"Set finetuning_type to lora, max_length to {SHORT} and the batch size to 1"))
    for changed, fewer, words in changes:
        if (need := estimate(changed, folder, fewer)) <= free:
            return f"{words}: that takes about {gigabytes(need)}."
    return "Take a smaller model, or end programs that hold memory."

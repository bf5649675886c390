"""How far training has moved the weights, from the files alone: no model is loaded for it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sft.contest import Contest


@dataclass(frozen=True)
class Change:
    """`norm` is the Frobenius norm of the change of all weights taken together, `matrices` how many may differ."""

    norm: float
    matrices: int


def change(contest: Contest) -> Change:
    """How the weights of the last contestant differ from those of the base model. Trained token rows are left out."""
    tuned = contest.contestants[-1]
    if tuned.run is None:
        return Change(0.0, 0)
    return _of_model(contest.folder, tuned.folder) if tuned.in_full else _of_adapter(tuned.folder)


def _of_adapter(folder: Path) -> Change:
    """An adapter adds s·B·A to a matrix. ‖B·A‖² is the sum of (BᵀB) ∘ (A·Aᵀ), both rank x rank: quick to make."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    squares = []
    for name, weight in tensors.items():
        if ".lora_B." in name:
            a, b = tensors[name.replace(".lora_B.", ".lora_A.")].double(), weight.double()
            squares.append((b.T @ b * (a @ a.T)).sum().item())
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    return Change(scaling * max(sum(squares), 0.0) ** 0.5, len(squares))


def _of_model(base: Path, tuned: Path) -> Change:
    """The differences of all tensors that both have, one at a time: a model may be as large as the memory."""
    before = {name: path for path in base.glob("*.safetensors") for name in _names(path)}
    squares = [
        (_tensor(path, name).double() - _tensor(before[name], name).double()).square().sum().item()
        for path in tuned.glob("*.safetensors")
        for name in _names(path)
        if name in before
    ]
    return Change(sum(squares) ** 0.5, len(squares))


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())


def _tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)

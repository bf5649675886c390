"""LoRA beside a frozen model, token by token: those of one pass may each go through another adapter, or through none.

A linear layer gives y = W x, and for a token that has an adapter B A x more. PEFT's mixed batches do the same by rows;
here tokens stand in one flat sequence, whose parts are told before each pass. The adapters are PEFT's files.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from sft.errors import ModelError

_PREFIX = "base_model.model."  # PEFT's, before every name of the model's own
_PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "modules_to_save": None}
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, SafetensorError)


@dataclass(frozen=True)
class Adapter:
    """Matrices by the name of the layer that they stand beside: A [r, in], and B [out, r] with its scale in it, both
    float32.

    `tokens` holds for an embedding layer, or for the head, which token ids have rows of their own, and these rows.
    """

    matrices: dict[str, tuple[torch.Tensor, torch.Tensor]]
    tokens: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


def load_adapter(folder: Path, model: nn.Module) -> Adapter:
    """The adapter in `folder` for `model`, which `adapt` has changed. Raises ModelError where it does not fit, is more
    than LoRA, or cannot be read."""
    try:
        return _load(folder, model)
    except _DAMAGED as error:
        raise ModelError(
            f"The adapter in {folder} is damaged: it cannot be read ({type(error).__name__}: {error}).",
            "Put its files back, or train again.",
        ) from None


def _load(folder: Path, model: nn.Module) -> Adapter:
    about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    odd = [name for name, plain in _PLAIN.items() if about.get(name, plain) != plain]
    odd += [name for name in ("rank_pattern", "alpha_pattern") if about.get(name)]
    if odd:
        raise _unfit(folder, f"{odd[0]} is {about[odd[0]]!r}, and only plain LoRA can be switched token by token")
    tensors = load_file(folder / "adapter_model.safetensors")
    stored = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if ".base_layer." not in name}
    layers = dict(model.named_modules())
    scale = about["lora_alpha"] / (about["r"] ** 0.5 if about.get("use_rslora") else about["r"])
    matrices = {}
    for name in [name.removesuffix(".lora_A.weight") for name in stored if name.endswith(".lora_A.weight")]:
        a, b = stored.pop(f"{name}.lora_A.weight"), stored.pop(f"{name}.lora_B.weight", None)
        layer = layers.get(name)
        if not isinstance(layer, AdaptedLinear) or b is None or not layer.takes(a, b):
            raise _unfit(
                folder, f"it has matrices for {name}, where the model has no such layer, or one of another size"
            )
        device = layer.weight.device  # but not its type: as in PEFT they stay float32 beside bfloat16
        matrices[name] = a.to(device, torch.float32), b.to(device, torch.float32) * scale
    tokens = _trained_tokens(about.get("trainable_token_indices") or {}, stored, layers)
    _share_with_head(tokens, layers, model)
    if stored:
        raise _unfit(folder, f"it holds {min(stored)}, which is no part of LoRA")
    return Adapter(matrices, tokens)


def _trained_tokens(indices: dict, stored: dict, layers: dict) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Takes the trained rows out of `stored`, where those that layers share stand once."""
    rows = {name: stored.pop(f"{name}.token_adapter.trainable_tokens_delta", None) for name in indices}
    shared = next((own for own in rows.values() if own is not None), None)
    found = {}
    for name, ids in indices.items():
        if not isinstance(layers.get(name), AdaptedLinear | AdaptedEmbedding):
            raise TypeError(f"trained tokens of {name}")
        like = layers[name].weight
        found[name] = torch.tensor(ids, device=like.device), (shared if rows[name] is None else rows[name]).to(like)
    return found


def _share_with_head(tokens: dict, layers: dict, model: nn.Module) -> None:
    """A head that is the embedding's weights has the embedding's trained rows too, named or not."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(layer): name for name, layer in layers.items()}
    if head.weight is embedding.weight and (rows := tokens.get(names[id(embedding)])):
        tokens.setdefault(names[id(head)], rows)


def _unfit(folder: Path, reason: str) -> ModelError:
    return ModelError(
        f"The adapter in {folder} does not fit its base model: {reason}.",
        "The base model may have changed since; train again.",
    )


@dataclass
class Parts:
    """Which tokens of the present pass have which adapter: of the flat sequence, and of those that reach the head."""

    tokens: list[tuple[slice, Adapter]] = field(default_factory=list)
    kept: list[tuple[slice, Adapter]] = field(default_factory=list)


class AdaptedLinear(nn.Module):
    """Stands in for a linear layer of the model. `parts` is told anew before each pass."""

    def __init__(self, name: str, linear: nn.Linear | Conv1D, parts: Parts, is_head: bool):
        super().__init__()
        self.name, self.parts, self.is_head = name, parts, is_head
        self.bias = linear.bias
        self.weight = linear.weight if isinstance(linear, nn.Linear) else nn.Parameter(linear.weight.t(), False)
        self.out_features, self.in_features = self.weight.shape

    def takes(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        """Whether these matrices can stand beside it."""
        return (a.shape[1], b.shape[0]) == (self.in_features, self.out_features) and a.shape[0] == b.shape[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.in_features)
        if flat.device.type == "cpu":  # W x' is twice to five times as quick there as x W' while tokens are few
            y = (self.weight @ flat.t()).t()
            y = y if self.bias is None else y + self.bias
        else:
            y = F.linear(flat, self.weight, self.bias)
        for part, adapter in self.parts.kept if self.is_head else self.parts.tokens:
            if pair := adapter.matrices.get(self.name):
                y[part].add_((flat[part].float() @ pair[0].t()) @ pair[1].t())  # += would copy the part once more
            if rows := adapter.tokens.get(self.name):
                y[part, rows[0]] = flat[part] @ rows[1].t()
        return y.view(*x.shape[:-1], self.out_features)


class AdaptedEmbedding(nn.Module):
    """Stands in for the embedding: tokens that an adapter trained have rows of its own."""

    def __init__(self, name: str, embedding: nn.Embedding, parts: Parts):
        super().__init__()
        self.name, self.parts, self.plain = name, parts, embedding

    @property
    def weight(self) -> torch.Tensor:
        return self.plain.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        flat = ids.reshape(-1)
        found = self.plain(flat)
        for part, adapter in self.parts.tokens:
            if rows := adapter.tokens.get(self.name):
                at, which = (flat[part, None] == rows[0]).nonzero(as_tuple=True)
                found[part][at] = rows[1][which]
        return found.view(*ids.shape, -1)


def adapt(model: nn.Module) -> Parts:
    """Puts the layers above in the places of the model's own. Returns what tells them which token has which adapter."""
    parts, head, embedding = Parts(), model.get_output_embeddings(), model.get_input_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) in (nn.Linear, Conv1D):
            model.set_submodule(name, AdaptedLinear(name, layer, parts, layer is head))
        elif layer is embedding and type(layer) is nn.Embedding:
            model.set_submodule(name, AdaptedEmbedding(name, layer, parts))
    return parts

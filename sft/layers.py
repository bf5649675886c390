"""A decoder layer with LoRA, forward and backward by hand.

Autograd keeps every intermediate of a layer and makes a pass over memory for each small operation. Here a layer keeps
seven tensors and makes the others again when the gradient needs them, which costs no matrix multiplication but LoRA's
smallest. The mathematics is that of Llama, Qwen 2 and Qwen 3 with PEFT's LoRA on frozen weights; layers that hold
anything else (dropout, DoRA, trained base weights) stay as they are.

All is computed in the type of the frozen weights, norms in float32, as the plain layers do under autocast.

Shapes: T tokens, H hidden size; weights [out, in], A [r, in], B [out, r].
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sft.attention import EachRow

LAYERS = {"llama", "qwen2", "qwen3"}


class Lora(NamedTuple):
    """A frozen linear layer and the matrices trained beside it, if any: y = x W' + bias + scale · (x A') B'."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: float


def _linear(x, lora: Lora, a, b):
    y = x @ lora.weight.t() if lora.bias is None else torch.addmm(lora.bias, x, lora.weight.t())
    return y if a is None else y.addmm_(x @ a.t(), b.t(), alpha=lora.scale)


def _linear_backward(dy, x, lora: Lora, a, b, wanted: bool = True):
    """Gradients for x (None where nobody wants it), A and B."""
    dx = dy @ lora.weight if wanted else None
    if a is None:
        return dx, None, None
    dz = (dy @ b).mul_(lora.scale)
    if wanted:
        dx.addmm_(dz, a)
    return dx, dz.t() @ x, dy.t() @ (x @ a.t()).mul_(lora.scale)


def _norm(h, weight, eps):
    """RMSNorm, and what it multiplied each token by, in float32."""
    rate = torch.rsqrt(h.float().pow(2).mean(-1, keepdim=True) + eps)
    return _normed(h, weight, rate), rate


def _normed(h, weight, rate):
    return (h * rate).to(h.dtype).mul_(weight)


def _norm_backward(dy, h, weight, rate):
    dy = (dy * weight).float()
    along = (dy * h).mean(-1, keepdim=True).mul_(rate.pow(3))
    return dy.mul_(rate).addcmul_(h, along, value=-1).to(h.dtype)


class _Projections(torch.autograd.Function):
    """h [T, H] → q, k, v [T, …]: the norm before attention and three linear layers. Keeps h alone."""

    @staticmethod
    def forward(ctx, h, norm, eps, loras, *matrices):
        x, rate = _norm(h, norm, eps)
        ctx.save_for_backward(h, norm, rate, *matrices)
        ctx.loras = loras
        return tuple(_linear(x, lora, *matrices[2 * at : 2 * at + 2]) for at, lora in enumerate(loras))

    @staticmethod
    def backward(ctx, *gradients):
        h, norm, rate, *matrices = ctx.saved_tensors
        x = _normed(h, norm, rate)
        total, trained = None, []
        for at, (lora, dy) in enumerate(zip(ctx.loras, gradients, strict=True)):
            dx, *pair = _linear_backward(dy, x, lora, *matrices[2 * at : 2 * at + 2], ctx.needs_input_grad[0])
            total = dx if total is None else total.add_(dx)
            trained += pair
        dh = None if total is None else _norm_backward(total, h, norm, rate)
        return dh, None, None, None, *trained


class _AfterAttention(torch.autograd.Function):
    """h [T, H] and what attention found [T, …] → the layer's result. Keeps both, h between, gate and up."""

    @staticmethod
    def forward(ctx, h, found, norm, eps, loras, *matrices):
        (out, gate, up, down), pairs = loras, [matrices[at : at + 2] for at in range(0, 8, 2)]
        middle = _linear(found, out, *pairs[0]).add_(h)
        x, rate = _norm(middle, norm, eps)
        g, u = _linear(x, gate, *pairs[1]), _linear(x, up, *pairs[2])
        ctx.save_for_backward(found, middle, norm, rate, g, u, *matrices)
        ctx.loras = loras
        return _linear(F.silu(g).mul_(u), down, *pairs[3]).add_(middle)

    @staticmethod
    def backward(ctx, dy):
        found, middle, norm, rate, g, u, *matrices = ctx.saved_tensors
        (out, gate, up, down), pairs = ctx.loras, [matrices[at : at + 2] for at in range(0, 8, 2)]
        share = torch.sigmoid(g)
        silu = g * share
        dp, *down_pair = _linear_backward(dy, silu * u, down, *pairs[3])
        dg = torch.addcmul(share, silu, 1 - share).mul_(u).mul_(dp)
        du = dp.mul_(silu)
        x = _normed(middle, norm, rate)
        dx, *gate_pair = _linear_backward(dg, x, gate, *pairs[1])
        more, *up_pair = _linear_backward(du, x, up, *pairs[2])
        dh = _norm_backward(dx.add_(more), middle, norm, rate).add_(dy)
        dfound, *out_pair = _linear_backward(dh, found, out, *pairs[0])
        return dh, dfound, None, None, None, *out_pair, *gate_pair, *up_pair, *down_pair


class FastLayer:
    """Stands in for the forward of one decoder layer wherever a flat batch passes through it."""

    def __init__(self, layer: nn.Module):
        attention, mlp = layer.self_attn, layer.mlp
        self.layer, self.plain = layer, layer.forward
        self.into = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.after = [attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        self.loras = [tuple(map(_lora, part)) for part in (self.into, self.after)]

    def __call__(self, hidden_states, position_embeddings=None, rows=None, back=None, **kwargs):
        if rows is None:
            return self.plain(hidden_states, position_embeddings=position_embeddings, **kwargs)
        with torch.autocast(hidden_states.device.type, enabled=False):  # each type is chosen here
            return self._flat(hidden_states[0], position_embeddings, rows, back)[None]

    def _flat(self, h, position_embeddings, rows, back):
        layer, attention = self.layer, self.layer.self_attn
        before, after = layer.input_layernorm, layer.post_attention_layernorm
        states = _Projections.apply(h, before.weight, before.variance_epsilon, self.loras[0], *_matrices(self.into))
        query, key, value = (state.view(len(h), -1, attention.head_dim) for state in states)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key, value = (state.transpose(0, 1)[None] for state in (query, key, value))
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        found = EachRow.apply(query[0], key[0], value[0], rows, back, attention.scaling).reshape(len(h), -1)
        return _AfterAttention.apply(
            h, found, after.weight, after.variance_epsilon, self.loras[1], *_matrices(self.after)
        )


def _lora(linear: nn.Module) -> Lora:
    if isinstance(linear, LoraLinear):
        return Lora(linear.base_layer.weight, linear.base_layer.bias, linear.scaling[linear.active_adapters[0]])
    return Lora(linear.weight, linear.bias, 0.0)


def _matrices(linears: list[nn.Module]):
    for linear in linears:
        if isinstance(linear, LoraLinear):
            name, dtype = linear.active_adapters[0], linear.base_layer.weight.dtype
            yield linear.lora_A[name].weight.to(dtype)
            yield linear.lora_B[name].weight.to(dtype)
        else:
            yield from (None, None)


def speed_up(model: nn.Module) -> int:
    """Lets the decoder layers of a PEFT model go the short way where that is exact. Returns how many do."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config
    if config.model_type not in LAYERS or config.hidden_act != "silu" or config.attention_dropout:
        return 0
    fast = [layer for layer in base.get_decoder().layers if _is_plain(layer)]
    for layer in fast:
        layer.forward = FastLayer(layer)
    return len(fast)


def _is_plain(layer: nn.Module) -> bool:
    """Frozen float weights, and LoRA without anything special, if any."""
    trained = {name for name, parameter in layer.named_parameters() if parameter.requires_grad}
    if any(".lora_A." not in name and ".lora_B." not in name for name in trained):
        return False
    return all(
        len(module.active_adapters) == 1
        and not module.merged
        and not module.lora_variant
        and not module.lora_bias[module.active_adapters[0]]
        and isinstance(module.lora_dropout[module.active_adapters[0]], nn.Identity)
        for module in layer.modules()
        if isinstance(module, LoraLinear)
    )

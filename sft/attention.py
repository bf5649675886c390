"""Attention over a flat sequence of rows: each row is looked at whole, whatever it shares with others.

Registered with transformers under a name of its own, so a model takes it like any other attention. What the rows are
reaches it as arguments of the model's forward: `rows` and `back` in training (see batches.py), `pasts` where rows go on
from what was read before (see passes.py). Without them it is SDPA as always.

In training there is no mask: rows are padded on the right, where a causal attention never looks, so every device can
use its fastest kernel.
"""

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# It plans anew for each shape, and here nearly every micro-batch has one of its own. Flash attention does not.
torch.backends.cuda.enable_cudnn_sdp(False)
# what SDPA calls on a CPU; names that torch does not promise to keep, but its version is pinned
_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
EACH_ROW = "each_row"
EXACT = {"llama", "qwen2", "qwen3"}  # architectures on which tests hold the flat layout against each row alone


def sees_whole_rows(config, longest: int) -> bool:
    """Whether this attention may take the model's place for rows of up to `longest` tokens.

    Convolutions, recurrent layers and windows shorter than a row see something else.
    """
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    replaceable = config._attn_implementation in ("sdpa", EACH_ROW)
    return replaceable and kinds == {"full_attention"} and not (window and window < longest)


def each_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rows: torch.Tensor,
    back: torch.Tensor,
    scale: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """query [heads, L, d], key and value [key heads, L, d] → [L, heads, d]."""
    found = F.scaled_dot_product_attention(
        _Spread.apply(query, rows),
        _Spread.apply(key, rows),
        _Spread.apply(value, rows),
        dropout_p=dropout,
        is_causal=True,
        scale=scale,
        enable_gqa=len(query) != len(key),
    )
    return _gathered(found, back)


def _spread(states, rows):
    """[heads, L, d] → [rows, heads, longest, d]."""
    return states.index_select(1, rows.flatten()).view(len(states), *rows.shape, -1).transpose(0, 1)


def _gathered(found, back):
    """[rows, heads, longest, d] → [L, heads, d]."""
    return found.transpose(1, 2).flatten(0, 1).index_select(0, back)


def _collected(gradient, rows, length):
    """[rows, heads, longest, d] → [heads, L, d]. What many rows share gets the sum of their gradients, which is made in
    float32: in bfloat16 each addition would round."""
    spread = gradient.transpose(0, 1).flatten(1, 2)
    wide = torch.promote_types(gradient.dtype, torch.float32)
    total = spread.new_zeros(len(spread), length, spread.shape[-1], dtype=wide)
    return total.index_add_(1, rows.flatten(), spread.to(wide)).to(gradient.dtype)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, rows):
        ctx.save_for_backward(rows)
        ctx.length = states.shape[1]
        return _spread(states, rows)

    @staticmethod
    def backward(ctx, gradient):
        (rows,) = ctx.saved_tensors
        return _collected(gradient, rows, ctx.length), None


def _for_each_head(query, key, value, rows):
    """All three spread over rows, keys and values once for each head of the query."""
    group = len(query) // len(key)
    return [_spread(query, rows), *(_spread(each, rows).repeat_interleave(group, 1) for each in (key, value))]


class EachRow(torch.autograd.Function):
    """`each_row`, keeping little: what was spread over rows is spread again.

    On a CPU SDPA's kernels are called by name: the gradient needs what attention found, which is kept anyway for what
    comes after it, and autograd would find it a second time.
    """

    @staticmethod
    def forward(ctx, query, key, value, rows, back, scale):
        ctx.scale = scale
        if not query.is_cpu:
            ctx.save_for_backward(query, key, value, rows, back)
            return each_row(query, key, value, rows, back, scale)
        spread = _for_each_head(query, key, value, rows)
        found, sums = _FLASH(*spread, is_causal=True, scale=scale)
        found = _gathered(found, back)
        ctx.save_for_backward(query, key, value, rows, back, found, sums)
        return found

    @staticmethod
    def backward(ctx, gradient):
        query, key, value, rows, back, *known = ctx.saved_tensors
        if not known:
            states = [state.detach().requires_grad_() for state in (query, key, value)]
            with torch.enable_grad():
                found = each_row(*states, rows, back, ctx.scale)
            return *torch.autograd.grad(found, states, gradient), None, None, None
        found, sums = known
        spread = _for_each_head(query, key, value, rows)
        # Where a token stands in several rows, one of them was taken; the others and what fills a row have no gradient.
        wanted = gradient.new_zeros(rows.numel(), *gradient.shape[1:]).index_copy_(0, back, gradient)
        wanted = wanted.view(*rows.shape, *gradient.shape[1:]).transpose(1, 2)
        found = _spread(found.transpose(0, 1), rows)
        dquery, *others = _FLASH_BACKWARD(wanted, *spread, found, sums, 0.0, True, scale=ctx.scale)
        dkey, dvalue = (each.unflatten(1, (len(key), -1)).sum(2) for each in others)  # of the heads that share one
        return *(_collected(each, rows, query.shape[1]) for each in (dquery, dkey, dvalue)), None, None, None


class Past:
    """Keys and values of one row so far, for each layer [key heads, tokens, d]. Room that is full is doubled."""

    def __init__(self):
        self.length = 0
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extend(self, layer: int, *new: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Keys and values of all tokens, those that `new` adds included. `length` is the caller's to move, after the
        last layer: a pass that ends half-way leaves nothing behind."""
        end = self.length + new[0].shape[1]
        held = self._layers.get(layer)
        if held is None or held[0].shape[1] < end:
            grown = tuple(states.new_empty(states.shape[0], max(2 * end, 64), states.shape[2]) for states in new)
            for room, states in zip(grown, held or (), strict=False):
                room[:, : self.length] = states[:, : self.length]
            held = self._layers[layer] = grown
        for room, states in zip(held, new, strict=True):
            room[:, self.length : end] = states
        return tuple(room[:, :end] for room in held)

    def copy(self, length: int) -> "Past":
        """The first `length` tokens of it."""
        copied = Past()
        for layer, held in self._layers.items():
            copied.extend(layer, *(states[:, :length] for states in held))
        copied.length = length
        return copied

    @property
    def bytes(self) -> int:
        return sum(states.nbytes for held in self._layers.values() for states in held)


def each_past(layer: int, query, key, value, pasts: list[tuple[Past, int]], scale: float | None) -> torch.Tensor:
    """The same shapes as `each_row`. `pasts` has for each row what it read before, and its number of new tokens."""
    found, start = [], 0
    for past, count in pasts:
        part = slice(start, start + count)
        keys, values = past.extend(layer, key[:, part], value[:, part])
        found.append(_one_past(query[:, part], keys, values, scale))
        start += count
    return torch.cat(found)


def _one_past(query, keys, values, scale) -> torch.Tensor:
    heads, count, d = query.shape
    total = keys.shape[1]
    if count == 1:  # the heads that share keys are like tokens that see all of them: nothing is repeated, no mask
        alike = query.reshape(1, len(keys), -1, d).contiguous()  # else a slower kernel takes it
        return F.scaled_dot_product_attention(alike, keys[None], values[None], scale=scale).reshape(1, heads, d)
    mask = None
    if total > count:
        mask = torch.ones(count, total, dtype=torch.bool, device=query.device).tril(total - count)
    found = F.scaled_dot_product_attention(
        query.contiguous()[None], keys[None], values[None], attn_mask=mask, is_causal=mask is None, scale=scale,
        enable_gqa=len(query) != len(keys),
    )  # fmt: skip
    return found[0].transpose(0, 1)


def _attention(
    module, query, key, value, attention_mask, dropout=0.0, scaling=None, rows=None, back=None, pasts=None, **kwargs
):
    if pasts is not None:
        return each_past(module.layer_idx, query[0], key[0], value[0], pasts, scaling)[None], None
    if rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return each_row(query[0], key[0], value[0], rows, back, scaling, dropout)[None], None


AttentionInterface.register(EACH_ROW, _attention)
AttentionMaskInterface.register(EACH_ROW, sdpa_mask)

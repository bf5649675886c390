"""Attention over a flat sequence of rows: each row is looked at whole, whatever it shares with others.

Registered with transformers under a name of its own, so a model takes it like any other attention; `rows` and `back`
(see batches.py) reach it as arguments of the model's forward. Without them it is SDPA as always. There is no mask: rows
are padded on the right, where a causal attention never looks, so every device can use its fastest kernel.
"""

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

EACH_ROW = "each_row"


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
    count, longest = rows.shape

    def spread(states):
        return states.index_select(1, rows.flatten()).view(-1, count, longest, states.shape[-1]).transpose(0, 1)

    found = F.scaled_dot_product_attention(
        spread(query),
        spread(key),
        spread(value),
        dropout_p=dropout,
        is_causal=True,
        scale=scale,
        enable_gqa=len(query) != len(key),
    )
    return found.transpose(1, 2).reshape(count * longest, len(query), -1).index_select(0, back)


class EachRow(torch.autograd.Function):
    """The same, keeping nothing but query, key and value: what was spread over rows is spread again."""

    @staticmethod
    def forward(ctx, query, key, value, rows, back, scale):
        ctx.save_for_backward(query, key, value, rows, back)
        ctx.scale = scale
        return each_row(query, key, value, rows, back, scale)

    @staticmethod
    def backward(ctx, gradient):
        *states, rows, back = ctx.saved_tensors
        states = [state.detach().requires_grad_() for state in states]
        with torch.enable_grad():
            found = each_row(*states, rows, back, ctx.scale)
        return *torch.autograd.grad(found, states, gradient), None, None, None


def _attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, rows=None, back=None, **kwargs):
    if rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    return each_row(query[0], key[0], value[0], rows, back, scaling, dropout)[None], None


AttentionInterface.register(EACH_ROW, _attention)
AttentionMaskInterface.register(EACH_ROW, sdpa_mask)

"""One pass over the weights for many rows: each goes on from its own past, through its own adapter or through none.

The tokens of all rows stand in one flat sequence without padding, so a pass reads every weight once whatever the rows'
number, lengths and adapters are, and a row's result depends, but for rounding, on nothing but the row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from itertools import chain

import torch
from transformers import DynamicCache, PreTrainedModel

from sft.attention import EACH_ROW, EXACT, Past, sees_whole_rows
from sft.errors import ModelError
from sft.failures import no_memory
from sft.lora import Adapter, adapt
from sft.models import check_token

FEW = 8  # tokens


@dataclass
class Row:
    """The tokens that were read so far, with which adapter (None: the base model), and what of them is kept."""

    adapter: Adapter | None = None
    token_ids: list[int] = field(default_factory=list)
    past: Past | DynamicCache | None = None

    def copy(self, length: int) -> "Row":
        """The row as it was after its first `length` tokens, to go on another way."""
        return Row(self.adapter, self.token_ids[:length], self.past.copy(length))

    def take_back(self, length: int) -> None:
        """Forgets what was read after the first `length` tokens."""
        del self.token_ids[length:]
        self.past.length = length


class Reader:
    """A base model, and what lets each row of a pass have its own adapter. One pass at a time: see `Weights.lock`."""

    def __init__(self, model: PreTrainedModel):
        config = model.config
        self.model = model
        self.parts = adapt(model)
        # Other architectures read one row at a time, with the cache that transformers has for them.
        self.together = config.model_type in EXACT and sees_whole_rows(config, config.max_position_embeddings)
        if self.together:
            model.set_attn_implementation(EACH_ROW)

    @torch.inference_mode()
    def read(self, rows: list[Row], new: list[list[int]], last: list[int] | None = None) -> list[torch.Tensor]:
        """Reads `new` token ids, one list a row, and gives for each row the logits [last, vocabulary] of the tokens
        after the last so many of them (one, where `last` is not given). A pass that raises leaves rows that are read
        together as they were. Raises ValueError for a row that reads fewer tokens than are looked after, or none, and
        ModelError for a token that the model does not know, and where the memory is too small."""
        last = last or [1] * len(rows)
        if any(count > len(ids) or not ids for ids, count in zip(new, last, strict=True)):
            raise ValueError("every row reads a token at least, and as many as are looked after")
        check_token(self.model, max(chain(*new)))
        try:
            if self.together:
                with _one_thread(self.model.device, sum(map(len, new))):
                    return self._read_together(rows, new, last)
            return [self._read_alone(*each) for each in zip(rows, new, last, strict=True)]
        except (MemoryError, RuntimeError) as error:
            if not no_memory(error):
                raise
            raise ModelError(
                f"Out of memory while the model read {sum(map(len, new)):,} tokens.",
                "Clear the conversation or take a smaller model. Where another program took the memory, try again.",
            ) from None
        finally:
            self.parts.tokens, self.parts.kept = [], []

    def _read_together(self, rows: list[Row], new: list[list[int]], last: list[int]) -> list[torch.Tensor]:
        device = self.model.device
        positions, kept, start = [], [], 0
        for row, ids, count in zip(rows, new, last, strict=True):
            row.past = row.past or Past()
            positions += range(row.past.length, row.past.length + len(ids))
            if row.adapter:
                self.parts.tokens.append((slice(start, start + len(ids)), row.adapter))
                self.parts.kept.append((slice(len(kept), len(kept) + count), row.adapter))
            start += len(ids)
            kept += range(start - count, start)
        logits = self.model(
            input_ids=torch.tensor([list(chain(*new))], device=device),
            position_ids=torch.tensor([positions], device=device),
            # of four dimensions, so that transformers builds none; nobody looks at it
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            pasts=[(row.past, len(ids)) for row, ids in zip(rows, new, strict=True)],
            logits_to_keep=torch.tensor(kept, device=device),
            use_cache=False,
        ).logits[0]
        for row, ids in zip(rows, new, strict=True):
            row.token_ids += ids
            row.past.length += len(ids)
        return list(logits.split(last))

    def _read_alone(self, row: Row, ids: list[int], last: int) -> torch.Tensor:
        self.parts.tokens = self.parts.kept = [(slice(None), row.adapter)] if row.adapter else []
        row.past = row.past or DynamicCache(config=self.model.config)
        batch = torch.tensor([ids], device=self.model.device)
        kept = {"logits_to_keep": last} if "logits_to_keep" in signature(self.model.forward).parameters else {}
        logits = self.model(input_ids=batch, past_key_values=row.past, use_cache=True, **kept).logits[0, -last:]
        row.token_ids += ids
        return logits


@contextmanager
def _one_thread(device: torch.device, tokens: int) -> Iterator[None]:
    """Few tokens are quicker with one thread than with two that sleep while they wait for each other (see `sft`): each
    of the many small products takes less time than waking does."""
    threads = torch.get_num_threads()
    alone = device.type == "cpu" and threads == 2 and tokens <= FEW
    torch.set_num_threads(1 if alone else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

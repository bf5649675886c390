"""TRL's SFTTrainer with batches that hold no token twice and no padding.

A batch is laid out as one sequence: the prefix that all its rows share (a system message, say) once, then the rest
of every row. Position ids continue from the prefix, and the attention mask lets each row see the prefix and itself,
so every token gets exactly the hidden state that it would get alone. The head and the loss run only where there is
a label. The mathematics is SFTTrainer's; only work whose result nobody reads is left out.

Knows nothing about messages, templates or run folders.
"""

from dataclasses import dataclass
from itertools import takewhile

import torch
import torch.nn.functional as F
from trl import SFTTrainer

from sft.chat_format import IGNORED

EXACT = {"llama", "qwen2", "qwen3"}  # architectures on which tests hold the flat layout against each row alone


@dataclass(frozen=True)
class FlatCollator:
    """Rows of `input_ids` and `labels` → one sequence of L tokens.

    Returns `input_ids` and `position_ids` [1, L], `attention_mask` [1, 1, L, L] (True where a token may look),
    `labels` and `shift_labels` [1, L] (the token that each position must predict, or -100) and `num_tokens`, the
    tokens that the rows hold without sharing.
    """

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = [row["input_ids"] for row in rows]
        prefix = shared_prefix(ids, [row["labels"] for row in rows])
        tokens, positions, owners, targets = (
            list(ids[0][:prefix]),
            list(range(prefix)),
            [0] * prefix,
            [IGNORED] * prefix,
        )
        for owner, row in enumerate(rows, start=1):
            rest = row["input_ids"][prefix:]
            tokens += rest
            positions += range(prefix, prefix + len(rest))
            owners += [owner] * len(rest)
            targets += [*row["labels"][prefix + 1 :], IGNORED]
        owner = torch.tensor(owners)
        mask = (owner[None, :] == owner[:, None]) | (owner[None, :] == 0)
        shift_labels = torch.tensor([targets])
        return {
            "input_ids": torch.tensor([tokens]),
            "position_ids": torch.tensor([positions]),
            "attention_mask": mask.tril()[None, None],
            "labels": shift_labels,
            "shift_labels": shift_labels,
            "num_tokens": torch.tensor(sum(map(len, ids))),
        }


def shared_prefix(ids: list[list[int]], labels: list[list[int]]) -> int:
    """How many first tokens all rows share, ending before any of them predicts a label.

    A prefix token that predicted a label would have to predict several, one for each row. At least one token of
    every row stays outside.
    """
    if len(ids) == 1:
        return 0
    limit = min(len(row) for row in ids) - 1
    for row in labels:
        first = next((at for at, label in enumerate(row) if label != IGNORED), len(row))
        limit = min(limit, first - 1)
    columns = zip(*(row[: max(limit, 0)] for row in ids), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


@dataclass(frozen=True)
class PaddedCollator:
    """Rows → a padded batch of B rows and L columns, for models to which the flat layout does not apply.

    Returns `input_ids`, `attention_mask`, `labels` and `shift_labels` [B, L], and `num_tokens` without padding.
    """

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(values: list[list[int]], filler: int) -> torch.Tensor:
            return torch.tensor([value + [filler] * (width - len(value)) for value in values])

        shift_labels = padded([[*row["labels"][1:], IGNORED] for row in rows], IGNORED)
        return {
            "input_ids": padded([row["input_ids"] for row in rows], 0),  # what fills is masked, so any token will do
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": shift_labels,
            "shift_labels": shift_labels,
            "num_tokens": torch.tensor(sum(len(row["input_ids"]) for row in rows)),
        }


def collator_for(model, rows: list[dict]) -> FlatCollator | PaddedCollator:
    """The flat layout where it is exact for this model and these rows, else padding.

    It needs attention that takes a mask of its own (SDPA) and lets every token see its whole row. Convolutions,
    recurrent layers and windows shorter than a row do not. Architectures that were not tried are measured.
    """
    config = model.config
    longest = max(len(row["input_ids"]) for row in rows)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config._attn_implementation != "sdpa" or kinds != {"full_attention"} or (window and window < longest):
        return PaddedCollator()
    if config.model_type in EXACT or _flat_equals_padded(model, rows):
        return FlatCollator()
    return PaddedCollator()


def _flat_equals_padded(model, rows: list[dict]) -> bool:
    sample = sorted(rows, key=lambda row: len(row["input_ids"]))[:2]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            flat, padded = (
                token_losses(model, {name: value.to(model.device) for name, value in collator(sample).items()})
                for collator in (FlatCollator(), PaddedCollator())
            )
    except (ValueError, TypeError, RuntimeError):  # the model takes no such mask, or no logits_to_keep
        return False
    finally:
        model.train(training)
    return torch.allclose(flat, padded, rtol=0.02, atol=0.02)


def token_losses(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of every labelled token in a batch of either layout, float32, in the order of the layout."""
    targets = batch["shift_labels"]
    labelled = targets != IGNORED
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    if "position_ids" in batch:  # flat: one sequence, so the head can be run at the labelled positions alone
        kept = labelled[0].nonzero().flatten()
        logits = model(**inputs, position_ids=batch["position_ids"], logits_to_keep=kept).logits[0]
    else:
        logits = model(**inputs).logits[labelled]
    return F.cross_entropy(logits.float(), targets[labelled], reduction="none")


class Trainer(SFTTrainer):
    """SFTTrainer on ready `input_ids` and `labels`, in the batches of `collator_for`.

    `tokens_seen` counts real tokens trained on by this process.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokens_seen = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        losses = token_losses(model, inputs)
        self.tokens_seen += int(inputs["num_tokens"])
        loss = losses.sum() / (losses.numel() if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the gradients are averaged over processes again
        return (loss, None) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Mean loss per labelled token over the whole held-out part (not the mean of its batches' means)."""
        self.model.eval()
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for batch in self.get_eval_dataloader(eval_dataset):
                losses = token_losses(self.model, self._prepare_inputs(batch))
                total += torch.tensor([losses.sum().item(), losses.numel()], dtype=torch.float64)
        self.model.train()
        total = self.accelerator.reduce(total.to(self.accelerator.device, torch.float32), reduction="sum").tolist()
        metrics = {f"{metric_key_prefix}_loss": total[0] / total[1]}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

"""TRL's SFTTrainer on micro-batches that hold no token twice and no padding.

The mathematics is SFTTrainer's; only work whose result nobody reads is left out: tokens that rows share are computed
once (batches.py), attention looks at rows (attention.py), layers keep little (layers.py), and head and loss run where
there is a label.

Knows nothing about messages, templates or run folders.
"""

import os
from collections.abc import Callable
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from trl import SFTTrainer

from sft.attention import EACH_ROW, EXACT, sees_whole_rows
from sft.batches import FlatCollator, PaddedCollator
from sft.chat_format import IGNORED
from sft.failures import no_memory
from sft.layers import speed_up
from sft.models import precision

TOKENS_AT_ONCE = {"cpu": 640, "cuda": 4096}  # in a micro-batch: enough to keep the device busy, few enough to fit
AFTER_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale")  # settings that change what a head gives
LABELS_AT_ONCE = {"cpu": 128, "cuda": 256}  # through the head: 49,152 logits for each, 4 bytes a piece


def collator_for(model, rows: list[dict]) -> FlatCollator | PaddedCollator:
    """The flat layout where it is exact for this model and these rows, else padding.

    It needs attention that sees its whole row. Architectures that were not tried are measured. The model's attention is
    switched.
    """
    config = model.config
    flat = FlatCollator(TOKENS_AT_ONCE[model.device.type])
    if not sees_whole_rows(config, max(len(row["input_ids"]) for row in rows)):
        return PaddedCollator()
    if config.model_type not in EXACT and not _flat_equals_padded(model, rows, flat):
        return PaddedCollator()
    model.set_attn_implementation(EACH_ROW)
    return flat


def _flat_equals_padded(model, rows: list[dict], flat: FlatCollator) -> bool:
    sample = sorted(rows, key=lambda row: len(row["input_ids"]))[:2]
    training, attention = model.training, model.config._attn_implementation
    model.eval()
    model.set_attn_implementation(EACH_ROW)
    try:
        with torch.no_grad():
            found, wanted = (
                sum(token_losses(model, to_device(part, model.device)).sum() for part in collator(sample)["parts"])
                for collator in (flat, PaddedCollator())
            )
    except (ValueError, TypeError, RuntimeError) as error:  # the model takes no such attention, or no logits_to_keep
        if no_memory(error):
            raise
        return False
    finally:
        model.set_attn_implementation(attention)
        model.train(training)
    return torch.allclose(found, wanted, rtol=0.02)


def to_device(part: dict[str, torch.Tensor], device) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in part.items()}


def token_losses(model, part: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of every labelled token of a micro-batch of either layout, float32, in the order of the layout."""
    targets = part["shift_labels"]
    labelled = targets != IGNORED
    if "rows" not in part:
        logits = model(input_ids=part["input_ids"], attention_mask=part["attention_mask"], use_cache=False).logits
        return F.cross_entropy(logits[labelled].float(), targets[labelled], reduction="none")
    wanted = targets[labelled]
    with _losses_for_logits(_unwrapped(model), wanted) as replaced:
        output = model(
            input_ids=part["input_ids"],
            position_ids=part["position_ids"],
            # of four dimensions, so that transformers builds none; nobody looks at it
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=targets.device),
            rows=part["rows"],
            back=part["back"],
            logits_to_keep=labelled[0].nonzero().flatten(),
            use_cache=False,
        ).logits[0]
    return output if replaced else F.cross_entropy(output.float(), wanted, reduction="none")


def _unwrapped(model) -> nn.Module:
    while not hasattr(model, "get_output_embeddings"):  # DistributedDataParallel
        model = model.module
    return model


@contextmanager
def _losses_for_logits(model, targets: torch.Tensor):
    """Lets a frozen head give losses instead of logits, so that the logits of all labels never stand side by side."""
    head = model.get_output_embeddings()
    changed = any(getattr(model.config, name, None) for name in AFTER_HEAD)
    if changed or type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        yield False
        return
    head.forward = lambda hidden: _TokenLosses.apply(hidden[0], head.weight, targets)[None]
    try:
        yield True
    finally:
        del head.forward


class _TokenLosses(torch.autograd.Function):
    """hidden [N, H], weight [V, H], targets [N] → cross-entropy [N]. Its gradient is made along, a few rows at once."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        at_once = LABELS_AT_ONCE[hidden.device.type]
        for start in range(0, len(hidden), at_once):
            part = slice(start, start + at_once)
            losses[part], found = _token_losses(hidden[part], weight, targets[part, None], gradient is not None)
            if gradient is not None:
                gradient[part] = found
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx, dlosses):
        (gradient,) = ctx.saved_tensors
        return gradient * dlosses[:, None].to(gradient.dtype), None, None


def _token_losses(hidden, weight, targets, with_gradient: bool):
    """Of a few rows; logits live no longer than that."""
    logits = (hidden @ weight.t()).float()
    at_target = logits.gather(1, targets)
    total = logits.logsumexp(1, keepdim=True)
    losses = (total - at_target)[:, 0]
    if not with_gradient:
        return losses, None
    share = logits.sub_(total).exp_()
    share.scatter_add_(1, targets, torch.full_like(at_target, -1))
    return losses, share.to(weight.dtype) @ weight


def device_arguments() -> dict:
    """SFTConfig arguments for this machine: GPU or CPU, and the precision that it computes in."""
    on_gpu = torch.cuda.is_available()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return {
        "use_cpu": not on_gpu,
        "bf16": precision() == torch.bfloat16,
        "ddp_backend": "gloo" if several and not on_gpu else None,
        "dataloader_pin_memory": on_gpu,
        # Micro-batches bound the activations, so recomputing them would cost time and save little.
        "gradient_checkpointing": None,  # the older name, which TRL switches on
        "activation_checkpointing": False,
    }


class Trainer(SFTTrainer):
    """SFTTrainer on ready `input_ids` and `labels`, in the batches of `collator_for`.

    `tokens_seen` counts real tokens trained on until the last log, by all processes. `interrupt` is called between
    micro-batches, and may raise. Losses on `stop_token_ids` are logged apart, as `stop_loss`.
    """

    def __init__(self, *args, stop_token_ids: list[int] = (), interrupt: Callable[[], None] = lambda: None, **kwargs):
        super().__init__(*args, **kwargs)
        self.tokens_seen = 0
        self._new_tokens = 0  # since the last log, by this process
        self.interrupt = interrupt
        self._stops = torch.tensor(list(stop_token_ids))
        self._stop_losses: list[torch.Tensor] = []
        speed_up(self.model)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One batch, a micro-batch at a time; the mean over `num_items_in_batch` labels of all processes."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        count = inputs["shift_labels"].ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        # DistributedDataParallel takes the mean of the processes' gradients, so each counts for all of them.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        total = torch.zeros((), device=self.args.device)
        for number, part in enumerate(inputs["parts"], start=1):
            self.interrupt()
            with self.accelerator.no_sync(model) if number < len(inputs["parts"]) else nullcontext():
                with self.compute_loss_context_manager():
                    losses = token_losses(model, part)
                    loss = losses.sum() * processes / count
                self.accelerator.backward(loss)
            self._note_stops(self._stop_losses, losses, part)
            total += loss.detach()
        self._new_tokens += int(inputs["num_tokens"])
        return total

    def log(self, logs, start_time=None):
        if "loss" in logs:
            total, count, tokens = self._summed(*_sum_and_count(self._stop_losses), self._new_tokens)
            if count:
                logs["stop_loss"] = total / count
            self.tokens_seen += int(tokens)
            self._stop_losses, self._new_tokens = [], 0
        super().log(logs, start_time)

    def _summed(self, *values: float) -> list[float]:
        """Each value added up over all processes, which must all call this."""
        own = torch.tensor(values, dtype=torch.float32, device=self.accelerator.device)
        return self.accelerator.reduce(own, reduction="sum").tolist()

    def _note_stops(self, noted: list, losses, part) -> None:
        targets = part["shift_labels"]
        targets = targets[targets != IGNORED]
        found = losses.detach()[torch.isin(targets, self._stops.to(targets.device))]
        if len(found):
            noted.append(found)

    def _own_share(self, rows) -> DataLoader:
        """Held-out rows of this process. Where they do not share out evenly, accelerate would give some out twice."""
        own = rows.select(range(self.args.process_index, len(rows), self.args.world_size))
        return DataLoader(own, batch_size=self.args.per_device_eval_batch_size, collate_fn=self.data_collator)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Mean loss per labelled token over the whole held-out part (not the mean of its batches' means)."""
        self.model.eval()
        sums, noted = torch.zeros(2, dtype=torch.float64), []
        with torch.no_grad():
            for batch in self._own_share(self.eval_dataset if eval_dataset is None else eval_dataset):
                for part in self._prepare_inputs(batch)["parts"]:
                    self.interrupt()
                    losses = token_losses(self.model, part)
                    sums += torch.tensor([losses.sum().item(), losses.numel()], dtype=torch.float64)
                    self._note_stops(noted, losses, part)
        self.model.train()
        sums = self._summed(*sums.tolist(), *_sum_and_count(noted))
        metrics = {f"{metric_key_prefix}_loss": sums[0] / sums[1]}
        if sums[3]:
            metrics[f"{metric_key_prefix}_stop_loss"] = sums[2] / sums[3]
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _sum_and_count(losses: list[torch.Tensor]) -> tuple[float, int]:
    return sum(found.double().sum().item() for found in losses), sum(map(len, losses))

"""How the next token of a reply is chosen from what the model thinks of each."""

from dataclasses import dataclass

import torch

from sft.errors import ModelError

GREEDY = 1e-5  # a temperature below which dividing by it overflows, and the likeliest token comes anyway


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy: always the most likely token. `max_new_tokens` is the room for a reply, in tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0


class Chooser:
    """Chooses the tokens of one reply, with a source of random numbers of its own.

    So a reply depends on its seed alone, whoever else is answered in the same pass; and it is the one that
    transformers' `generate` samples with this seed and without `top_k`.
    """

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self.random: torch.Generator | None = None

    def __call__(self, logits: torch.Tensor) -> int:
        """logits [vocabulary] → a token id."""
        sampling = self.sampling
        if not logits.max().isfinite():  # it is not where any is NaN; and sampling would end the process on a GPU
            raise ModelError(
                "What the model thinks of the next token is no number: its weights are broken, or they diverged.",
                "Train again with a lower learning rate, or choose another model.",
            )
        if sampling.temperature < GREEDY:
            return int(logits.argmax())
        if self.random is None:
            self.random = torch.Generator(logits.device).manual_seed(sampling.seed)
        scores = logits[None].float() / sampling.temperature
        if sampling.top_p < 1:
            scores = _only_likeliest(scores, sampling.top_p)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self.random))


def _only_likeliest(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Leaves the likeliest tokens whose probabilities sum up to `share`, and always one."""
    ordered, tokens = scores.sort(dim=-1)
    left_out = ordered.softmax(-1).cumsum(-1) <= 1 - share
    left_out[..., -1] = False
    return scores.masked_fill(left_out.scatter(1, tokens, left_out), -torch.inf)

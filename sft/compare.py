"""What tuning changed, measured on one prompt or one reply: base and tuned model read it in one pass.

A contest here is a pair: the base model, and one other.
"""

from dataclasses import dataclass, replace

import torch

from sft.chat import judge, read
from sft.contest import Contest
from sft.token_text import token_text, token_texts
from sft.weight_change import Change, change

SHOWN = 5  # of the likeliest tokens of either side
# In nats. Below it no token's probability differs by more than 0.7 percentage points, since the total variation is at
# most √(KL / 2): nobody would see that in replies. Arithmetic of another order stays far below it.
MEASURABLE = 1e-4


@dataclass(frozen=True)
class Candidate:
    """A next token, and the probability that either model gives it."""

    text: str
    base: float
    tuned: float


@dataclass(frozen=True)
class Proof:
    """What shows that one model is not the other, at the end of a prompt.

    `divergence` is KL(tuned ‖ base) in nats: how much likelier, in the logarithm, the tuned model finds its own next
    token than the base model does, on average. `candidates` are the likeliest tokens of both, the tuned model's first.
    """

    change: Change
    divergence: float
    candidates: list[Candidate]

    @property
    def measurable(self) -> bool:
        return self.divergence >= MEASURABLE


@dataclass(frozen=True)
class Shift:
    """A token of a reply: its log-probability under base and tuned, and what each finds likeliest in its place."""

    text: str
    base: float
    tuned: float
    base_choice: str
    tuned_choice: str
    choices_differ: bool

    @property
    def difference(self) -> float:
        """In nats; positive where the tuned model finds the token likelier."""
        return self.tuned - self.base


def pair(contest: Contest, at: int) -> Contest:
    """The base model and the contestant at `at` alone."""
    return replace(contest, contestants=(contest.contestants[0], contest.contestants[at]))


def proof(contest: Contest, prompt_ids: list[int]) -> Proof:
    """How far apart the two are after this prompt, and how far the weights."""
    base, tuned = (rows[0] for rows in read(contest, [prompt_ids] * 2, 1))
    likeliest = [*tuned.topk(SHOWN).indices.tolist(), *base.topk(SHOWN).indices.tolist()]
    tokenizer = contest.chat_format.tokenizer
    candidates = [
        Candidate(token_text(tokenizer, token), base[token].exp().item(), tuned[token].exp().item())
        for token in dict.fromkeys(likeliest)
    ]
    return Proof(change(contest), divergence(tuned, base), candidates)


def divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> float:
    """KL(p ‖ q) in nats of two [vocabulary] of log-probabilities."""
    log_p, log_q = log_p.double(), log_q.double()
    return (log_p.exp() * (log_p - log_q)).sum().item()


def shifts(contest: Contest, prompt_ids: list[int], reply_ids: list[int]) -> list[Shift]:
    """For each token of a reply to this prompt, whoever wrote it, what either model makes of it."""
    if not reply_ids:
        return []
    tokenizer, (base, tuned) = contest.chat_format.tokenizer, judge(contest, prompt_ids, reply_ids)
    columns = token_texts(tokenizer, reply_ids), *base, *tuned
    return [
        Shift(text, before, after, token_text(tokenizer, one), token_text(tokenizer, other), one != other)
        for text, before, one, after, other in zip(*columns, strict=True)
    ]


def strongest(found: list[Shift], count: int) -> list[int]:
    """The places of the `count` tokens whose probability changed most, the strongest first."""
    return sorted(range(len(found)), key=lambda at: -abs(found[at].difference))[:count]


def choices_part(found: list[Shift]) -> int | None:
    """The first place at which the two would have chosen different tokens, each its likeliest."""
    return next((at for at, shift in enumerate(found) if shift.choices_differ), None)


def parting(first: list[int], second: list[int]) -> int | None:
    """The first index at which two lists of token ids differ, or one of them ends; None where they are equal."""
    if first == second:
        return None
    pairs = zip(first, second, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))

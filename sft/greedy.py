"""The likeliest reply, in few passes over the model: a draft of what may come is read ahead and checked.

For a model in the middle of its training. It says what it would say without a draft, so nothing here is a guess but
the number of passes.
"""

from collections.abc import Callable
from contextlib import contextmanager
from inspect import signature
from itertools import takewhile

import torch
from transformers import DynamicCache

AHEAD = 16  # drafted tokens read at once: on a CPU hardly dearer than four


@contextmanager
def answering(model):
    """Eval mode without gradients, and what was before afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def greedy(
    model,
    prompt: list[int],
    drafts: list[list[int]],
    stops: list[int],
    room: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[int]:
    """The likeliest tokens after `prompt`, at most `room`, the first of `stops` included where one comes.

    `drafts` are guesses at the reply. A guess is read together with the token before it, and kept as far as the model
    would have written the same; so the reply is the one without drafts, in fewer passes.
    """
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()  # so that what was guessed wrong can be taken back
    reply, unread = [], prompt
    while len(reply) < room and not cancelled():
        guess = _guess(drafts, reply)[: room - len(reply) - 1]
        likeliest = _next_tokens(model, cache, unread + guess, len(guess) + 1)
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(guess, likeliest, strict=False)))
        for token in likeliest[: right + 1]:
            reply.append(token)
            if token in stops:
                return reply
        cache.crop(right - len(guess))
        unread = reply[-1:]
    return reply


def _next_tokens(model, cache: DynamicCache, ids: list[int], count: int) -> list[int]:
    """The likeliest token after each of the last `count` of `ids`."""
    base = getattr(model, "get_base_model", lambda: model)()
    kept = {"logits_to_keep": count} if "logits_to_keep" in signature(base.forward).parameters else {}
    batch = torch.tensor([ids], device=model.device)
    logits = model(input_ids=batch, past_key_values=cache, use_cache=True, **kept).logits
    return logits[0, -count:].argmax(-1).tolist()


def _guess(drafts: list[list[int]], reply: list[int]) -> list[int]:
    """What follows in the first draft that holds the reply's last two tokens, nearest to where they stand in it."""
    tail = reply[-2:]
    for draft in drafts:
        ends = [at for at in range(len(tail), len(draft)) if draft[at - len(tail) : at] == tail]
        if ends:
            at = min(ends, key=lambda end: abs(end - len(reply)))
            return draft[at : at + AHEAD]
    return []

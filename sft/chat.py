"""Base and tuned model answering at once: every pass over the weights brings each of them one token further.

Histories come from the caller, and a reply depends on nothing but its own prompt, adapter and seed: visitors share
weights, no words. Between two passes others may have theirs.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from sft import models
from sft.chat_format import ChatFormat
from sft.contest import Contest
from sft.errors import RunError
from sft.passes import Row
from sft.sampling import Chooser, Sampling
from sft.weights import WEIGHTS, Voice

AT_ONCE = 16  # replies that `complete` works on together
JUDGED = 128  # tokens of a reply that are read in a pass: scores of the whole vocabulary after each take much memory


@dataclass
class Reply:
    """A reply so far. `stopped` means that the model itself ended it, with a stop token; `cut` that it ran into
    `max_new_tokens`; `seconds` is what it took from when it was asked."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    stopped: bool = False
    seconds: float = 0.0
    cut: bool = False

    @property
    def ended(self) -> bool:
        return self.stopped or self.cut


def stream(contest: Contest, prompts: list[list[int]], sampling: Sampling) -> Iterator[list[Reply]]:
    """Yields the replies, one a contestant in the order of `contest.contestants`, each time all have a token more.

    `prompts` are token ids, one list a contestant. Closing the iterator ends the replies.
    """
    began = time.perf_counter()
    with WEIGHTS.lock:
        _check_room(contest, prompts, sampling)
        voices = WEIGHTS.load(contest)
        rows = [WEIGHTS.row(*pair) for pair in zip(voices, prompts, strict=True)]
    replies, choosers = [Reply() for _ in prompts], [Chooser(sampling) for _ in prompts]
    unread = [prompt[len(row.token_ids) :] for prompt, row in zip(prompts, rows, strict=True)]
    try:
        while going := [at for at, reply in enumerate(replies) if not reply.ended]:
            these = ([each[at] for at in going] for each in (voices, rows, unread))
            for at, logits in zip(going, _pass(*these), strict=True):
                unread[at] = [choosers[at](logits[-1])]
                _append(replies[at], unread[at], contest.chat_format, sampling.max_new_tokens)
                replies[at].seconds = time.perf_counter() - began
            yield replies
    finally:
        for voice, row in zip(voices, rows, strict=True):
            WEIGHTS.keep(voice, row)


def get_ready(contest: Contest, messages: list[dict]) -> None:
    """Loads what the contest needs and reads what a conversation will begin with: `messages`, such as a system message,
    and what the template adds. So the first reply begins sooner, and others with the same beginning too. What is longer
    than the model can read is left for `stream` to refuse."""
    prompts = [contest.chat_format.prompt_ids([*messages, {"role": "user", "content": text}]) for text in ("a", "b")]
    opening = os.path.commonprefix(prompts)  # noqa: RUF071 (it compares lists)
    room = models.context_length(contest.folder)
    fits = opening and (room is None or len(opening) < room)
    with WEIGHTS.lock:
        for voice in WEIGHTS.load(contest):
            if fits and voice.reader.together and not WEIGHTS.has_read(voice, opening):
                row = WEIGHTS.row(voice, [*opening, -1])  # the last token is always left to read
                voice.reader.read([row], [opening[len(row.token_ids) :]])
                WEIGHTS.keep(voice, row)


def _pass(voices: list[Voice], rows: list[Row], unread: list[list[int]], last: int = 1) -> list[torch.Tensor]:
    """The logits [last, vocabulary] after the unread tokens of each row: one pass for all that share a model."""
    found = {}
    for reader in dict.fromkeys(voice.reader for voice in voices):
        own = [at for at, voice in enumerate(voices) if voice.reader is reader]
        with WEIGHTS.lock:
            logits = reader.read([rows[at] for at in own], [unread[at] for at in own], [last] * len(own))
        found.update(zip(own, logits, strict=True))
    return [found[at] for at in range(len(voices))]


def _check_room(contest: Contest, prompts: list[list[int]], sampling: Sampling) -> None:
    if not all(prompts):
        raise RunError("There is nothing to answer: the prompt has no tokens.", "Write a question.")
    longest, room = max(map(len, prompts)), models.context_length(contest.folder)
    if room and longest + sampling.max_new_tokens > room:
        raise RunError(
            f"The conversation has {longest} tokens; with {sampling.max_new_tokens} new ones it is longer than the "
            f"{room} that the model can read.",
            "Clear the conversation, or ask for fewer new tokens.",
        )


def _append(reply: Reply, tokens: list[int], chat_format: ChatFormat, room: int) -> None:
    reply.token_ids += tokens
    reply.stopped = reply.token_ids[-1] in chat_format.stop_token_ids
    reply.cut = not reply.stopped and len(reply.token_ids) >= room
    reply.text = reply_text(reply.token_ids, chat_format)


def reply_text(token_ids: list[int], chat_format: ChatFormat) -> str:
    """The reply without its stop token, and without a last character that is not complete yet."""
    ended = bool(token_ids) and token_ids[-1] in chat_format.stop_token_ids
    text = chat_format.tokenizer.decode(token_ids[:-1] if ended else token_ids)
    return text if ended else text.rstrip("\ufffd")


def read(contest: Contest, sequences: list[list[int]], last: int) -> list[torch.Tensor]:
    """[last, vocabulary] for each contestant: log-probabilities of the token after each of the `last` positions of its
    sequence, float32 on the CPU."""
    with WEIGHTS.lock:
        voices = WEIGHTS.load(contest)
    logits = _pass(voices, [Row(voice.adapter) for voice in voices], sequences, last)
    return [each.float().log_softmax(-1).cpu() for each in logits]


def judge(contest: Contest, prompt: list[int], reply: list[int]) -> list[tuple[list[float], list[int]]]:
    """For each contestant, whoever wrote the reply: the log-probability of each of its tokens, and the token that it
    finds likeliest in that place."""
    with WEIGHTS.lock:
        voices = WEIGHTS.load(contest)
    rows, found = [Row(voice.adapter) for voice in voices], [([], []) for _ in voices]
    for start in range(0, len(reply), JUDGED):
        tokens = reply[start : start + JUDGED]
        unread = (prompt + reply[: start + len(tokens) - 1])[len(rows[0].token_ids) :]
        for judged, logits in zip(found, _pass(voices, rows, [unread] * len(rows), len(tokens)), strict=True):
            for column, more in zip(judged, _judged(logits.float(), tokens), strict=True):
                column += more
    return found


def _judged(logits: torch.Tensor, tokens: list[int]) -> tuple[list[float], list[int]]:
    written = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    return (written - logits.logsumexp(1)).tolist(), logits.argmax(1).tolist()


def complete(
    voice: Voice, prompts: list[list[int]], stops: list[int], rooms: list[int], progress: Callable[[float], None]
) -> list[list[int]]:
    """The likeliest reply to each prompt: at most so many token ids, the stop token included where one came.

    What all prompts begin with is read once; as one reply ends, the next begins. `progress` hears the share done.
    """
    replies: list[list[int]] = [[] for _ in prompts]
    shared = read_shared(voice, prompts)
    waiting, going = list(range(len(prompts)))[::-1], {}
    while waiting or going:
        while waiting and len(going) < AT_ONCE:
            going[waiting.pop()] = shared.copy(len(shared.token_ids)) if shared else Row(voice.adapter)
        unread = [(prompts[at] + replies[at])[len(row.token_ids) :] for at, row in going.items()]
        with WEIGHTS.lock:
            logits = voice.reader.read(list(going.values()), unread)
        for at, scores in zip(list(going), logits, strict=True):
            replies[at].append(int(scores[-1].argmax()))
            if replies[at][-1] in stops or len(replies[at]) >= rooms[at]:
                del going[at]
                progress(1 - (len(waiting) + len(going)) / len(prompts))
    return replies


def read_shared(voice: Voice, prompts: list[list[int]]) -> Row | None:
    """A row that has read what all prompts begin with; each of them has a token more at least."""
    if not voice.reader.together or len(prompts) < 2:
        return None
    shared = os.path.commonprefix([*prompts, min(prompts, key=len)[:-1]])  # noqa: RUF071 (it compares lists)
    row = Row(voice.adapter)
    if shared:
        with WEIGHTS.lock:
            voice.reader.read([row], [shared])
    return row if shared else None

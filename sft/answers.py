"""How likely a model finds the answers that are wanted: their loss, row by row, without a trainer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os.path import commonprefix

import torch
import torch.nn.functional as F

from sft.chat import read_shared
from sft.chat_format import IGNORED, ChatFormat
from sft.messages import Conversation
from sft.passes import Row
from sft.weights import WEIGHTS, Voice

TOKENS_AT_ONCE = 640  # read in a pass


@dataclass(frozen=True)
class Answer:
    """The wanted answer to a prompt: the tokens `before` it, its own `token_ids`, and their `labels`: those that the
    template adds after it are IGNORED."""

    before: list[int]
    token_ids: list[int]
    labels: list[int]

    @classmethod
    def of(cls, chat_format: ChatFormat, asked: list[dict], prompt: list[int], row: Conversation) -> "Answer":
        """The row's last message, after the messages `asked`; `prompt` are their token ids."""
        encoded = chat_format.encode(Conversation([*asked, row.messages[-1]], row.tools))
        start = len(commonprefix([encoded.input_ids, prompt]))  # noqa: RUF071 (it compares lists)
        return cls(encoded.input_ids[:start], encoded.input_ids[start:], encoded.labels[start:])

    @property
    def labelled(self) -> int:
        return sum(label != IGNORED for label in self.labels)


def losses(voice: Voice, answers: list[Answer], progress: Callable[[float], None]) -> list[float]:
    """Cross-entropy of each answer, summed over its labelled tokens. What all begin with is read once. `progress` hears
    the share done."""
    found: list[float] = []
    shared = read_shared(voice, [answer.before for answer in answers])
    for batch in _batches(answers, len(shared.token_ids) if shared else 0):
        rows = [shared.copy(len(shared.token_ids)) if shared else Row(voice.adapter) for _ in batch]
        unread = [
            (answer.before + answer.token_ids)[len(row.token_ids) : -1] for answer, row in zip(batch, rows, strict=True)
        ]
        with WEIGHTS.lock:
            logits = voice.reader.read(rows, unread, [len(answer.token_ids) for answer in batch])
        found += [_loss(*pair) for pair in zip(logits, batch, strict=True)]
        progress(len(found) / len(answers))
    return found


def _loss(logits: torch.Tensor, answer: Answer) -> float:
    labels = torch.tensor(answer.labels, device=logits.device)
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="sum").item()


def _batches(answers: list[Answer], shared: int) -> Iterator[list[Answer]]:
    """Answers in order, so many at a time that about TOKENS_AT_ONCE are read; one at least."""
    batch, tokens = [], 0
    for answer in answers:
        own = len(answer.before) - shared + len(answer.token_ids)
        if batch and tokens + own > TOKENS_AT_ONCE:
            yield batch
            batch, tokens = [], 0
        batch.append(answer)
        tokens += own
    yield batch

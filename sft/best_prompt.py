"""The best honest prompt: what a careful person would give the base model instead of tuning it.

A system message and a few examples, both from the training rows and what the user writes alone; the held-out rows are
never looked at but to leave out an example that asks what one of them asks. The system message is the user's, else the
row's own, followed by the form that the answers have. The examples are training rows as real turns: drawn by seed,
those whose answers differ before those that repeat one. All rows get the same examples.
"""

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sft.chat_format import ChatFormat
from sft.messages import Conversation
from sft.reply_format import ReplyFormat

LOOKED_AT = 2000  # training rows, drawn by seed, that examples and the form of answers are taken from
LIKE_EXAMPLES = "Answer in the way of the examples, with nothing before or after."


@dataclass(frozen=True)
class BestPrompt:
    """What comes before a question. `system` takes the place of a row's own system message, `instruction` follows it.

    `reads_system` is False for a template without system messages; then the first user message begins with them.
    """

    system: str | None
    instruction: str
    examples: list[Conversation]
    reads_system: bool = True

    def messages(self, asked: list[dict]) -> list[dict]:
        """The prompt for what a row asks: its messages before the wanted answer."""
        own, rest = _split(asked)
        told = "\n".join(filter(None, [own, self.instruction])) or (LIKE_EXAMPLES if self.examples else None)
        system = self.system or told
        turns = [message for example in self.examples for message in _split(example.messages)[1]] + rest
        if not system:
            return turns
        if self.reads_system or not turns:
            return [{"role": "system", "content": system}, *turns]
        first = {**turns[0], "content": f"{system}\n\n{turns[0]['content']}"}
        return [first, *turns[1:]]

    def fitting(self, rows: list[Conversation], chat_format: ChatFormat, room: int | None) -> "BestPrompt":
        """The same with as many of the examples as leave every row's prompt within `room` tokens; None is no limit."""
        if not room:
            return self

        def fewer(dropped: int) -> BestPrompt:
            return replace(self, examples=self.examples[: len(self.examples) - dropped])

        def fits(dropped: int) -> bool:
            return fewer(dropped)._longest(rows, chat_format) <= room

        return fewer(bisect_left(range(len(self.examples)), True, key=fits))

    def _longest(self, rows: list[Conversation], chat_format: ChatFormat) -> int:
        return max(len(chat_format.prompt_ids(self.messages(row.messages[:-1]), row.tools)) for row in rows)


def best_prompt(
    looked_at: list[Conversation],
    held_out: list[Conversation],
    reply_format: ReplyFormat | None,
    system: str | None,
    examples: int,
    reads_system: bool = True,
) -> BestPrompt:
    """`looked_at` are training rows in an order drawn by seed; see `some_of`."""
    shown = draw(looked_at, held_out, examples)
    instruction = reply_format.instruction if reply_format else ""
    return BestPrompt(system, instruction, shown, reads_system)


def some_of(training: Sequence[Conversation], seed: int) -> list[Conversation]:
    """At most LOOKED_AT of the training rows that end in an answer, in an order drawn by seed."""
    places = random.Random(seed).sample(range(len(training)), min(LOOKED_AT, len(training)))
    return [row for row in map(training.__getitem__, places) if ends_in_answer(row)]


def draw(looked_at: list[Conversation], held_out: list[Conversation], count: int) -> list[Conversation]:
    """The first rows that can be examples, those whose answers differ first.

    None asks in any turn what a held-out row asks last, uses tools, or has a system message that held-out rows lack.
    """
    asked = {question for row in held_out for question in _questions(row)[-1:]}
    systems = {None, *(_split(row.messages)[0] for row in held_out)}
    fit = [
        row
        for row in looked_at
        if not row.tools and _split(row.messages)[0] in systems and asked.isdisjoint(_questions(row))
    ]
    seen: Counter[str] = Counter()
    again = []
    for row in fit:
        answer = row.messages[-1]["content"].strip()
        again.append(seen[answer])
        seen[answer] += 1
    return [row for _, row in sorted(zip(again, fit, strict=True), key=lambda pair: pair[0])][:count]


def ends_in_answer(row: Conversation) -> bool:
    return row.messages[-1]["role"] == "assistant" and bool(row.messages[-1].get("content"))


def _split(messages: list[dict]) -> tuple[str | None, list[dict]]:
    """The system message's text, if there is one, and the other messages."""
    if messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return None, messages


def _questions(row: Conversation) -> list[str]:
    """What a row asks, turn by turn, in the same words where they differ by case and white space alone."""
    return [" ".join((each.get("content") or "").casefold().split()) for each in row.messages if each["role"] == "user"]

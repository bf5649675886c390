"""What the model answers while it learns: the same prompts every so many steps, from the untouched base to the end.

A callback of the trainer. Replies are greedy and leave no trace in the training: no random number is drawn, no
gradient kept, and the model is put back into the mode that it was in.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from transformers import TrainerCallback

from sft.chat_format import ChatFormat
from sft.config import TrainConfig
from sft.errors import TemplateError
from sft.greedy import answering, greedy
from sft.messages import Conversation
from sft.run import Run

SHARE = 0.09  # of the training's time; the promise is a tenth, and costs are only known afterwards
LONG = 100  # steps from which a run has time for a second prompt
LONGEST = 48  # tokens of a reply
BEYOND = 8  # tokens that a reply may have more than the wanted answer, so that it is seen to stop
FRAMES = 40  # samples of a run at most; nobody looks at more


@dataclass(frozen=True)
class Question:
    """A prompt, as messages and as token ids, and the answer that the data set gives to it."""

    messages: list[dict]
    wanted: str
    prompt: list[int]
    answer: list[int]

    @property
    def room(self) -> int:
        """How many tokens a reply may have."""
        return min(len(self.answer) + BEYOND, LONGEST)


def questions(conversations: Iterable[Conversation], chat_format: ChatFormat, config: TrainConfig) -> list[Question]:
    """One or two of the first conversations: those that end in an answer and fit into `max_length` with some room.

    A run of few steps has one question. There may be none.
    """
    found = (_question(row, chat_format, config.max_length) for row in conversations)
    return list(islice(filter(None, found), 1 if config.max_steps < LONG else 2))


def _question(row: Conversation, chat_format: ChatFormat, max_length: int) -> Question | None:
    asked, last = row.messages[:-1], row.messages[-1]
    if last["role"] != "assistant" or not last.get("content"):
        return None
    try:
        prompt, whole = chat_format.prompt_ids(asked, row.tools), chat_format.encode(row).input_ids
    except TemplateError:  # such a row is not trained on either
        return None
    if len(whole) + BEYOND > max_length:
        return None
    answer = whole[len(prompt) :] if whole[: len(prompt)] == prompt else chat_format.tokenize(last["content"])[0]
    return Question(asked, last["content"], prompt, answer)


class Samples(TrainerCallback):
    """Lets the model answer the questions every so many steps, and writes each time a `sample` event to the run.

    The first sample is of step 0, where the adapter changes nothing yet, and the last of the last step; those between
    are spread evenly over as many as `SHARE` of the training's time pays for. A run so short that the two alone cost
    more still has both. A resumed run goes on where it was. A stop request ends a sample within a token, and an
    unfinished one is not written. For the main process only: the others meet it again at the next step.
    """

    def __init__(self, run: Run, questions: list[Question], chat_format: ChatFormat):
        self.run = run
        self.questions = questions
        self.chat_format = chat_format
        taken = run.events("sample")
        self.last = taken[-1]["step"] if taken else None
        self.costs = [event["seconds"] for event in taken]
        self.replies = [question.answer for question in questions]  # a draft of what comes next
        self.first, self.began = 0, 0.0  # step and time at which this process began, time spent on samples left out

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.first, self.began = state.global_step, time.perf_counter()
        if state.global_step == 0 and self.last is None:
            self._sample(0, model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        step_seconds = (time.perf_counter() - self.began) / (state.global_step - self.first)
        if self._due(state.global_step, state.max_steps, step_seconds):
            self._sample(state.global_step, model)

    def _due(self, step: int, max_steps: int, step_seconds: float) -> bool:
        if step == max_steps:
            return True
        last = self.last or 0
        # After the first, what the next will cost is a guess: a model that learns to answer also learns to stop.
        cost = self.costs[-1] if len(self.costs) > 1 else self.costs[0] / 4 if self.costs else 0.0
        left = SHARE * max_steps * step_seconds - sum(self.costs)
        affordable = min(left / cost, FRAMES - len(self.costs)) if cost else FRAMES
        return affordable >= 2 and step - last >= (max_steps - last) / int(affordable)

    def _sample(self, step: int, model) -> None:
        began = time.perf_counter()
        with answering(model):
            replies = [self._reply(model, *pair) for pair in zip(self.questions, self.replies, strict=True)]
        if self.run.stop_asked:
            return
        seconds = time.perf_counter() - began
        self.last, self.replies = step, replies
        self.costs.append(seconds)
        self.began += seconds
        told = list(map(self._told, self.questions, replies))
        self.run.append_event("sample", step=step, seconds=seconds, replies=told)

    def _reply(self, model, question: Question, before: list[int]) -> list[int]:
        drafts, stops = [before, question.answer], self.chat_format.stop_token_ids
        return greedy(model, question.prompt, drafts, stops, question.room, lambda: self.run.stop_asked)

    def _told(self, question: Question, reply: list[int]) -> dict:
        stopped = reply[-1] in self.chat_format.stop_token_ids
        text = self.chat_format.tokenizer.decode(reply[:-1] if stopped else reply).rstrip("\ufffd")
        return {"messages": question.messages, "wanted": question.wanted, "text": text, "stopped": stopped}

"""Base and tuned model answering at once: one batch, one pass over the weights.

PEFT's mixed adapters give each row of a batch its own adapter or none, so the base row is the base model, token for
token. A model that was tuned in full has weights of its own: it answers after the base model has. Histories come from
the caller and nothing of a conversation is kept here: visitors share weights, no words.
"""

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from sft import models
from sft.chat_format import ChatFormat
from sft.errors import ModelError, RunError
from sft.runs import Run
from sft.sandbox import guarded

BASE = "__base__"  # PEFT's name for a row without adapter
KEPT_ADAPTERS = 4  # small beside the base model, but not free


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. `temperature` 0 is greedy: always the most likely token."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0


@dataclass
class Reply:
    """A reply so far. `stopped` means that the model itself ended it, with a stop token."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    stopped: bool = False


@dataclass(frozen=True)
class Contest:
    """Who answers: a base model, and beside it the same with a run's adapter, or the run's model, if one is given."""

    model_name: str
    folder: Path
    chat_format: ChatFormat
    run: Run | None = None

    @classmethod
    def of_run(cls, run: Run) -> "Contest":
        """Raises RunError for a run that made nothing yet, TemplateError for one whose chat format changed."""
        if not run.has_result:
            state = run.status().state
            raise RunError(f"The run {run.name} has no adapter; it is {state}.", "Choose a run that has finished.")
        if run.result == run.adapter:
            models.check_adapter(run.adapter)
        name = run.config().model
        chat_format = guarded(ChatFormat.load(run.folder, models.load_tokenizer(run.result)))
        return cls(name, models.locate(name), chat_format, run)

    @classmethod
    def of_base(cls, model_name: str) -> "Contest":
        folder = models.locate(model_name)
        return cls(model_name, folder, guarded(ChatFormat.of(models.load_tokenizer(folder))))

    @property
    def adapters(self) -> list[str]:
        """One adapter name a contestant, the base first. A model tuned in full has none, as the base has."""
        if self.run is None:
            return [BASE]
        return [BASE, BASE if self.in_full else _identity(self.run)]

    @property
    def in_full(self) -> bool:
        return self.run is not None and self.run.result == self.run.model

    @property
    def trains_tokens(self) -> bool:
        return self.run is not None and bool(self.run.config().trainable_token_indices)


class Weights:
    """The base model last used, the adapters on it, and the model last used that was tuned in full.

    One generation at a time: hold `lock` around it.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self._base: tuple[Path, bool] | None = None  # its folder, and whether its adapters train tokens
        self._model = None
        self._adapters: OrderedDict[str, None] = OrderedDict()
        self._tuned: dict[str, PreTrainedModel] = {}  # one at most, by its run's identity

    def load(self, contest: Contest) -> list[PreTrainedModel | PeftModel]:
        """One model a contestant: the same one twice where they differ by an adapter alone."""
        base = (contest.folder, contest.trains_tokens)  # PEFT cannot hold adapters that do beside some that do not
        if self._base != base:
            self.forget()
            self._model, self._base = models.load_base(contest.folder), base
        if contest.in_full:
            name = _identity(contest.run)
            if name not in self._tuned:
                self._tuned.clear()  # before the next is loaded: there may be room for one alone
                self._tuned[name] = models.load_base(contest.run.model)
            return [self._model, self._tuned[name]]
        if contest.run:
            self._load_adapter(contest.run)
        return [self._model] * len(contest.adapters)

    def _load_adapter(self, run: Run) -> None:
        name = _identity(run)
        if name not in self._adapters:
            try:
                if isinstance(self._model, PeftModel):
                    self._model.load_adapter(str(run.adapter), adapter_name=name)
                else:
                    self._model = PeftModel.from_pretrained(self._model, str(run.adapter), adapter_name=name)
            except (ValueError, RuntimeError, KeyError) as error:
                self.forget()
                raise ModelError(
                    f"The adapter of {run.name} does not fit its base model: {str(error).splitlines()[0]}",
                    "The base model may have changed since; train again.",
                ) from None
            self._model.eval()
        self._model.set_adapter(name)
        self._adapters[name] = None
        self._adapters.move_to_end(name)
        while len(self._adapters) > KEPT_ADAPTERS:
            self._model.delete_adapter(self._adapters.popitem(last=False)[0])

    def forget(self) -> None:
        self._model, self._base = None, None
        self._adapters.clear()
        self._tuned.clear()


WEIGHTS = Weights()


def stream(
    contest: Contest, prompts: list[list[int]], sampling: Sampling, cancelled: threading.Event | None = None
) -> Iterator[list[Reply]]:
    """Yields the replies, one a contestant in the order of `contest.adapters`, each time a token is there.

    `prompts` are token ids, one list a contestant. Setting `cancelled`, or closing the iterator, ends the
    generation at the next token and keeps what is there.
    """
    cancelled = cancelled or threading.Event()
    with WEIGHTS.lock:
        passes = _passes(WEIGHTS.load(contest))
        tokens: queue.Queue = queue.Queue()

        def work():
            try:
                for model, rows in passes:
                    own, adapters = prompts[rows], contest.adapters[rows]
                    generate(model, contest.chat_format, own, adapters, sampling, _Tokens(tokens, rows), cancelled)
            except Exception as error:  # handed to the caller's thread, which raises it
                tokens.put(error)
            else:
                tokens.put(None)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        replies = [Reply() for _ in prompts]
        try:
            while (step := tokens.get()) is not None:
                if isinstance(step, Exception):
                    WEIGHTS.forget()  # a generation that raised leaves PEFT's hooks on the model
                    raise step
                rows, new = step
                _append(replies[rows], new, contest.chat_format)
                yield replies
        finally:
            cancelled.set()
            thread.join()


def _passes(models_: list) -> list[tuple[PreTrainedModel | PeftModel, slice]]:
    """Each model and the contestants that it answers for, together in one pass."""
    found, start = [], 0
    for _, same in groupby(models_, key=id):
        rows = slice(start, start + len(list(same)))
        found.append((models_[start], rows))
        start = rows.stop
    return found


def _append(replies: list[Reply], tokens: list[int], chat_format: ChatFormat) -> None:
    for reply, token in zip(replies, tokens, strict=True):
        if reply.stopped:
            continue  # a row that has ended goes on with padding until the other has ended too
        reply.token_ids.append(token)
        reply.stopped = token in chat_format.stop_token_ids
        reply.text = reply_text(reply.token_ids, chat_format)


def reply_text(token_ids: list[int], chat_format: ChatFormat) -> str:
    """The reply without its stop token, and without a last character that is not complete yet."""
    ended = bool(token_ids) and token_ids[-1] in chat_format.stop_token_ids
    text = chat_format.tokenizer.decode(token_ids[:-1] if ended else token_ids)
    return text if ended else text.rstrip("\ufffd")


def generate(
    model,
    chat_format: ChatFormat,
    prompts: list[list[int]],
    adapters: list[str],
    sampling: Sampling,
    streamer: BaseStreamer | None = None,
    cancelled: threading.Event | None = None,
) -> list[list[int]]:
    """New token ids for each prompt, with its stop token where one came. `adapters` has a name for each prompt."""
    longest = max(map(len, prompts))
    room = getattr(model.config, "max_position_embeddings", None)
    if room and longest + sampling.max_new_tokens > room:
        raise RunError(
            f"The conversation has {longest} tokens; with {sampling.max_new_tokens} new ones it is longer than the "
            f"{room} that the model can read.",
            "Clear the conversation, or ask for fewer new tokens.",
        )
    pad = chat_format.tokenizer.pad_token_id
    pad = chat_format.stop_token_ids[0] if pad is None and chat_format.stop_token_ids else pad or 0
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(
        do_sample=sampling.temperature > 0,
        temperature=sampling.temperature or None,
        top_p=sampling.top_p if sampling.temperature > 0 else None,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=chat_format.stop_token_ids or None,
        pad_token_id=pad,
    )
    mixed = {"adapter_names": adapters} if isinstance(model, PeftModel) else {}
    torch.manual_seed(sampling.seed)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([_Cancelled(cancelled)] if cancelled else []),
            **mixed,
        )
    return [_until_stop(row, chat_format) for row in output[:, longest:].tolist()]


def _until_stop(token_ids: list[int], chat_format: ChatFormat) -> list[int]:
    for at, token in enumerate(token_ids):
        if token in chat_format.stop_token_ids:
            return token_ids[: at + 1]
    return token_ids


def _identity(run: Run) -> str:
    """Tells results apart, also one from another that was trained later in a folder of the same name."""
    written = max(path.stat().st_mtime_ns for path in run.result.glob("*.safetensors"))
    return f"{run.folder.resolve()}@{written}".replace(".", "_")  # torch allows no dot in a module's name


class _Tokens(BaseStreamer):
    """Puts each step's contestants and tokens into a queue; the first call brings the prompts and is passed over."""

    def __init__(self, tokens: queue.Queue, rows: slice):
        self.tokens, self.rows = tokens, rows
        self._prompts_seen = False

    def put(self, value):
        if self._prompts_seen:
            self.tokens.put((self.rows, value.tolist()))
        self._prompts_seen = True

    def end(self):
        pass


class _Cancelled(StoppingCriteria):
    """PEFT's hooks stay on a model whose generation raises, so a generation is ended by a criterion alone."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device, dtype=torch.bool)

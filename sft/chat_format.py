"""ChatFormat: the only place where messages become token ids.

Preview, training and chat all call it, so what is shown is what is learned is what is asked. Knows nothing about
models, data sets or runs, and needs no torch.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from functools import cached_property
from itertools import islice
from pathlib import Path

from sft.errors import TemplateError
from sft.layout import Layout, frozen, lay_out, lay_out_all, render_text
from sft.messages import Conversation
from sft.origins import Dropped, Prompt, Span, trace
from sft.traits import Traits, traits

PRESETS = Path(__file__).parent / "chat_templates"
OWN, NONE = "the model's own", "plain (the model has none)"  # where a chat format's template comes from
TEMPLATE = "template"  # the role of text that the template added and nobody wrote
IGNORED = -100  # the label of a token that is not trained on
TOGETHER = 64  # conversations rendered and tokenised at a time: more gain nothing


@dataclass(frozen=True)
class Rendered:
    """A conversation as a model reads it.

    `assistant_spans` are the characters that are trained on; `unsure` the assistant messages that are not, because
    their turn could not be told apart. `spans` are the characters that somebody wrote, `dropped` what somebody wrote
    and the template left out, `prompt` what chat sends to get the last reply; see origins.py.

    `token_ids`, `tokens`, `offsets` (characters `[start, end)`), `roles` and `assistant_mask` have one entry a token;
    they are None without a tokenizer.
    """

    text: str
    assistant_spans: list[tuple[int, int]]
    unsure: list[int]
    spans: list[Span]
    dropped: list[Dropped]
    prompt: Prompt | None
    reads_tools: bool
    token_ids: list[int] | None = None
    tokens: list[str] | None = None
    offsets: list[tuple[int, int]] | None = None
    roles: list[str] | None = None
    assistant_mask: list[int] | None = None


@dataclass(frozen=True)
class Encoded:
    """One training row: `labels` equal `input_ids` where the assistant mask is 1, else -100."""

    input_ids: list[int]
    labels: list[int]
    full_length: int

    @property
    def trained(self) -> int:
        """Tokens that have a label and something before them to be predicted from."""
        return sum(label != IGNORED for label in self.labels[1:])

    @property
    def verdict(self) -> str:
        if not self.trained:
            return "dropped"
        return "cut" if len(self.input_ids) < self.full_length else "kept"


def run_here(function: Callable, *arguments):
    """Renders in this process; the sandbox has the same call for templates that nobody vouches for."""
    return function(*arguments)


@dataclass(frozen=True, eq=False)
class ChatFormat:
    """Tokenizer + chat template + template arguments + stop tokens.

    `tokenizer` is a fast transformers tokenizer, or None to render text alone. `origin` says in words where the
    template comes from. `run` calls the functions that render: `run_here`, or the sandbox's.
    """

    tokenizer: object | None
    chat_template: str
    template_kwargs: dict = field(default_factory=dict)
    origin: str = "given"
    run: Callable = run_here

    @classmethod
    def of(cls, tokenizer, template_kwargs: dict | None = None, run: Callable = run_here) -> "ChatFormat":
        """The tokenizer's own template; a base model that has none gets ours, which ends in its end-of-text token."""
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return cls(tokenizer, template, template_kwargs or {}, OWN, run)
        return cls(tokenizer, preset("plain"), template_kwargs or {}, NONE, run)

    def as_of(self, day: date) -> "ChatFormat":
        """The same format with `day` for today's date, so that a template that writes it renders alike tomorrow."""
        return replace(self, chat_template=frozen(self.chat_template, day))

    @property
    def variables(self) -> dict:
        """What the template may name besides the messages: the tokenizer's special tokens and our arguments."""
        return {**getattr(self.tokenizer, "special_tokens_map", {}), **self.template_kwargs}

    def ask(self, function: Callable, *arguments):
        """Calls a function about this template, such as `lay_out`, where `run` runs it. Raises TemplateError."""
        return self.run(function, self.chat_template, self.variables, *arguments)

    def render(
        self, messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False
    ) -> Rendered:
        """Messages → text, tokens, roles and loss mask. Raises TemplateError where the template does."""
        layout = self.ask(lay_out, messages, tools, add_generation_prompt)
        origins = self.ask(trace, messages, tools, add_generation_prompt)
        about = (layout.text, layout.assistant_spans, layout.unsure, *vars(origins).values())
        if self.tokenizer is None:
            return Rendered(*about)
        token_ids, offsets = self.tokenize(layout.text)
        tokens = self.tokenizer.convert_ids_to_tokens(token_ids)
        mask = _mask(offsets, layout.assistant_spans)
        return Rendered(*about, token_ids, tokens, offsets, _roles(offsets, origins.spans, mask), mask)

    def prompt_ids(self, messages: list[dict], tools: list[dict] | None = None) -> list[int]:
        """The token ids that a model is asked with: the conversation and the generation prompt."""
        return self.tokenize(self.ask(render_text, messages, tools, True))[0]

    def encode(self, conversation: Conversation, max_length: int | None = None) -> Encoded:
        """One training row, cut at `max_length` tokens; the same ids and mask that `render` gives."""
        layout = self.ask(lay_out, conversation.messages, conversation.tools)
        return _encoded(layout, *self.tokenize(layout.text), max_length)

    def encode_all(
        self, conversations: Iterable[Conversation], max_length: int | None = None
    ) -> Iterator[Encoded | TemplateError]:
        """What `encode` gives for each conversation, or the TemplateError that it raises, in order and quicker.

        While some are tokenised, by a library that leaves Python alone, the next are rendered.
        """
        waiting = iter(conversations)
        with ThreadPoolExecutor(1) as renderer:
            rendering = renderer.submit(self._lay_out_all, list(islice(waiting, TOGETHER)))
            while layouts := rendering.result():
                rendering = renderer.submit(self._lay_out_all, list(islice(waiting, TOGETHER)))
                yield from self._encode_layouts(layouts, max_length)

    def _lay_out_all(self, conversations: list[Conversation]) -> list[Layout | TemplateError]:
        try:
            layouts = self.ask(lay_out_all, [(each.messages, each.tools) for each in conversations])
        except TemplateError:  # all together were too much for the sandbox; one alone may not be
            layouts = [None] * len(conversations)
        return [
            layout or self._lay_out_alone(conversation)
            for layout, conversation in zip(layouts, conversations, strict=True)
        ]

    def _lay_out_alone(self, conversation: Conversation) -> Layout | TemplateError:
        try:
            return self.ask(lay_out, conversation.messages, conversation.tools)
        except TemplateError as error:
            return error

    def _encode_layouts(
        self, layouts: list[Layout | TemplateError], max_length: int | None
    ) -> Iterator[Encoded | TemplateError]:
        texts = [layout.text for layout in layouts if isinstance(layout, Layout)]
        tokenized = zip(*self.tokenize(texts), strict=True) if texts else iter(())
        for layout in layouts:
            yield _encoded(layout, *next(tokenized), max_length) if isinstance(layout, Layout) else layout

    def tokenize(self, text: str | list[str]) -> tuple[list, list]:
        """Token ids of a rendered text, and the characters `[start, end)` of each; for many texts, a list of each.

        Adds no special tokens.
        """
        encoded = self.tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            truncation=False,
            padding=False,
            verbose=False,
        )
        return encoded["input_ids"], encoded["offset_mapping"]

    @cached_property
    def traits(self) -> Traits:
        """What the template does with each kind of message. Raises TemplateError where it renders nothing at all."""
        return self.ask(traits)

    @cached_property
    def end_of_turn_ids(self) -> list[int]:
        """The control tokens that end an assistant turn and are trained on, that of an inner turn first."""
        user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        try:
            layout = self.ask(lay_out, [user, assistant, user, assistant])  # the last turn may end unlike the others
        except TemplateError:
            return []
        token_ids, offsets = self.tokenize(layout.text)
        control, ends = set(self.tokenizer.added_tokens_decoder), []
        # a line break may be a token of its own too, but it ends no turn
        places = zip(token_ids, offsets, strict=True)
        at = {start: token for token, (start, end) in places if layout.text[start:end].strip()}
        for start, end in layout.assistant_spans:
            ends += [at[place] for place in range(start, end) if at.get(place) in control][-1:]
        return list(dict.fromkeys(ends))

    @cached_property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end a reply: the tokenizer's end token, and those that end a turn in this format."""
        eos = self.tokenizer.eos_token_id
        return list(dict.fromkeys([*([] if eos is None else [eos]), *self.end_of_turn_ids]))

    # ---- identity, saving, loading ----

    @cached_property
    def hash(self) -> str:
        """SHA-256 over template, arguments and tokenizer: equal hashes give equal ids for every conversation."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for setting in ("padding", "truncation"):  # set by whoever used the tokenizer last, and never used here
            backend.pop(setting, None)
        special = {name: token for name, token in self.tokenizer.special_tokens_map.items() if name != "pad_token"}
        parts = [self.chat_template, self.template_kwargs, special, backend]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Writes `chat_format.json` and `chat_template.jinja`."""
        (folder / "chat_template.jinja").write_bytes(self.chat_template.encode())  # bytes: line ends stay
        about = {
            "sha256": self.hash,
            "origin": self.origin,
            "template_kwargs": self.template_kwargs,
            "stop_token_ids": self.stop_token_ids,
            "stop_tokens": self.tokenizer.convert_ids_to_tokens(self.stop_token_ids),
        }
        (folder / "chat_format.json").write_text(json.dumps(about, indent=2, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, tokenizer, run: Callable = run_here, changed: bool = False) -> "ChatFormat":
        """The format saved in `folder`, for a tokenizer loaded apart.

        Raises TemplateError where they have changed since they were saved, unless `changed` takes them as they are.
        """
        try:
            about = json.loads((folder / "chat_format.json").read_text(encoding="utf-8"))
            template = (folder / "chat_template.jinja").read_bytes().decode()
            chat_format = cls(tokenizer, template, about["template_kwargs"], about["origin"], run)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TemplateError(
                f"The chat format in {folder} cannot be read: {type(error).__name__}: {error}.",
                "Put chat_format.json and chat_template.jinja back, or train again.",
            ) from None
        if chat_format.hash != about["sha256"] and not changed:
            raise TemplateError(
                f"The chat format in {folder} is not the one that the adapter was trained with: its hash is "
                f"{chat_format.hash[:12]}, not {about['sha256'][:12]}.",
                "Put the run's own tokenizer and chat_template.jinja back, or train again.",
            )
        return chat_format


def presets() -> list[str]:
    """The names of our own templates."""
    return sorted(path.stem for path in PRESETS.glob("*.jinja"))


def preset(name: str) -> str:
    """The source of one of our own templates, such as 'plain' or 'chatml'. Raises TemplateError for another name."""
    if name not in presets():
        raise TemplateError(f"There is no preset {name[:60]!r}.", f"Choose one of {', '.join(presets())}.")
    return (PRESETS / f"{name}.jinja").read_text(encoding="utf-8")


def _encoded(layout: Layout, token_ids: list[int], offsets: list[tuple[int, int]], max_length: int | None) -> Encoded:
    labels = [IGNORED] * len(token_ids)
    for trained in _trained(offsets, layout.assistant_spans):
        labels[trained] = token_ids[trained]
    return Encoded(token_ids[:max_length], labels[:max_length], len(token_ids))


def _mask(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """1 for each token that is trained on."""
    mask = [0] * len(offsets)
    for trained in _trained(offsets, spans):
        mask[trained] = [1] * len(mask[trained])
    return mask


def _trained(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[slice]:
    """The tokens that begin inside a span, for each. A token that begins before a span belongs to the prompt.

    Tokens come in the order of the text.
    """
    starts = [start for start, _ in offsets]
    return [slice(bisect_left(starts, start), bisect_left(starts, end)) for start, end in spans]


def _roles(offsets, spans: list[Span], mask: list[int]) -> list[str]:
    """Who wrote each token: a role, or the template. What it adds to a turn that is trained on is the assistant's."""
    roles, waiting = [], iter(spans)
    span = next(waiting, None)
    for (at, _), trained in zip(offsets, mask, strict=True):
        while span and at >= span.end:
            span = next(waiting, None)
        written = span and span.start <= at
        roles.append(span.role if written else "assistant" if trained else TEMPLATE)
    return roles

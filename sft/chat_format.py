"""ChatFormat: the only place where messages become token ids.

Preview, training and chat all call `render`, so what is shown is what is learned is what is asked. Knows nothing
about models, data sets or runs, and needs no torch.
"""

import hashlib
import json
import re
import threading
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from sft.errors import TemplateError
from sft.messages import Conversation

PRESETS = Path(__file__).parent / "chat_templates"
TEMPLATE = "template"  # the role of text that the template added and nobody wrote
IGNORED = -100  # the label of a token that is not trained on

# transformers tracks `{% generation %}` on the compiled template itself, so two threads must not render at once.
_rendering = threading.Lock()
_MARKER = re.compile(r"\{%-?\s*generation\b")
_PROBE = "\ue000probe\ue001"  # private-use characters: no template looks for them, none trims them


@dataclass(frozen=True)
class Span:
    """Characters `[start, end)` of a rendered text that came from one message."""

    start: int
    end: int
    role: str
    message: int


@dataclass(frozen=True)
class Finding:
    """Something about a rendering that a person should know. `level` is 'error', 'warning' or 'note'."""

    level: str
    code: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Rendered:
    """A conversation as a model reads it.

    `token_ids`, `tokens`, `offsets` (characters `[start, end)`), `roles` and `assistant_mask` have one entry a
    token; they are None without a tokenizer. `assistant_spans` are the characters that are trained on, `spans`
    those that a message's content became.
    """

    text: str
    assistant_spans: list[tuple[int, int]]
    spans: list[Span]
    findings: list[Finding]
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


@dataclass(frozen=True, eq=False)
class ChatFormat:
    """Tokenizer + chat template + template arguments + stop tokens.

    `tokenizer` is a fast transformers tokenizer, or None to render text alone. `origin` says in words where the
    template comes from.
    """

    tokenizer: object | None
    chat_template: str
    template_kwargs: dict = field(default_factory=dict)
    origin: str = "given"

    @classmethod
    def of(cls, tokenizer, template_kwargs: dict | None = None) -> "ChatFormat":
        """The tokenizer's own template; a base model that has none gets ours, which ends in its end-of-text token."""
        template = tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return cls(tokenizer, template, template_kwargs or {}, "the model's own")
        return cls(tokenizer, preset("plain"), template_kwargs or {}, "plain (the model has none)")

    # ---- rendering ----

    def render(
        self, messages: list[dict], tools: list[dict] | None = None, add_generation_prompt: bool = False
    ) -> Rendered:
        """Messages → text, tokens, roles and loss mask. Raises TemplateError where the template does."""
        text = self._text(messages, tools, add_generation_prompt)
        trained, unsure = self._assistant_spans(messages, tools, add_generation_prompt, text)
        spans = self._content_spans(messages, tools, add_generation_prompt, text)
        findings = [*self._template_findings(messages, spans, text), *_unsure_findings(unsure)]
        if self.tokenizer is None:
            return Rendered(text, trained, spans, findings)
        token_ids, offsets = self._tokenize(text)
        mask = _mask(offsets, trained)
        findings += self._stop_findings(text, token_ids, offsets, trained)
        return Rendered(
            text,
            trained,
            spans,
            findings,
            token_ids,
            self.tokenizer.convert_ids_to_tokens(token_ids),
            offsets,
            _roles(offsets, spans, trained),
            mask,
        )

    def prompt_ids(self, messages: list[dict], tools: list[dict] | None = None) -> list[int]:
        """The token ids that a model is asked with: the conversation and the generation prompt."""
        return self._tokenize(self._text(messages, tools, add_generation_prompt=True))[0]

    def encode(self, conversation: Conversation, max_length: int | None = None) -> Encoded:
        """One training row, cut at `max_length` tokens; the same ids and mask that `render` gives."""
        text = self._text(conversation.messages, conversation.tools, False)
        trained, _ = self._assistant_spans(conversation.messages, conversation.tools, False, text)
        token_ids, offsets = self._tokenize(text)
        labels = [
            token if trained_on else IGNORED
            for token, trained_on in zip(token_ids, _mask(offsets, trained), strict=True)
        ]
        return Encoded(token_ids[:max_length], labels[:max_length], len(token_ids))

    def _text(self, messages: list[dict], tools: list[dict] | None, add_generation_prompt: bool) -> str:
        return self._run_template(messages, tools, add_generation_prompt)[0]

    def _run_template(self, messages, tools, add_generation_prompt) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the characters inside `{% generation %}` marks (none where the template has no marks)."""
        from jinja2 import TemplateError as JinjaError
        from transformers.utils.chat_template_utils import render_jinja_template

        variables = {**getattr(self.tokenizer, "special_tokens_map", {}), **self.template_kwargs}
        try:
            with _rendering:
                texts, marked = render_jinja_template(
                    [messages],
                    tools=tools,
                    chat_template=self.chat_template,
                    return_assistant_tokens_mask=self._has_marks,
                    add_generation_prompt=add_generation_prompt,
                    **variables,
                )
        except (
            JinjaError,
            TypeError,
            ValueError,
            AttributeError,
            LookupError,
            ArithmeticError,
            RecursionError,
        ) as error:
            line = getattr(error, "lineno", None)
            where = f", line {line}" if line else ""
            raise TemplateError(
                f"The chat template does not render this conversation{where}: {error}",
                "Change the conversation to what the template allows, or choose another template.",
            ) from None
        return texts[0], [tuple(span) for span in marked[0]] if marked else []

    @cached_property
    def _has_marks(self) -> bool:
        return bool(_MARKER.search(self.chat_template))

    def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, padding=False, verbose=False
        )
        return encoded["input_ids"], [tuple(offset) for offset in encoded["offset_mapping"]]

    # ---- which characters are trained on ----

    def _assistant_spans(self, messages, tools, add_generation_prompt, text) -> tuple[list[tuple[int, int]], list[int]]:
        """The spans of assistant turns in `text`, and the indices of turns that could not be isolated.

        Where the template has `{% generation %}` marks they decide. Otherwise a turn is what the conversation up
        to and including it has more than its own prompt; that holds only where the one is a prefix of the other
        and of the whole text, and a turn for which it does not hold is left out rather than guessed.
        """
        if self._has_marks:
            return self._run_template(messages, tools, add_generation_prompt)[1], []
        spans, unsure = [], []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            try:
                prompt = self._text(messages[:index], tools, True)
                turn = self._text(messages[: index + 1], tools, False)
            except TemplateError:
                unsure.append(index)
                continue
            if turn.startswith(prompt) and text.startswith(turn) and len(turn) > len(prompt):
                spans.append((len(prompt), len(turn)))
            else:
                unsure.append(index)
        return spans, unsure

    def _content_spans(self, messages, tools, add_generation_prompt, text) -> list[Span]:
        """Where each message's content stands in `text`, found by exchanging it for a probe and comparing.

        Content that the template drops or repeats has no span.
        """
        spans = []
        for index, message in enumerate(messages):
            if not message.get("content"):
                continue
            probed = [*messages[:index], {**message, "content": _PROBE}, *messages[index + 1 :]]
            try:
                before, found, after = self._text(probed, tools, add_generation_prompt).partition(_PROBE)
            except TemplateError:
                continue
            end = len(text) - len(after)
            if found and _PROBE not in after and text.startswith(before) and text.endswith(after) and end > len(before):
                spans.append(Span(len(before), end, message["role"], index))
        return spans

    # ---- when a reply ends ----

    @cached_property
    def stop_token_ids(self) -> list[int]:
        """Tokens that end a reply: the tokenizer's end token, and the control token that ends a turn here."""
        stops = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            text = self._text(probe, None, False)
            trained, _ = self._assistant_spans(probe, None, False, text)
        except TemplateError:
            return stops
        token_ids, offsets = self._tokenize(text)
        control = set(self.tokenizer.added_tokens_decoder)
        ends = [
            token for token, trained_on in zip(token_ids, _mask(offsets, trained), strict=True)
            if trained_on and token in control
        ]  # fmt: skip
        return [*stops, *(ends[-1:] if ends and ends[-1] not in stops else [])]

    # ---- findings ----

    def _template_findings(self, messages, spans, text) -> list[Finding]:
        located = {span.message for span in spans}
        found = [
            Finding(
                "warning",
                "content_dropped",
                f"The template leaves out or rewrites message {index} ({message['role']}).",
                "Choose a template that reads this role, or put the text into a user message.",
            )
            for index, message in enumerate(messages)
            if message.get("content") and index not in located
        ]
        injected = self._injected(messages, spans, text)
        if injected:
            found.append(
                Finding(
                    "note",
                    "default_system",
                    f"The template puts in text that you did not write: “{injected}”.",
                    "Write a system message of your own to replace it.",
                )
            )
        return found

    def _injected(self, messages, spans, text) -> str:
        """What the template says before the first message, such as a default system message; mostly nothing.

        The header of a first user message is told from injected text by the header of a later one.
        """
        if not spans or spans[0].message != 0 or messages[0]["role"] != "user":
            return ""
        later = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            pair = self._text(later, None, False)
            third = self._text([*later, {"role": "user", "content": _PROBE}], None, False)
        except TemplateError:
            return ""
        before, _, _ = third.partition(_PROBE)
        header = before.removeprefix(pair) if before.startswith(pair) else ""
        bos = getattr(self.tokenizer, "bos_token", None) or ""
        return text[: spans[0].start].removesuffix(header).removeprefix(bos).strip() if header else ""

    def _stop_findings(self, text, token_ids, offsets, trained) -> list[Finding]:
        """An assistant turn must end in a stop token, but for white space after it."""
        for start, end in trained:
            inside = [
                token for token, (at, to) in zip(token_ids, offsets, strict=True)
                if start <= at < end and text[at:to].strip()
            ]  # fmt: skip
            if not inside or inside[-1] not in self.stop_token_ids:
                return [
                    Finding(
                        "error",
                        "no_stop_token",
                        "An assistant turn ends in no stop token that is trained on, so the model learns no end.",
                        "Use a template that ends the assistant's turn with the model's end token.",
                    )
                ]
        return []

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
    def load(cls, folder: Path, tokenizer) -> "ChatFormat":
        """The format saved in `folder`, for a tokenizer loaded apart. Raises TemplateError where they do not fit."""
        about = json.loads((folder / "chat_format.json").read_text(encoding="utf-8"))
        template = (folder / "chat_template.jinja").read_bytes().decode()
        chat_format = cls(tokenizer, template, about["template_kwargs"], about["origin"])
        if chat_format.hash != about["sha256"]:
            raise TemplateError(
                f"The chat format in {folder} is not the one that the adapter was trained with: its hash is "
                f"{chat_format.hash[:12]}, not {about['sha256'][:12]}.",
                "Put the run's own tokenizer and chat_template.jinja back, or train again.",
            )
        return chat_format


def preset(name: str) -> str:
    """The source of one of our own templates, such as 'plain' or 'chatml'."""
    return (PRESETS / f"{name}.jinja").read_text(encoding="utf-8")


def to_json(rendered: Rendered) -> dict:
    """What `preview --json` prints."""
    return {
        "text": rendered.text,
        "token_ids": rendered.token_ids,
        "tokens": rendered.tokens,
        "assistant_mask": rendered.assistant_mask,
        "assistant_spans": [list(span) for span in rendered.assistant_spans],
        "findings": [asdict(finding) for finding in rendered.findings],
    }


def _mask(offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """1 for each token that begins inside a span. A token that begins before a span belongs to the prompt."""
    return [int(any(start <= at < end for start, end in spans)) for at, _ in offsets]


def _roles(offsets, spans: list[Span], trained: list[tuple[int, int]]) -> list[str]:
    def role(at: int) -> str:
        for span in spans:
            if span.start <= at < span.end:
                return span.role
        return "assistant" if any(start <= at < end for start, end in trained) else TEMPLATE

    return [role(at) for at, _ in offsets]


def _unsure_findings(unsure: list[int]) -> list[Finding]:
    return [
        Finding(
            "warning",
            "turn_not_isolated",
            f"The template rewrites earlier text, so the turn of message {index} cannot be told apart exactly; "
            "it is not trained on.",
            "Use a template with {% generation %} marks, or split the conversation into several rows.",
        )
        for index in unsure
    ]

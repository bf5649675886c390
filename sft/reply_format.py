"""What a reply has to look like, whatever it says: JSON with its keys and allowed values, one of a few labels, or what
the data set names (`eval_format` in a config).

Found in the answers that a data set wants, so that the same rule judges replies (`valid`) and tells a model that is
prompted (`instruction`). Knows nothing about models.
"""

import json
from collections import Counter
from dataclasses import dataclass, field

import regex

from sft.errors import ConfigError
from sft.json_text import JsonProblem, loads

PATIENCE = 1.0  # seconds that a pattern may take over a reply: some never end, and anybody may write one
MOST_VALUES = 12  # different answers, or values of a key, that can be a closed list
SEEN_OFTEN = 4  # times that each of them occurs on average, if it is one


@dataclass(frozen=True)
class JsonFormat:
    """One JSON object or list. An object has all of `required`, nothing outside `known`, and of each key in `allowed`
    one of its values (as JSON text)."""

    required: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    allowed: dict[str, list[str]] = field(default_factory=dict)

    @property
    def description(self) -> str:
        keys = f" with the keys {', '.join(self.required)}" if self.required else ""
        return _writable(f"JSON{keys}" + (f"; allowed values of {', '.join(self.allowed)}" if self.allowed else ""))

    def valid(self, text: str) -> bool:
        value = json_value(text)
        if not isinstance(value, dict):
            return isinstance(value, list) and not self.required
        keys_fit = set(self.required) <= value.keys() and (not self.known or value.keys() <= set(self.known))
        return keys_fit and all(_word(value[key]) in words for key, words in self.allowed.items() if key in value)

    @property
    def instruction(self) -> str:
        said = ["Answer with one JSON object and nothing else."]
        if self.required:
            said.append(f"Its keys are {', '.join(map(_word, self.required))}.")
        said += [f"{_word(key)} is one of {', '.join(words)}." for key, words in self.allowed.items()]
        return " ".join(said)


@dataclass(frozen=True)
class Labels:
    """One of a few answers, word for word."""

    answers: list[str]

    @property
    def description(self) -> str:
        return f"one of: {self._listed}"

    def valid(self, text: str) -> bool:
        return text.strip() in self.answers

    @property
    def instruction(self) -> str:
        return f"Answer with one of: {self._listed}. Write nothing else."

    @property
    def _listed(self) -> str:
        """In quotes where commas alone would not tell where one ends."""
        commas = any("," in answer for answer in self.answers)
        return ", ".join(f"“{answer}”" if commas else answer for answer in self.answers)


@dataclass(frozen=True)
class Pattern:
    """The whole reply matches a regular expression."""

    pattern: str
    instruction = ""  # an expression tells a model little; the examples show what it means

    @property
    def description(self) -> str:
        return f"regex: {self.pattern}"

    def valid(self, text: str) -> bool:
        try:
            return regex.fullmatch(self.pattern, text.strip(), timeout=PATIENCE) is not None
        except TimeoutError:
            raise ConfigError(
                f"eval_format: the pattern {self.pattern!r} takes more than {PATIENCE:g} s over one reply.",
                "Write it so that a text can match in one way only, without one repetition inside another.",
            ) from None


@dataclass(frozen=True)
class Contains:
    """The reply holds a text, somewhere."""

    text: str

    @property
    def description(self) -> str:
        return f"contains: {self.text}"

    def valid(self, text: str) -> bool:
        return self.text in text

    @property
    def instruction(self) -> str:
        return f"Your answer contains the words: {self.text}"


ReplyFormat = JsonFormat | Labels | Pattern | Contains


def named(text: str) -> Pattern | Contains:
    """What `eval_format` says: 'regex: PATTERN' or 'contains: TEXT'. Raises ValueError where it says neither."""
    kind, colon, rest = text.partition(":")
    rest = rest.strip()
    if not colon or kind not in ("regex", "contains") or not rest:
        raise ValueError(f"must be 'regex: PATTERN' or 'contains: TEXT', not {text!r}")
    if kind == "contains":
        return Contains(rest)
    try:
        regex.compile(rest)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{rest!r} is no regular expression: {error}") from None
    return Pattern(rest)


def wanted_format(given: str | None, answers: list[str]) -> ReplyFormat | None:
    """The format that replies are to have: what `eval_format` says, else what the answers have."""
    return named(given) if given else found_in(answers)


def found_in(answers: list[str]) -> JsonFormat | Labels | None:
    """The format that all of `answers` have, if they are JSON or one of a few labels."""
    values = [json_value(answer) for answer in answers]
    if values and all(isinstance(value, dict) for value in values):
        return _object_format(values)
    if values and all(isinstance(value, dict | list) for value in values):
        return JsonFormat()
    labels = _closed([answer.strip() for answer in answers])
    return Labels(labels) if labels else None


def _object_format(values: list[dict]) -> JsonFormat:
    keys = list(dict.fromkeys(key for value in values for key in value))
    required = [key for key in keys if all(key in value for value in values)]
    closed = {key: _closed([_word(value[key]) for value in values]) for key in required}
    return JsonFormat(required, keys, {key: words for key, words in closed.items() if words})


def _closed(words: list[str]) -> list[str]:
    """The different words, most frequent first, where they are so few that there seem to be no others; else none."""
    counts = Counter(words)
    few = len(counts) <= MOST_VALUES and len(words) >= SEEN_OFTEN * len(counts)
    return [word for word, _ in counts.most_common()] if few else []


def json_value(text: str):
    """The object or list that the whole text is; None for anything else: a bare number or word is no format."""
    try:
        value = loads(text)
    except JsonProblem:
        return None
    return value if isinstance(value, dict | list) else None


def _word(value) -> str:
    """The value as JSON text, the same for values that are equal."""
    return _writable(json.dumps(value, ensure_ascii=False, sort_keys=True))


def _writable(text: str) -> str:
    """JSON can escape half a character ("\\ud800"), which no tokenizer and no file takes: it stays escaped."""
    return text.encode(errors="backslashreplace").decode()

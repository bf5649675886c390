"""Where the characters of a rendered text come from: which message, or the template itself; and what was left out.

Found by rendering alone: a person's words are exchanged for probes, and what the probes stand for in the text is
where the words are. Nothing is guessed: words whose place does not pass this test are said to be left out.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sft.errors import TemplateError
from sft.layout import first_difference, render_text

KEYS = ("reasoning_content", "thinking", "reasoning", "content")  # what of a message somebody wrote
_PRIVATE = [chr(code) for code in range(0xE000, 0xF900)]  # no template looks for these and none trims them
_REPLY = {"role": "assistant", "content": "(the reply)"}


@dataclass(frozen=True)
class Span:
    """Characters `[start, end)` of a rendered text that came from one message."""

    start: int
    end: int
    role: str
    message: int


@dataclass(frozen=True)
class Dropped:
    """Words of a message that the template left out or rewrote; they belong at about character `at`."""

    at: int
    text: str
    role: str
    message: int


@dataclass(frozen=True)
class Prompt:
    """What chat sends to get the last reply, and where the text that training sees parts from it.

    `asked` counts the messages in it. `training` is the conversation with the reply, as training sees it; where there
    is no reply yet, one is made up. `parts_at` is None where `text` begins `training`.
    """

    text: str
    asked: int
    training: str
    parts_at: int | None


@dataclass(frozen=True)
class Origins:
    """`spans` are in the order of the text and do not overlap. `prompt` is None where none can be rendered."""

    spans: list[Span]
    dropped: list[Dropped]
    prompt: Prompt | None
    reads_tools: bool


@dataclass(frozen=True)
class _Words:
    """A text in a message, and the keys that lead to it: `("content",)`, or deeper in its tool calls."""

    message: int
    role: str
    keys: tuple
    text: str


@dataclass(frozen=True)
class _Kept:
    """Characters `[first, last)` of `words` number `words` stand at `start` of the text."""

    start: int
    words: int
    first: int
    last: int


def trace(
    template: str,
    variables: dict,
    messages: list[dict],
    tools: list[dict] | None = None,
    add_generation_prompt: bool = False,
) -> Origins:
    """The origins of the text that these arguments render to. Raises TemplateError where they do not."""

    def render(changed: list[dict]) -> str:
        return render_text(template, variables, changed, tools, add_generation_prompt)

    text = render(messages)
    words = [
        _Words(index, message["role"], keys, text)
        for index, message in enumerate(messages)
        for keys, text in _texts(message)
    ]
    known = set(text).union(*(each.text for each in words))
    mark = next(char for char in _PRIVATE if char not in known)
    kept = _all_at_once(render, messages, words, text, mark)
    if kept is None:  # what a message says changes how the template treats it
        kept = [place for number in range(len(words)) for place in _one(render, messages, words, number, text, mark)]
    spans = [
        Span(place.start, place.start + place.last - place.first, words[place.words].role, words[place.words].message)
        for place in sorted(kept, key=lambda place: place.start)
        if place.first < place.last
    ]
    dropped = [*_dropped(words, kept), *_dropped_calls(render, messages, spans, text)]
    reads_tools = not tools or render_text(template, variables, messages, None, add_generation_prompt) != text
    return Origins(spans, dropped, _prompt(template, variables, messages, tools), reads_tools)


def _texts(message: dict) -> Iterator[tuple[tuple, str]]:
    """What somebody wrote in a message: its words, and the names and texts of its tool calls."""
    for key in KEYS:
        if isinstance(message.get(key), str) and message[key]:
            yield (key,), message[key]
    for at, call in enumerate(message.get("tool_calls") or []):
        inside = ("function",) if isinstance(call.get("function"), dict) else ()
        function = call["function"] if inside else call
        for key, value in (("name", function.get("name")), ("arguments", function.get("arguments"))):
            if isinstance(value, str) and value:
                yield ("tool_calls", at, *inside, key), value
            elif isinstance(value, dict):
                yield from (
                    (("tool_calls", at, *inside, key, name), text)
                    for name, text in value.items()
                    if isinstance(text, str) and text
                )


def _exchanged(value, keys: tuple, text: str):
    """A copy of `value` in which the keys lead to `text`."""
    if not keys:
        return text
    copy = value.copy()
    copy[keys[0]] = _exchanged(value[keys[0]], keys[1:], text)
    return copy


def _all_at_once(render: Callable, messages, words: list[_Words], text: str, mark: str) -> list[_Kept] | None:
    """Every place, by one rendering; None where the template treats the probes unlike the words."""
    probed = list(messages)
    for number, each in enumerate(words):
        probed[each.message] = _exchanged(probed[each.message], each.keys, f"{mark}{number}{mark}")
    forms = {number: _trims(each.text) for number, each in enumerate(words)}
    try:
        return _match(render(probed), text, forms, words, mark)
    except TemplateError:
        return None


def _one(render: Callable, messages, words: list[_Words], number: int, text: str, mark: str) -> list[_Kept]:
    """The places of one message's words: of all of them, or of the part that the template let stand."""
    each = words[number]

    def places(first: int, last: int) -> list[_Kept]:
        probed, probe = list(messages), f"{each.text[:first]}{mark}{number}{mark}{each.text[last:]}"
        probed[each.message] = _exchanged(probed[each.message], each.keys, probe)
        whole = (first, last) == (0, len(each.text))
        try:
            return _match(render(probed), text, {number: _trims(each.text) if whole else [(first, last)]}, words, mark)
        except TemplateError:
            return []

    for part in dict.fromkeys([(0, len(each.text)), *_parts(each.text, text)]):
        if found := places(*part):
            return found
    if each.text.strip() not in text:
        return []
    last = len(each.text.rstrip())  # the words stand there, but how they begin decides what becomes of them
    first = _smallest(last, lambda at: bool(places(at, last)))
    return places(first, last) if first < last else []


def _match(
    probed: str, text: str, forms: dict[int, list[tuple[int, int]]], words: list[_Words], mark: str
) -> list[_Kept] | None:
    """The places of the words in `text`, which is `probed` with one of its forms for each probe; None if it is not."""
    opening, *rest = re.split(f"{mark}([0-9]{{1,9}}){mark}", probed)
    if not text.startswith(opening):
        return None
    at, kept = len(opening), []
    for number, following in zip(map(int, rest[::2]), rest[1::2], strict=True):
        for first, last in forms.get(number, ()):
            if text.startswith(words[number].text[first:last] + following, at):
                kept.append(_Kept(at, number, first, last))
                at += last - first + len(following)
                break
        else:
            return None
    return kept if at == len(text) else None


def _trims(words: str) -> list[tuple[int, int]]:
    """What templates let stand of words that they do not look into: all, or all but white space at the ends."""
    first, last = len(words) - len(words.lstrip()), len(words.rstrip())
    return list(dict.fromkeys([(0, len(words)), (first, max(first, last)), (0, last), (first, len(words))]))


def _parts(words: str, text: str) -> Iterator[tuple[int, int]]:
    """What may have been let stand of words that the template looks into: their longest end or beginning in `text`."""
    last = len(words.rstrip())
    first = _smallest(last, lambda at: words[at:last] in text)
    yield first, last
    yield first + len(words[first:last]) - len(words[first:last].lstrip()), last
    first = len(words) - len(words.lstrip())
    length = len(words) - first
    yield first, len(words) - _smallest(length, lambda less: words[first : len(words) - less] in text)


def _smallest(most: int, holds: Callable[[int], bool]) -> int:
    """The least number up to `most` for which `holds`, which holds for all above it."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _dropped(words: list[_Words], kept: list[_Kept]) -> Iterator[Dropped]:
    """What of the words has no place."""
    at = 0
    for number, each in enumerate(words):
        places = [place for place in kept if place.words == number]
        if len(each.keys) > 1:  # of tool calls it is asked whether the template reads them at all
            continue
        if not places:  # before what else the message says, or after what came before it
            later = [place for place in kept if place.words > number]
            beside = [place.start for place in later if words[place.words].message == each.message]
            yield Dropped(min(beside, default=at), each.text, each.role, each.message)
            continue
        place = places[0]
        end = place.start + place.last - place.first
        if each.text[: place.first]:
            yield Dropped(place.start, each.text[: place.first], each.role, each.message)
        if each.text[place.last :]:
            yield Dropped(end, each.text[place.last :], each.role, each.message)
        at = end


def _dropped_calls(render: Callable, messages, spans: list[Span], text: str) -> Iterator[Dropped]:
    """Tool calls without which the text would be the same."""
    for index, message in enumerate(messages):
        if not message.get("tool_calls"):
            continue
        without = {key: value for key, value in message.items() if key != "tool_calls"}
        try:
            same = render([*messages[:index], without, *messages[index + 1 :]]) == text
        except TemplateError:
            continue
        if same:
            at = max((span.end for span in spans if span.message <= index), default=0)
            yield Dropped(at, json.dumps(message["tool_calls"], ensure_ascii=False), message["role"], index)


def _prompt(template, variables, messages, tools) -> Prompt | None:
    asked = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    answered = messages if messages[-1]["role"] == "assistant" else [*messages, _REPLY]
    try:
        text = render_text(template, variables, asked, tools, True)
        training = render_text(template, variables, answered, tools)
    except TemplateError:
        return None
    parts_at = None if training.startswith(text) else first_difference(text, training)
    return Prompt(text, len(asked), training, parts_at)

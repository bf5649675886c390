"""Findings about tokens: how turns end, what max length cuts, control tokens that are forged, foreign or untrained."""

import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator
from operator import attrgetter, itemgetter
from pathlib import Path

from sft.chat_format import OWN, ChatFormat, Rendered
from sft.embeddings import untrained
from sft.errors import TemplateError
from sft.finding import Finding
from sft.layout import first_difference, has_marks, lay_out, render_text

# What templates write as control tokens. A tokenizer that does not know one splits it into ordinary pieces.
_SURELY_CONTROL = re.compile(r"<[|｜][^\s<>|｜]{1,40}[|｜]>|\[\|[^\s\[\]|]{1,40}\|\]|<(?:start|end)_of_turn>")
# Anything in brackets, but no numbers and no JSON: where a template itself ends a turn in one, it is a stop token.
_BRACKETED = r"""(?:<[^\s<>"']{1,60}>|\[(?=[^\s\[\]"']*[^\W\d])[^\s\[\]"']{1,60}[\]\[])"""
_AT_END = re.compile(_BRACKETED + r"\Z")
_AT_BEGINNING = re.compile(_BRACKETED)
_BEGINNING = re.compile(rf"(?:\s*{_BRACKETED})*")
_PROBE = "\ue000"  # a character of nobody's


def ends(chat_format: ChatFormat, rendered: Rendered) -> Iterator[Finding]:
    """An assistant turn has to end in a stop token, but for white space after it."""
    endless = [span for span in rendered.assistant_spans if not _stops(chat_format, rendered, *span)]
    after = _stops_after_turns(chat_format) if endless else []
    for start, end in endless:
        outside = _next_stop(rendered.text, end, after)
        if outside:
            yield _outside_mask(chat_format, rendered.text, *outside)
        elif start < end:  # else its marks are around nothing, and the doctor says so
            yield _no_stop(chat_format, start, end)


def _outside_mask(chat_format: ChatFormat, text: str, start: int, end: int) -> Finding:
    if has_marks(chat_format.chat_template):
        why, remedy = "is not trained on", "Put the stop token inside the template's {% generation %} marks."
    else:
        why = "is not trained on, because the template writes it only where something follows"
        remedy = "Use a template that ends each turn by itself, the last one too, or that has {% generation %} marks."
    return Finding(
        "error",
        "stop_outside_mask",
        f"The stop token {text[start:end]} of an assistant turn {why}, so the model never learns to stop.",
        remedy,
        start,
        end,
    )


def _no_stop(chat_format: ChatFormat, start: int, end: int) -> Finding:
    remedy = "Use a template that ends the assistant's turn with the model's end token."
    if "eos_token" in chat_format.chat_template and "eos_token" not in chat_format.variables:
        remedy = 'The template names eos_token, and none is given: give it as an argument, {"eos_token": "</s>"}.'
    return Finding(
        "error",
        "no_stop_token",
        "An assistant turn ends in no stop token, so the model never learns to stop.",
        remedy,
        start,
        end,
    )


def _stops(chat_format: ChatFormat, rendered: Rendered, start: int, end: int) -> bool:
    if rendered.token_ids is not None:
        return _last_token(rendered, start, end) in chat_format.stop_token_ids
    # without a tokenizer: whatever looks like a token, and that the template wrote after the words
    before = bisect_left(rendered.spans, end, key=attrgetter("start"))
    said = min(rendered.spans[before - 1].end, end) if before else start
    written = rendered.text[max(start, said) : end].rstrip()
    eos = chat_format.variables.get("eos_token")
    return bool(_AT_END.search(written)) or (bool(eos) and written.endswith(eos))


def _last_token(rendered: Rendered, start: int, end: int) -> int | None:
    """The last token that begins among these characters and is not white space."""
    number = bisect_left(rendered.offsets, end, key=itemgetter(0)) - 1
    while number >= 0 and rendered.offsets[number][0] >= start:
        if rendered.text[slice(*rendered.offsets[number])].strip():
            return rendered.token_ids[number]
        number -= 1
    return None


def _stops_after_turns(chat_format: ChatFormat) -> list[str]:
    """Stop tokens that the template writes after a turn, outside of what is trained on: always, or between turns."""
    user, assistant = {"role": "user", "content": "How heavy?"}, {"role": "assistant", "content": "Two kilos."}
    found = []
    for talk in ([user, assistant], [user, assistant, user]):
        try:
            layout = chat_format.ask(lay_out, talk)
        except TemplateError:
            continue
        for start, end in layout.assistant_spans[:1]:
            eos, after = chat_format.variables.get("eos_token"), layout.text[end:].lstrip()
            header, _, between = layout.text[:start].partition(user["content"])
            written = _AT_BEGINNING.match(after)
            if eos and after.startswith(eos):
                found.append(eos)
            elif written and not _begins_a_turn(written[0], header, between.strip()):
                found.append(written[0])
    return found


def _begins_a_turn(marker: str, header: str, between: str) -> bool:
    """Whether this marker is that of a header: it stands where the text begins, or right before an answer, or before
    what a user says, but not right after it. What a template says by itself may end in a stop token before that."""
    if marker in _BEGINNING.match(header)[0] or between.endswith(marker):
        return True
    return marker in header and not between.startswith(marker)


def _next_stop(text: str, end: int, stops: list[str]) -> tuple[int, int] | None:
    """One of these stop tokens right after a turn, but for white space."""
    at = end + len(text[end : end + 100]) - len(text[end : end + 100].lstrip())
    return next(((at, at + len(stop)) for stop in stops if text.startswith(stop, at)), None)


def cut(chat_format: ChatFormat, rendered: Rendered, max_length: int | None):
    if max_length is None or rendered.token_ids is None or len(rendered.token_ids) <= max_length:
        return
    at = rendered.offsets[max_length][0]
    lost = [end for start, end in rendered.assistant_spans if start + len(rendered.text[start:end].rstrip()) > at]
    yield Finding(
        "warning",
        "stop_cut",
        f"At max length {max_length} the conversation of {len(rendered.token_ids)} tokens is cut here"
        + (f", and with it the stop token of {len(lost)} assistant turn(s)." if lost else "."),
        "Raise max_length, or shorten the conversation.",
        at,
        len(rendered.text),
    )


def tokens_part(chat_format: ChatFormat, rendered: Rendered) -> int | None:
    """The character at which the tokens of the prompt and of the training text part, if they do."""
    prompt = rendered.prompt
    asked, offsets = chat_format.tokenize(prompt.text)
    learned = rendered.token_ids if prompt.training == rendered.text else chat_format.tokenize(prompt.training)[0]
    return next((at for token, other, (at, _) in zip(asked, learned, offsets, strict=False) if token != other), None)


def bos(chat_format: ChatFormat, rendered: Rendered):
    bos = chat_format.variables.get("bos_token")
    if bos and rendered.text.startswith(bos * 2):
        yield Finding(
            "error",
            "doubled_bos",
            f"The text begins with {bos} twice.",
            "Take one of them out of the template.",
            0,
            2 * len(bos),
        )


def forged(
    chat_format: ChatFormat, messages: list[dict], tools: list[dict] | None, rendered: Rendered
) -> Iterator[Finding]:
    """Control tokens that somebody typed: the model reads them as if the template had written them."""
    control = _control(chat_format)
    for span in rendered.spans:
        if typed := control.search(rendered.text, span.start, span.end):
            yield _forged(f"Message {span.message} ({span.role})", typed[0], typed.span(), span.message)
    for index, message in enumerate(messages):
        if typed := _typed(message.get("tool_calls"), control):
            changed = {**message, "tool_calls": _without(message["tool_calls"], typed)}
            others = [*messages[:index], changed, *messages[index + 1 :]]
            place = _read_at(chat_format, rendered, typed, (messages, tools), (others, tools))
            if place and not _somebodys(rendered, place[0]):  # else it is told above
                yield _forged(f"A tool call of message {index}", typed, place, index)
    if typed := _typed(tools, control):
        place = _read_at(chat_format, rendered, typed, (messages, tools), (messages, _without(tools, typed)))
        if place:
            yield _forged("A tool's description", typed, place, None)


def _forged(where: str, token: str, place: tuple, message: int | None) -> Finding:
    return Finding(
        "warning",
        "forged_turn",
        f"{where} holds the control token {token}, which the model reads as a real one: whoever wrote it can end the "
        "turn and begin another.",
        "Take it out, or keep control tokens out of what visitors may type.",
        *place,
        message,
    )


def _control(chat_format: ChatFormat) -> re.Pattern:
    """What the tokenizer reads as control tokens; without one, what looks like one too."""
    added = chat_format.tokenizer.added_tokens_decoder.values() if chat_format.tokenizer else []
    template = chat_format.chat_template
    # a token that is neither special nor written by the template may be a run of spaces, or an HTML tag
    known = [str(token) for token in added if token.special or (str(token).strip() and str(token) in template)]
    known += [value for name, value in chat_format.variables.items() if name.endswith("_token") and value]
    looks = [] if chat_format.tokenizer else [_SURELY_CONTROL.pattern]
    return re.compile("|".join([*map(re.escape, sorted(known, key=len, reverse=True)), *looks]) or r"(?!)")


def _typed(value, control: re.Pattern) -> str | None:
    """The first control token in the texts and the names of what a tool is called with or described by."""
    waiting = [value]  # a list, not recursion: JSON may be nested deeper than Python calls
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item.values(), *item.keys()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, str) and (found := control.search(item)):
            return found[0]
    return None


def _without(value, token: str):
    """The same value with a probe for the token, wherever it stands."""
    written = json.dumps(token, ensure_ascii=False)[1:-1]
    return json.loads(json.dumps(value, ensure_ascii=False).replace(written, _PROBE))


def _read_at(chat_format: ChatFormat, rendered: Rendered, token: str, told: tuple, probed: tuple) -> tuple | None:
    """Where the text holds the token that a probe stands for, (None, None) if it is not told, None if nowhere."""
    try:
        text, changed = (chat_format.ask(render_text, *each) for each in (told, probed))
    except TemplateError:
        return None, None
    if text == changed:
        return None
    at = first_difference(text, changed)
    return (at, at + len(token)) if rendered.text.startswith(token, at) else (None, None)


def markers(chat_format: ChatFormat, rendered: Rendered, trained: Collection[int] = ()) -> Iterator[Finding]:
    """Markers of the template that the tokenizer does not know, or that the model never learned.

    `trained` are tokens whose embeddings a tuning will train.
    """
    if chat_format.tokenizer is None:
        return
    added = {str(token): number for number, token in chat_format.tokenizer.added_tokens_decoder.items()}
    first, last = _written(rendered)
    foreign = [name for name in first if name not in added]
    # zephyr and models like it write their headers as plain text, and were tuned that way
    if foreign and chat_format.origin != OWN:
        yield _foreign(foreign, [name for name in foreign if name in last], first)
    where = chat_format.tokenizer.name_or_path
    kept_here = bool(where) and Path(where).is_dir()
    idle = untrained(Path(where), [added[name] for name in first if name in added], added.values()) if kept_here else []
    names = [name for name in first if added.get(name) in idle and added[name] not in trained]
    if names:
        yield Finding(
            "warning",
            "untrained_marker",
            f"The model was never trained on {', '.join(names)}: in its embedding matrix they cannot be told from "
            "control tokens that no text holds. LoRA on the linear layers alone does not teach them.",
            "Use the plain template, whose turns end in the model's own end-of-text token, or train these tokens too: "
            f"trainable_token_indices: {','.join(names)}.",
            *first[names[0]],
        )


def _written(rendered: Rendered) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """The markers that the template wrote, each with its first place, and those of them that end assistant turns."""
    text, first, last = rendered.text, {}, set()
    for match in _SURELY_CONTROL.finditer(text):
        if not _somebodys(rendered, match.start()):
            first.setdefault(match[0], match.span())
            turn = bisect_left(rendered.assistant_spans, match.end(), key=itemgetter(0)) - 1
            if turn >= 0:
                start, end = rendered.assistant_spans[turn]
                inside = start <= match.start() and not text[match.end() : end].strip() and match.end() <= end
                last |= {match[0]} if inside else set()
    return first, last


def _somebodys(rendered: Rendered, at: int | None) -> bool:
    """Whether somebody wrote this character, and not the template."""
    before = 0 if at is None else bisect_left(rendered.spans, at + 1, key=attrgetter("start"))
    return bool(before) and at < rendered.spans[before - 1].end


def _foreign(foreign: list[str], ending: list[str], first: dict[str, tuple[int, int]]) -> Finding:
    split = "which this tokenizer splits into ordinary pieces"
    if ending:
        said = f"The template ends turns in {', '.join(ending)}, {split}: it is another model's template."
    else:
        said = f"The template writes {', '.join(foreign)}, {split}: it may be another model's template."
    return Finding(
        "error" if ending else "warning",
        "marker_not_a_token",
        said,
        "Choose the model's own template, or a preset made for it.",
        *first[(ending or foreign)[0]],
    )


def padding(chat_format: ChatFormat):
    tokenizer = chat_format.tokenizer
    if tokenizer is not None and tokenizer.pad_token is not None and tokenizer.pad_token == tokenizer.eos_token:
        yield Finding(
            "note",
            "pad_is_eos",
            f"The padding token is also the end token ({tokenizer.eos_token}). That is harmless here: what is trained "
            "on is told by position, not by token, so real end tokens keep their labels.",
            "Nothing here. Elsewhere, check that labels of the end token are not masked with the padding.",
        )

"""What is wrong, or worth knowing, about a template and a conversation: findings, each with a remedy and its place.

Reads what `ChatFormat.render` and `traits` found; renders nothing itself but for two questions about the date.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sft.chat_format import ChatFormat, Rendered
from sft.embeddings import untrained
from sft.errors import TemplateError, quoted
from sft.layout import frozen, lay_out, render_text
from sft.origins import Dropped, first_difference
from sft.traits import Traits

LEVELS = ("error", "warning", "note")
# What templates write as control tokens. A tokenizer that does not know one splits it into ordinary pieces.
_MARKER = re.compile(r"<\|[^\s<>|]{1,40}\|>|<(?:start|end)_of_turn>|</?s>|\[/?INST\]")
_SURELY_CONTROL = re.compile(r"<\|[^\s<>|]{1,40}\|>|<(?:start|end)_of_turn>")
# Two moments that every form of a date or a time writes apart from its first character on.
_MOMENTS = (datetime(1987, 2, 3, 4, 5, 6), datetime(2012, 11, 24, 17, 38, 49))


@dataclass(frozen=True)
class Finding:
    """Something that a person should know. `level` is 'error', 'warning' or 'note'.

    `start` and `end` are characters of the rendered text, `message` the index of a message; None where it has no
    place of that kind.
    """

    level: str
    code: str
    message: str
    remedy: str
    start: int | None = None
    end: int | None = None
    message_index: int | None = None


def examine(
    chat_format: ChatFormat,
    messages: list[dict],
    tools: list[dict] | None,
    rendered: Rendered,
    max_length: int | None = None,
) -> list[Finding]:
    """Every finding about a rendering, the worst first. Raises TemplateError like `render`."""
    about = chat_format.traits
    found = [
        *_origin(chat_format),
        *_turns(rendered),
        *_ends(chat_format, rendered),
        *_cut(chat_format, rendered, max_length),
        *_prompt(chat_format, rendered),
        *_bos(chat_format, rendered),
        *_injected(about, messages, rendered),
        *_dropped(messages, tools, rendered),
        *_forged(chat_format, messages, rendered),
        *_markers(chat_format, rendered),
        *_day(chat_format, messages, tools, rendered),
        *_alternation(about),
        *_padding(chat_format),
    ]
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def not_rendered(error: TemplateError) -> Finding:
    """What there is to say where the template raises."""
    return Finding("error", "does_not_render", error.message, error.hint)


def to_json(rendered: Rendered, findings: list[Finding]) -> dict:
    """What `preview --json` prints."""
    return {
        "text": rendered.text,
        "token_ids": rendered.token_ids,
        "tokens": rendered.tokens,
        "assistant_mask": rendered.assistant_mask,
        "assistant_spans": [list(span) for span in rendered.assistant_spans],
        "findings": [vars(finding) for finding in findings],
    }


def _origin(chat_format: ChatFormat):
    if chat_format.origin.startswith("plain"):
        yield Finding(
            "note",
            "no_template",
            "The model comes without a chat template, as base models do; ours for base models is used.",
            "Nothing, if the model is a base model. Otherwise choose the template that it was tuned with.",
        )


def _turns(rendered: Rendered):
    for index in rendered.unsure:
        yield Finding(
            "warning",
            "turn_not_isolated",
            f"The turn of message {index} cannot be isolated: the template writes it, or what comes before it, "
            "otherwise here than when the model is asked for it. It is not trained on.",
            "Use a template with {% generation %} marks, or split the conversation so that this turn comes last.",
            message_index=index,
        )
    for start, end in rendered.assistant_spans:
        if not rendered.text[start:end].strip():
            yield Finding(
                "warning", "nothing_to_learn", "An assistant turn is empty.", "Give it content.", start, end
            )  # fmt: skip


def _ends(chat_format: ChatFormat, rendered: Rendered):
    """An assistant turn has to end in a stop token, but for white space after it."""
    for start, end in rendered.assistant_spans:
        if _stops(chat_format, rendered, start, end):
            continue
        outside = _next_marker(chat_format, rendered, end)
        if outside:
            yield Finding(
                "error",
                "stop_outside_mask",
                f"The stop token {rendered.text[slice(*outside)]} of an assistant turn is not trained on, so the "
                "model never learns to stop.",
                "Put the stop token inside the template's {% generation %} marks.",
                *outside,
            )
        else:
            yield Finding(
                "error",
                "no_stop_token",
                "An assistant turn ends in no stop token, so the model never learns to stop.",
                "Use a template that ends the assistant's turn with the model's end token.",
                start,
                end,
            )


def _stops(chat_format: ChatFormat, rendered: Rendered, start: int, end: int) -> bool:
    text = rendered.text[start:end].rstrip()
    if rendered.token_ids is None:
        ends = [match for match in _MARKER.finditer(text) if match.end() == len(text)]
        eos = chat_format.variables.get("eos_token")
        return bool(ends) or (bool(eos) and text.endswith(eos))
    inside = [
        token
        for token, (at, to) in zip(rendered.token_ids, rendered.offsets, strict=True)
        if start <= at < end and rendered.text[at:to].strip()
    ]
    return bool(inside) and inside[-1] in chat_format.stop_token_ids


def _next_marker(chat_format: ChatFormat, rendered: Rendered, end: int) -> tuple[int, int] | None:
    """A stop token that stands after a turn, outside its mask: it stands there too where nothing comes after."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        alone = chat_format.ask(lay_out, talk)
    except TemplateError:
        return None
    tail = alone.text[alone.assistant_spans[-1][1] :].strip() if alone.assistant_spans else ""
    if not _MARKER.fullmatch(tail) and tail != chat_format.variables.get("eos_token"):
        return None
    at = rendered.text.find(tail, end) if tail else -1
    return (at, at + len(tail)) if at >= 0 and not rendered.text[end:at].strip() else None


def _cut(chat_format: ChatFormat, rendered: Rendered, max_length: int | None):
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


def _prompt(chat_format: ChatFormat, rendered: Rendered):
    prompt = rendered.prompt
    if prompt is None:
        return
    if prompt.parts_at is not None:
        here = prompt.training == rendered.text and prompt.parts_at < len(rendered.text)
        yield Finding(
            "error",
            "prompt_not_prefix",
            "What chat sends is not how the training text begins: chat continues with "
            f"{quoted(prompt.text[prompt.parts_at :])}, training with {quoted(prompt.training[prompt.parts_at :])}. "
            "The model is asked in a way that it never saw.",
            "Choose a template whose generation prompt is the header of its assistant turns, or template arguments "
            "that make it so.",
            prompt.parts_at if here else None,
            prompt.parts_at + 1 if here else None,
        )
    elif chat_format.tokenizer is not None and (at := _tokens_part(chat_format, rendered)) is not None:
        yield Finding(
            "warning",
            "prompt_tokens_differ",
            "The prompt and the training text are split into other tokens where the reply begins, so chat asks with "
            "tokens that training never saw there.",
            "Let the generation prompt end in a control token or a line break, not in a word or a space.",
            *_shared(rendered, at, len(prompt.text)),
        )
    if prompt.text.endswith((" ", "\t")):
        yield Finding(
            "warning",
            "prompt_trailing_space",
            "The prompt ends in white space. Tokens mostly begin with their space, so the reply begins with a token "
            "that is rare there.",
            "Take the white space from the end of the generation prompt.",
            *_shared(rendered, len(prompt.text.rstrip(" \t")), len(prompt.text)),
        )


def _shared(rendered: Rendered, start: int, end: int) -> tuple[int | None, int | None]:
    """These characters of the prompt, where the rendered text has them too."""
    return (start, end) if rendered.text.startswith(rendered.prompt.text[:end]) else (None, None)


def _tokens_part(chat_format: ChatFormat, rendered: Rendered) -> int | None:
    """The character at which the tokens of the prompt and of the training text part, if they do."""
    prompt = rendered.prompt
    asked, offsets = chat_format.tokenize(prompt.text)
    learned = rendered.token_ids if prompt.training == rendered.text else chat_format.tokenize(prompt.training)[0]
    return next((at for token, other, (at, _) in zip(asked, learned, offsets, strict=False) if token != other), None)


def _bos(chat_format: ChatFormat, rendered: Rendered):
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


def _injected(about: Traits, messages: list[dict], rendered: Rendered):
    at = rendered.text.find(about.injected) if about.injected else -1
    if at < 0 or (about.replaceable and messages[0]["role"] == "system"):
        return
    remedy = "Write a system message of your own to replace it." if about.replaceable else "Know that it is there."
    yield Finding(
        "note",
        "default_system",
        f"The template puts in text that you did not write: {quoted(about.injected)}.",
        remedy,
        at,
        at + len(about.injected),
    )


def _dropped(messages: list[dict], tools, rendered: Rendered):
    for each in rendered.dropped:
        if not each.text.strip() or _written_again(each, rendered.text):
            continue
        whole = each.role == "system" and each.text == messages[each.message].get("content")
        yield Finding(
            "warning",
            "system_dropped" if whole else "content_dropped",
            f"The template leaves out or rewrites {'' if whole else 'words of '}message {each.message} "
            f"({each.role}): {quoted(each.text)}.",
            "Choose a template that reads it, or put the text into a user message.",
            each.at,
            each.at,
            each.message,
        )
    trimmed = [each for each in rendered.dropped if not each.text.strip()]
    if trimmed:
        yield Finding(
            "note",
            "whitespace_trimmed",
            f"The template trims white space around message {_numbers(each.message for each in trimmed)}.",
            "Nothing, unless the white space matters.",
            trimmed[0].at,
            trimmed[0].at,
            trimmed[0].message,
        )
    if tools and not rendered.reads_tools:
        yield Finding(
            "warning",
            "tools_dropped",
            "The template does not tell the model about the tools.",
            "Choose a template that reads tools.",
        )


def _written_again(each: Dropped, text: str) -> bool:
    """Whether the template took these words out, as thinking is, and put the same there itself."""
    return text.startswith(each.text, each.at) or text.endswith(each.text, 0, each.at)


def _forged(chat_format: ChatFormat, messages: list[dict], rendered: Rendered):
    """Control tokens that somebody typed: the model reads them as if the template had written them."""
    added = chat_format.tokenizer.added_tokens_decoder.values() if chat_format.tokenizer else []
    template = chat_format.chat_template
    # a token that is neither special nor written by the template may be a run of spaces, or an HTML tag
    known = [str(token) for token in added if token.special or (str(token).strip() and str(token) in template)]
    known += [value for name, value in chat_format.variables.items() if name.endswith("_token") and value]
    pattern = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True)))) if known else _SURELY_CONTROL
    for span in rendered.spans:
        typed = pattern.search(rendered.text, span.start, span.end)
        if typed:
            yield Finding(
                "warning",
                "forged_turn",
                f"Message {span.message} ({span.role}) holds the control token {typed[0]}, which the model reads "
                "as a real one: whoever wrote it can end the turn and begin another.",
                "Take it out, or keep control tokens out of what visitors may type.",
                *typed.span(),
                span.message,
            )


def _markers(chat_format: ChatFormat, rendered: Rendered):
    """Markers of the template that the tokenizer does not know, or that the model never learned."""
    if chat_format.tokenizer is None:
        return
    added = {str(token): number for number, token in chat_format.tokenizer.added_tokens_decoder.items()}
    written = [
        match
        for match in _SURELY_CONTROL.finditer(rendered.text)
        if not any(span.start <= match.start() < span.end for span in rendered.spans)
    ]
    first = {}
    for match in written:
        first.setdefault(match[0], match.span())
    foreign = [name for name in first if name not in added]
    if foreign:
        yield Finding(
            "error",
            "marker_not_a_token",
            f"The template writes {', '.join(foreign)}, which this tokenizer splits into ordinary pieces: it is "
            "another model's template.",
            "Choose the model's own template, or a preset made for it.",
            *first[foreign[0]],
        )
    where = chat_format.tokenizer.name_or_path
    kept_here = bool(where) and Path(where).is_dir()
    idle = untrained(Path(where), [added[name] for name in first if name in added], added.values()) if kept_here else []
    if idle:
        names = [name for name in first if added.get(name) in idle]
        yield Finding(
            "warning",
            "untrained_marker",
            f"The model was never trained on {', '.join(names)}: in its embedding matrix they cannot be told from "
            "control tokens that no text holds. LoRA on the linear layers alone does not teach them.",
            "Use the plain template, whose turns end in the model's own end-of-text token.",
            *first[names[0]],
        )


def _day(chat_format: ChatFormat, messages, tools, rendered: Rendered):
    template = chat_format.chat_template
    if "strftime_now" not in template:
        return
    texts = [
        chat_format.run(render_text, frozen(template, moment), chat_format.variables, messages, tools)
        for moment in _MOMENTS
    ]
    if texts[0] != texts[1]:
        at = first_difference(*texts)
        line = rendered.text[at:].partition("\n")[0]
        yield Finding(
            "note",
            "depends_on_today",
            "The template writes today's date, so tomorrow the same conversation is another text.",
            "Freeze the date. A run freezes it by itself, on the day that it starts.",
            at,
            at + len(line),
        )


def _alternation(about: Traits):
    if about.ability("same role twice").verdict == "refused":
        yield Finding(
            "note",
            "roles_alternate",
            "The template accepts only conversations in which user and assistant take turns.",
            "Join messages of the same role that follow each other.",
        )
    if about.ability("system message").verdict == "refused":
        yield Finding(
            "note",
            "system_refused",
            "The template refuses system messages.",
            "Put instructions into the first user message.",
        )
    if about.generation_prompt == "":
        yield Finding(
            "note",
            "no_generation_prompt",
            "The template does the same with and without a generation prompt.",
            "Nothing, if its prompts end where a reply begins: see the prompt that chat sends.",
        )


def _padding(chat_format: ChatFormat):
    tokenizer = chat_format.tokenizer
    if tokenizer is not None and tokenizer.pad_token is not None and tokenizer.pad_token == tokenizer.eos_token:
        yield Finding(
            "note",
            "pad_is_eos",
            f"The padding token is also the end token ({tokenizer.eos_token}). That is harmless here: what is trained "
            "on is told by position, not by token, so real end tokens keep their labels.",
            "Nothing here. Elsewhere, check that labels of the end token are not masked with the padding.",
        )


def _numbers(numbers) -> str:
    return ", ".join(map(str, dict.fromkeys(numbers)))

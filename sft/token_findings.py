"""Findings about tokens: how turns end, what max length cuts, control tokens that are forged, foreign or untrained."""

import re
from pathlib import Path

from sft.chat_format import ChatFormat, Rendered
from sft.embeddings import untrained
from sft.errors import TemplateError
from sft.finding import Finding
from sft.layout import lay_out

# What templates write as control tokens. A tokenizer that does not know one splits it into ordinary pieces.
_MARKER = re.compile(r"<\|[^\s<>|]{1,40}\|>|<(?:start|end)_of_turn>|</?s>|\[/?INST\]")
_SURELY_CONTROL = re.compile(r"<\|[^\s<>|]{1,40}\|>|<(?:start|end)_of_turn>")


def ends(chat_format: ChatFormat, rendered: Rendered):
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


def forged(chat_format: ChatFormat, messages: list[dict], rendered: Rendered):
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


def markers(chat_format: ChatFormat, rendered: Rendered):
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

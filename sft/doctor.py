"""What is wrong, or worth knowing, about a template and a conversation: findings, each with a remedy and its place.

Reads what `ChatFormat.render` and `traits` found; renders nothing itself but for two questions about the date.
"""

from datetime import datetime

from sft import token_findings
from sft.chat_format import NONE, ChatFormat, Rendered
from sft.errors import TemplateError, quoted
from sft.finding import LEVELS, Finding
from sft.layout import frozen, render_text
from sft.origins import Dropped, first_difference
from sft.traits import Traits

# Two moments that every form of a date or a time writes apart from its first character on.
_MOMENTS = (datetime(1987, 2, 3, 4, 5, 6), datetime(2012, 11, 24, 17, 38, 49))


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
        *token_findings.ends(chat_format, rendered),
        *token_findings.cut(chat_format, rendered, max_length),
        *_prompt(chat_format, rendered),
        *token_findings.bos(chat_format, rendered),
        *_injected(about, messages, rendered),
        *_dropped(messages, tools, rendered),
        *token_findings.forged(chat_format, messages, tools, rendered),
        *token_findings.markers(chat_format, rendered),
        *_day(chat_format, messages, tools, rendered),
        *_alternation(about),
        *token_findings.padding(chat_format),
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
    if chat_format.origin == NONE:
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
    elif chat_format.tokenizer is not None and (at := token_findings.tokens_part(chat_format, rendered)) is not None:
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
            "Choose a template that reads it"
            + (", or put the text into a user message." if whole else ", or leave it out yourself."),
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


def _numbers(numbers) -> str:
    return ", ".join(map(str, dict.fromkeys(numbers)))

"""Messages → text by a chat template, and which characters of it are trained on. By rendering alone.

Knows nothing about tokens. `lay_out` is a function of plain data that gives plain data, so that it can run in the
sandbox's process as well as here.
"""

import json
import re
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date
from functools import lru_cache

from sft.errors import TemplateError

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
# transformers tracks `{% generation %}` on the compiled template itself, so two threads must not render at once.
_rendering = threading.Lock()
_REPLY = "\ue000"  # no template looks for it
_FROZEN = "{% macro strftime_now(format) %}"  # how a frozen template begins
_CLOCK = [f"%{code}" for code in "YymBbdeAajHIMSpZzFTxXcDuwU"]


@dataclass(frozen=True)
class Layout:
    """A rendered text and the characters `[start, end)` that are trained on.

    `unsure` are the indices of assistant messages whose turn could not be told apart, so it is not trained on.
    """

    text: str
    assistant_spans: list[tuple[int, int]]
    unsure: list[int]


@lru_cache(maxsize=64)
def has_marks(template: str) -> bool:
    """Whether the template says itself, by `{% generation %}`, what the assistant writes."""
    return bool(_MARK.search(_COMMENT.sub("", template)))


def render_text(
    template: str,
    variables: dict,
    messages: list[dict],
    tools: list[dict] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """The text that transformers' `apply_chat_template` gives.

    Raises TemplateError where the template does not render.
    """
    return _render(template, variables, messages, tools, add_generation_prompt, marks=False)[0]


def lay_out(
    template: str,
    variables: dict,
    messages: list[dict],
    tools: list[dict] | None = None,
    add_generation_prompt: bool = False,
) -> Layout:
    """The text and what of it is trained on.

    Where the template has `{% generation %}` marks they decide. Otherwise a turn is what the conversation up to and
    including it has more than the prompt that asked for it. That holds only where the prompt begins the text, and
    where the turn stands in the text as it stood when it was the last; a turn for which it does not hold is left out
    rather than guessed.
    """
    if has_marks(template):
        text, spans = _render(template, variables, messages, tools, add_generation_prompt, marks=True)
        return Layout(text, spans, [])
    text = render_text(template, variables, messages, tools, add_generation_prompt)
    spans, unsure = [], []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            ended = text if index + 1 == len(messages) and not add_generation_prompt else None
            span = _turn(template, variables, messages[: index + 1], tools, text, ended)
            spans += [span] if span else []
            unsure += [] if span else [index]
    return Layout(text, spans, unsure)


def lay_out_all(
    template: str, variables: dict, conversations: list[tuple[list[dict], list[dict] | None]]
) -> list[Layout | None]:
    """`lay_out` of many (messages, tools); None for one that the template refuses."""
    return [_lay_out_or_none(template, variables, *conversation) for conversation in conversations]


def _lay_out_or_none(template, variables, messages, tools) -> Layout | None:
    try:
        return lay_out(template, variables, messages, tools)
    except TemplateError:
        return None


def _turn(template, variables, messages, tools, text, ended) -> tuple[int, int] | None:
    """The span of the last of `messages` in `text`, or None where it is not certain.

    `ended` is what they render to without a generation prompt, where that is known: rendering takes most of the time.
    """
    try:
        asked = render_text(template, variables, messages[:-1], tools, True)
        if not text.startswith(asked):
            return None
        for ending in _endings(template, json.dumps(variables, sort_keys=True)):
            if ending is None and ended is not None:
                answered = ended
            else:
                answered = render_text(template, variables, messages, tools, ending is not None)
            if not answered.endswith(ending or ""):
                continue
            answered = answered.removesuffix(ending or "")
            if text.startswith(answered) and len(answered) > len(asked):
                return len(asked), len(answered)
    except TemplateError:
        pass
    return None


@lru_cache(maxsize=64)
def _endings(template: str, variables: str) -> list[str | None]:
    """What to take from the end of a rendered turn to have the turn alone, the surest first. None is nothing.

    A conversation may end in more, or in something else, than a turn does. Then what stands before the next generation
    prompt is the turn, and that prompt is what to take away; some templates add one always.
    """
    settings, opening = json.loads(variables), _generation_prompt(template, variables)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _REPLY}]
    try:
        ended, asked, goes_on = (
            render_text(template, settings, messages, None, prompted)
            for messages, prompted in ((talk, False), (talk, True), ([*talk, talk[0]], False))
        )
    except TemplateError:
        return [None]
    same = first_difference(ended, goes_on)
    if same < len(ended) and same >= ended.find(_REPLY) + len(_REPLY) and asked.startswith(ended):
        header = render_text(template, settings, [], None, True)  # it has nothing else to say of no messages
        return [header] if header else []
    return [None, opening] if opening else [None]


def generation_prompt(template: str, variables: dict) -> str | None:
    """What `add_generation_prompt` adds after a user's message; None where that cannot be told."""
    return _generation_prompt(template, json.dumps(variables, sort_keys=True))


@lru_cache(maxsize=64)
def _generation_prompt(template: str, variables: str) -> str | None:
    user = [{"role": "user", "content": "a"}]
    for changed in ({}, {"eos_token": ""}):  # some templates end a conversation, but no prompt, in this token
        settings = {**json.loads(variables), **changed}
        try:
            closed, asked = (render_text(template, settings, user, None, prompted) for prompted in (False, True))
        except TemplateError:
            break
        if asked.startswith(closed):
            return asked.removeprefix(closed)
    return None


def _render(template, variables, messages, tools, add_generation_prompt, marks) -> tuple[str, list[tuple[int, int]]]:
    """The text, and the characters inside `{% generation %}` marks."""
    from jinja2 import TemplateError as JinjaError
    from transformers.utils.chat_template_utils import render_jinja_template

    # as apply_chat_template does: templates tell a missing key from one that is there
    messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
    try:
        with _rendering if has_marks(template) else nullcontext():
            texts, spans = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        texts[0].encode()  # a template can write half a character, which no tokenizer takes
    except (
        JinjaError,
        TypeError,
        ValueError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
        AssertionError,
        MemoryError,
        SyntaxError,  # of the Python that jinja2 makes of the template: a `break` outside a loop, 21 loops in a row
    ) as error:
        raise _explained(error, first=2 if template.startswith(_FROZEN) else 1) from None
    return texts[0], [tuple(span) for span in spans[0]] if spans else []


def _explained(error: Exception, first: int) -> TemplateError:
    """What a template did wrong, and in which of its lines, of which `first` is the first of its own."""
    line = None if isinstance(error, SyntaxError) else getattr(error, "lineno", None)
    frame = error.__traceback__
    while frame:  # jinja2 gives the frames of a template's code the lines of its source
        line = frame.tb_lineno if frame.tb_frame.f_code.co_filename == "<template>" else line
        frame = frame.tb_next
    line = line and line - first + 1
    where = f", line {line}" if line else ""
    said = error.msg if isinstance(error, SyntaxError) else str(error)  # without the line of jinja2's Python
    reason = said or {MemoryError: "it needs too much memory"}.get(type(error), type(error).__name__)
    if type(error).__name__ in ("TemplateSyntaxError", "SyntaxError"):
        said, hint = "does not render at all", "Mend its source there, or choose another template."
    elif unknown := re.fullmatch(r"'(\w+)' is undefined", reason):
        said = "does not render this conversation"
        hint = f"Give {unknown[1]} a value in the template arguments (--template-kwargs), or choose another template."
    else:
        said = "does not render this conversation"
        hint = "Change the conversation to what the template allows, or choose another template."
    return TemplateError(f"The chat template {said}{where}: {reason}", hint, line, reason)


def frozen(template: str, moment: date) -> str:
    """The template with `moment` for the real one, so that it renders alike tomorrow.

    A macro in its first line takes the place of transformers' `strftime_now`.
    """
    if "strftime_now" not in template:
        return template
    said = {code: moment.strftime(code) for code in _CLOCK} | {"%-d": str(moment.day), "%-m": str(moment.month)}
    told = "".join(f" | replace({json.dumps(code)}, {json.dumps(words)})" for code, words in said.items())
    return f"{_FROZEN}{{{{ format{told} }}}}{{% endmacro %}}\n{template}"


def first_difference(one: str, other: str) -> int:
    """The first character that is not the same in both."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

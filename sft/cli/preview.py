"""`preview`: the text, tokens and loss mask of a conversation."""

from pathlib import Path

from sft.cli.options import add_command, add_json, day, format_of, positive, print_json
from sft.errors import ConfigError, MessagesError


def add_to(commands) -> None:
    preview = add_command(commands, "preview", _preview, "show the text, tokens and loss mask of a conversation")
    preview.add_argument("--messages", metavar="FILE", required=True, help="JSON: messages, or {messages, tools}")
    source = preview.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="ID", default="embedded", help="whose template (default: embedded)")
    source.add_argument("--template", metavar="FILE", help="a Jinja template alone, without a tokenizer")
    preview.add_argument("--template-kwargs", metavar="JSON", help="further variables of the template")
    preview.add_argument("--date", metavar="DAY", type=day, help="freeze today's date, as 2024-07-26")
    preview.add_argument("--max-length", metavar="N", type=positive, help="say what a cut at N tokens takes away")
    preview.add_argument("--chat-with", metavar="TEMPLATE", help="a preset or file: what if chat used that one?")
    preview.add_argument("--generation-prompt", action="store_true", help="end with the assistant's header")
    add_json(preview)


def _preview(options) -> None:
    from sft import doctor, sandbox
    from sft.messages import parse_conversation
    from sft.mismatch import to_json

    sandbox.warm()  # while the rest is imported
    conversation = parse_conversation(_read_json(options.messages))
    chat_format = _format_to_preview(options)
    asked = conversation.messages, conversation.tools
    rendered = chat_format.render(*asked, options.generation_prompt)
    findings = doctor.examine(chat_format, *asked, rendered, options.max_length)
    foretold = _mismatch(chat_format, options.chat_with, *asked) if options.chat_with else None
    if options.json:
        more = {"mismatch": to_json(foretold)} if foretold else {}
        print_json(doctor.to_json(rendered, findings) | more)
        return
    print(_marked(rendered.text, rendered.assistant_spans))
    if rendered.token_ids is not None:
        print(f"\n{len(rendered.token_ids)} tokens, {sum(rendered.assistant_mask)} trained on (between ⟦ and ⟧)")
    for finding in findings:
        print(f"{finding.level}: {finding.message}\n  → {finding.remedy}")
    if foretold:
        _print_mismatch(foretold, options.chat_with)


def _format_to_preview(options):
    from sft.chat_format import ChatFormat
    from sft.config import template_arguments
    from sft.sandbox import guarded

    kwargs = template_arguments(options.template_kwargs) if options.template_kwargs is not None else {}
    if options.template:
        if options.max_length:
            raise ConfigError(
                "--max-length counts tokens, and a template alone has none.", "Give --model instead of --template."
            )
        chat_format = ChatFormat(None, _read_text(options.template), kwargs, options.template)
    else:
        chat_format = format_of(options.model, kwargs)
    return guarded(chat_format.as_of(options.date) if options.date else chat_format)


def _mismatch(chat_format, other: str, messages: list[dict], tools):
    from dataclasses import replace

    from sft.chat_format import preset, presets
    from sft.mismatch import mismatch
    from sft.sandbox import guarded

    if other not in presets() and not Path(other).exists():
        known = ", ".join(presets())
        raise ConfigError(
            f"{other} is neither a preset nor a file.", f"Give one of {known}, or the path of a template."
        )
    source = preset(other) if other in presets() else _read_text(other)
    chatted = guarded(replace(chat_format, chat_template=source, origin=other))
    return mismatch(chat_format, chatted, messages, tools)


def _print_mismatch(found, other: str) -> None:
    verdict = "they fit" if found.harmless else "they do not fit"
    if found.harmless and found.stops is None:
        verdict = "their texts fit"
    print(f"Tuned with this, chatted with {other}: {verdict}.")
    for line in found.said():
        print(f"  {line}")


def _marked(text: str, spans: list[tuple[int, int]]) -> str:
    for start, end in sorted(spans, reverse=True):
        text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
    return text


def _read_text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} cannot be read: there is no such file.", "Give the path of a text file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "Give the path of a text file.") from None


def _read_json(path: str):
    from sft.json_text import JsonProblem, loads

    try:
        return loads(_read_text(path).removeprefix("\ufeff"))  # some editors write this mark before the text
    except JsonProblem as problem:
        said = f"{path} is not JSON: line {problem.line}: {problem.said}"
        raise MessagesError(said, 'Write [{"role": "user", "content": "Hello"}].') from None

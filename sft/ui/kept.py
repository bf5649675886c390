"""A conversation as a file: JSON to go on with and to ask again, Markdown to read.

What is opened is a visitor's file: nothing in it is believed.
"""

import json
from dataclasses import asdict, fields
from importlib.metadata import version

from sft.errors import RunError, TemplateError, UserError
from sft.prompts import TEMPLATES
from sft.ui.talk import PROMPTED, Pane, Talk, Who, contest_of, empty
from sft.ui.who import check_offered

KIND = "sft-playground conversation 1"
LARGEST = 2_000_000  # bytes; hundreds of turns
LIBRARIES = ("torch", "transformers", "peft", "tokenizers")
_TYPES = {
    "run": (str,), "base": (str,), "step": (int, type(None)), "third": (str,), "third_system": (str,),
    "other_format": (bool,),
}  # fmt: skip
_RANGES = {"temperature": (0, 2), "top_p": (0.05, 1), "max_new_tokens": (8, 512), "seed": (0, 2**32 - 1)}


def to_json(talk: Talk, names: list[str]) -> str:
    """All that it takes to ask the same again. `names` says what each pane's model is."""
    panes = [
        {
            "model": name,
            "messages": pane.history,
            "prompt_token_ids": pane.prompt,
            "reply_token_ids": pane.reply.token_ids if pane.reply else [],
            "note": pane.note,
        }
        for pane, name in zip(talk.panes, names, strict=False)
    ]
    about = {
        "kind": KIND,
        "who": asdict(talk.who),
        "system": talk.system,
        "template": talk.template,
        "sampling": asdict(talk.sampling) if talk.sampling else None,
        "chat_format": talk.format_hash,
        "versions": {name: version(name) for name in LIBRARIES},
        "panes": panes,
    }
    return json.dumps(about, indent=2, ensure_ascii=False)


def to_markdown(talk: Talk, names: list[str]) -> str:
    """The same to read: questions, and what each answered. All that was said is indented, so that it is no markup."""
    settings = [f"- template: {talk.template}", f"- chat format: {talk.format_hash[:12]}"]
    if talk.sampling:
        settings += [f"- {name}: {value}" for name, value in asdict(talk.sampling).items()]
    parts = ["# A conversation", "\n".join(settings)]
    if talk.system:
        parts += ["**System message**", _quoted(talk.system)]
    if talk.who.third == PROMPTED:
        parts += ["**System message of the prompted base model**", _quoted(talk.who.third_system or "(none)")]
    for turn, question in enumerate(talk.questions):
        parts += [f"## {turn + 1}. Question", _quoted(question)]
        for pane, name in zip(talk.panes, names, strict=False):
            parts += [f"**{name}**", _quoted(pane.history[2 * turn + 1]["content"])]
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def opened(owner: str, source: bytes) -> Talk:
    """The conversation in a kept file. Raises UserError where it is none, or can no longer be gone on with."""
    talk, settings = read(source)
    check_offered(owner, talk.who)
    contest = contest_of(owner, talk.who)
    if settings["chat_format"] not in ("", contest.chat_format.hash):
        raise TemplateError(
            f"This conversation was held in another chat format (hash {settings['chat_format'][:12]}, now "
            f"{contest.chat_format.hash[:12]}): the same questions would be put in other tokens.",
            "Put the run's tokenizer and chat_template.jinja back as they were, or begin a new conversation.",
        )
    from sft.chat import Sampling

    if drawn := settings["sampling"]:
        counts = int(drawn["max_new_tokens"]), int(drawn["seed"])
        talk.sampling = Sampling(float(drawn["temperature"]), float(drawn["top_p"]), *counts)
    talk.format_hash = settings["chat_format"]
    return talk


def read(source: bytes) -> tuple[Talk, dict]:
    """The conversation without sampling, and the file's `sampling` and `chat_format`. Raises UserError."""
    if len(source) > LARGEST:
        raise UserError(f"The file has {len(source):,} bytes.", f"A kept conversation has at most {LARGEST:,}.")
    try:
        about = json.loads(source.decode("utf-8"))
        if about["kind"] != KIND:
            raise ValueError
        talk = empty(_who(about["who"]), _one_of(about["template"], TEMPLATES))
        talk.system = _text(about["system"])
        histories = [_history(pane["messages"]) for pane in about["panes"]]
        settings = {"sampling": _sampling(about["sampling"]), "chat_format": _text(about["chat_format"])}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            "This is not a conversation that was kept here, or it was changed since.",
            "Open a file that “Download as JSON” made.",
        ) from None
    if len(histories) != len(talk.panes) or len({len(history) for history in histories}) > 1:
        raise RunError("The file's conversation has not one history for each who answers.", "Open another file.")
    talk.panes = [Pane(history, turns=[None] * (len(history) // 2)) for history in histories]
    return talk, settings


def _who(about: dict) -> Who:
    if set(about) != {field.name for field in fields(Who)}:
        raise ValueError
    if not all(type(about[name]) in kinds for name, kinds in _TYPES.items()):  # type: True is an instance of int
        raise ValueError
    who = Who(**about)
    if bool(who.run) == bool(who.base):
        raise ValueError
    for words in (who.run, who.base, who.third, who.third_system):
        _text(words)
    return who


def _history(messages: list) -> list[dict]:
    """Question and reply in turn, of strings."""
    roles = ["user", "assistant"] * (len(messages) // 2)
    if [message["role"] for message in messages] != roles:
        raise ValueError
    return [{"role": message["role"], "content": _text(message["content"])} for message in messages]


def _sampling(about: dict | None) -> dict | None:
    if about is None:
        return None
    if set(about) != set(_RANGES) or not all(low <= about[name] <= high for name, (low, high) in _RANGES.items()):
        raise ValueError
    return about


def _one_of(value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError
    return value


def _text(value) -> str:
    """A string that can be written: JSON allows half of a surrogate pair, which no page and no file can hold."""
    if not isinstance(value, str):
        raise TypeError
    value.encode("utf-8")
    return value

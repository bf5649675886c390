"""Roles, messages and conversations, and the rules they keep.

Knows nothing about files, templates or tokens. Every rule is checked before anything is reported, so that a
person mends a conversation once, not problem by problem.
"""

from dataclasses import dataclass, field

from sft.errors import MessagesError, listed

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Conversation:
    """The messages of one example: dicts of `role`, `content` and whatever else a template reads.

    `tools` are JSON schemas of functions that the assistant may call, or None. `place` is where a person finds
    the example ("line 7"), for whoever has to name it; the same words in two places are the same conversation.
    """

    messages: list[dict]
    tools: list[dict] | None = None
    place: str = field(default="", compare=False)


def problems(messages, for_training: bool = False) -> list[str]:
    """Every rule that `messages` breaks, each with the index of its message; empty when all is well.

    `for_training` adds what a training example needs: an assistant message that says something.
    """
    if not isinstance(messages, list):
        return [f"messages must be a list of {{role, content}} objects, not {_kind(messages)}"]
    if not messages:
        return ["messages is empty"]
    found = []
    for index, message in enumerate(messages):
        found += [f"message {index}: {problem}" for problem in _message_problems(message, index)]
    roles = [message.get("role") for message in messages if isinstance(message, dict)]
    if roles.count("system") > 1:
        found.append("there are two system messages; keep one, as the first message")
    if for_training and not found:
        answers = [message for message in messages if message["role"] == "assistant"]
        if not answers:
            found.append("there is no assistant message, so there is nothing to learn from")
        found += [
            f"message {index}: the assistant's content is empty"
            for index, message in enumerate(messages)
            if message["role"] == "assistant"
            and not (message.get("content") or "").strip()
            and not message.get("tool_calls")
        ]
    return found


def _message_problems(message, index: int) -> list[str]:
    if not isinstance(message, dict):
        return [f"must be an object with role and content, not {_kind(message)}"]
    found = []
    role = message.get("role")
    if role not in ROLES:
        given = f"unknown role {role!r}" if "role" in message else "has no role"
        found.append(f"{given}; a role is one of {', '.join(ROLES)}")
    if role == "system" and index > 0:
        found.append("a system message must be the first; move it to the top")
    found += [f"{key!r} {problem}" for key, value in message.items() for problem in _unicode_problems([key, value])]
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        found.append("tool_calls must be a list of objects")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return found
    if "content" not in message:
        found.append("has no content")
    elif not isinstance(content, str):
        found.append(f"content must be text, not {_kind(content)}{_other_parts(content)}")
    return found


def _other_parts(content) -> str:
    """What makes a list of parts more than text: images and the like, which no model here reads."""
    parts = content if isinstance(content, list) else []
    kinds = {part.get("type") for part in parts if isinstance(part, dict) and isinstance(part.get("type"), str)}
    return f" with parts of type {', '.join(sorted(kinds - {'text'}))}" if kinds - {"text"} else ""


def tools_problems(tools) -> list[str]:
    """Every rule that the `tools` of a conversation break; None is no tools, and well."""
    if tools is None:
        return []
    if not isinstance(tools, list):
        return [f"tools must be a list of JSON schemas, not {_kind(tools)}"]
    found = [
        f"tools must be a list of JSON schemas, but item {index} is {_kind(tool)}"
        for index, tool in enumerate(tools)
        if not isinstance(tool, dict)
    ]
    return found + [f"tools {problem}" for problem in _unicode_problems(tools)]


def _unicode_problems(value) -> list[str]:
    """JSON can escape half a character ("\\ud800"), which no tokenizer and no file takes. Looks into all of `value`."""
    waiting = [value]  # a list, not recursion: JSON may be nested deeper than Python calls
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError as error:
                return [f"holds {item[error.start]!r}, which is not valid Unicode text"]
    return []


def parse_conversation(value, for_training: bool = False) -> Conversation:
    """A list of messages, or an object with `messages` (and `tools`), as a Conversation.

    Raises MessagesError that names every problem.
    """
    messages, tools = value, None
    if isinstance(value, dict):
        if "messages" not in value:
            keys = ", ".join(map(str, value)) or "nothing"
            raise MessagesError(
                f"The conversation is an object with {keys}, but without messages.",
                'Give a list of messages, or an object {"messages": [...]}.',
            )
        messages, tools = value["messages"], value.get("tools")
    found = problems(messages, for_training) + tools_problems(tools)
    if found:
        raise MessagesError(
            f"The conversation breaks {'a rule' if len(found) == 1 else f'{len(found)} rules'}:\n{listed(found)}",
            'Mend that; each message looks like {"role": "user", "content": "Hello"}.',
        )
    return Conversation(messages, tools or None)


def _kind(value) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)

"""Columns → messages: which shape a table has, and how a row of that shape is read.

A shape is found by the columns of the first rows, whatever the case of their names, or said by the setting `columns`.
Knows nothing about the rules of messages.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sft.errors import ConfigError, DataError, listed
from sft.json_text import JsonProblem, loads
from sft.tables import Table

Reader = Callable[[dict], object]  # a row → its messages, whatever was written there; KeyError where a column lacks

FIRST_ROWS = 20  # a shape is found by these, so that one bad row does not decide
LEFT_SIDES = ("system", "user", "assistant", "messages")  # of the setting `columns`
SENDERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bot", "bing", "bard", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}


class UnknownShape(DataError):
    """Nobody can tell from their names what the columns hold; the setting `columns` can say it."""


@dataclass(frozen=True)
class Shape:
    """Rows that have all of `columns` are read by `read`, or refused: why, and what to do instead."""

    name: str
    columns: tuple[str, ...]
    read: Reader | None = None
    refusal: str = ""
    remedy: str = ""

    def messages(self, row: dict):
        row = _in_lower_case(row)
        return _with_system(self.read(row), row.get("system") or row.get("system_prompt"))


# ---- how rows are read ----


def _dialog(column: str) -> Reader:
    """A list of messages, each with role and content or, as ShareGPT has it, with from and value."""

    def read(row: dict):
        turns = json_cell(row, column)
        return [_message(turn) for turn in turns] if isinstance(turns, list) else turns

    return read


def _message(turn):
    if not isinstance(turn, dict) or turn.get("role") is not None or "from" not in turn:
        return turn
    sender, value = turn["from"], turn.get("value")
    role = SENDERS.get(sender, sender) if isinstance(sender, str) else sender  # JSON can hold what no dict has as key
    call = _call(value) if sender == "function_call" else None
    if call:
        return {"role": role, "content": "", "tool_calls": [{"type": "function", "function": call}]}
    return {"role": role, "content": value}


def _call(value) -> dict | None:
    """A function call that is written as JSON; any other stays text, as the assistant said it."""
    try:
        call = loads(value) if isinstance(value, str) else value
        arguments = call["arguments"]
        return {"name": call["name"], "arguments": loads(arguments) if isinstance(arguments, str) else arguments}
    except (JsonProblem, KeyError, TypeError):
        return None


def _pair(asked: Sequence[str], answer: Sequence[str]) -> Reader:
    """One question and one answer, each from a column or from several joined."""

    def read(row: dict):
        return [
            {"role": "user", "content": _joined(row, asked)},
            {"role": "assistant", "content": _joined(row, answer)},
        ]

    return read


def _joined(row: dict, columns: Sequence[str]):
    """The texts of the columns with a blank line between. All but the first may be missing or empty, as Alpaca's input
    may. What is no text comes back as it is, for the rules to name."""
    first, *more = columns
    parts = [part for part in (row[first], *map(row.get, more)) if part not in (None, "")]
    odd = [part for part in parts if not isinstance(part, str)]
    if odd or not parts:
        return odd[0] if odd else row[first]
    return "\n\n".join(parts)


def _completion(row: dict):
    prompt, completion = _messages_or_text(row["prompt"]), _messages_or_text(row["completion"])
    if not isinstance(prompt, list):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(completion, list):
        completion = [{"role": "assistant", "content": completion}]
    return prompt + completion


def _messages_or_text(value):
    """A prompt or completion is text even where it looks like JSON, unless it is messages and nothing else."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        parsed = loads(value)
    except JsonProblem:
        return value
    return parsed if parsed and all(isinstance(item, dict) and "role" in item for item in parsed) else value


def json_cell(row: dict, column: str):
    """CSV has no lists: there a list of messages or tools is a cell of JSON text. Raises JsonProblem."""
    value = row[column]
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return loads(value)
    except JsonProblem as problem:
        raise JsonProblem(f"{column} is not valid JSON: {problem.said}", problem.line) from None


def _with_system(messages, system):
    """A system column goes before messages that have no system message of their own."""
    if not system or not isinstance(messages, list):
        return messages
    if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def tidied(message):
    """Without what is only padding: columnar formats give every message every key, and some write a text as parts."""
    if not isinstance(message, dict):
        return message
    message = {key: value for key, value in message.items() if value is not None or key == "content"}
    parts = message.get("content")
    if isinstance(parts, list) and parts and all(_is_text(part) for part in parts):
        message["content"] = "".join(part["text"] for part in parts)
    return message


def _is_text(part) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


# ---- which shape a table has ----

# The first shape whose columns are all there is taken, so the more particular come first.
SHAPES = [
    Shape("messages", ("messages",), _dialog("messages")),
    Shape("conversations (ShareGPT)", ("conversations",), _dialog("conversations")),
    Shape("conversation", ("conversation",), _dialog("conversation")),
    Shape(
        "preference pairs",
        ("chosen", "rejected"),
        refusal="has a chosen and a rejected answer in each row. That is for preference tuning, a stage after SFT, "
        "which is not done here",
        remedy='To learn the chosen answers alone, set columns: "messages=chosen" where they are conversations, or '
        '"user=prompt, assistant=chosen" where they are text.',
    ),
    Shape(
        "judged answers",
        ("prompt", "completion", "label"),
        refusal="has a label that says whether each answer is good. That is for preference tuning, a stage after SFT; "
        "here the bad answers would be learnt too",
        remedy='Keep the good rows alone, then set columns: "user=prompt, assistant=completion".',
    ),
    Shape("prompt + completion", ("prompt", "completion"), _completion),
    Shape("instruction + output (Alpaca)", ("instruction", "output"), _pair(("instruction", "input"), ("output",))),
    Shape(
        "instruction + response (Dolly)", ("instruction", "response"), _pair(("instruction", "context"), ("response",))
    ),
    Shape("question + answer", ("question", "answer"), _pair(("question",), ("answer",))),
    Shape("question + response", ("question", "response"), _pair(("question",), ("response",))),
    Shape("prompt + response", ("prompt", "response"), _pair(("prompt",), ("response",))),
    Shape("query + response", ("query", "response"), _pair(("query",), ("response",))),
    Shape("input + output", ("input", "output"), _pair(("input",), ("output",))),
    *(
        Shape(
            "single messages",
            ("role", column),
            refusal="has one message in each row. A row must be a whole conversation",
            remedy='Put the messages of each conversation into one row: {"messages": [...]}.',
        )
        for column in ("content", "text")  # a bare list of messages; OpenAssistant's trees
    ),
    Shape(
        "text",
        ("text",),
        refusal="has plain text. Without roles it cannot be told what to answer and what to read, so there is nothing "
        "to supervise",
        remedy="Give messages, or a question and an answer column. Raw text is for pretraining.",
    ),
]


def shape_of(table: Table, columns: str | None = None) -> tuple[str, Reader]:
    """The name of the table's shape and its reader: what `columns` says, or what the first rows look like.

    Raises DataError where no shape is found or none that can be trained on, ConfigError where `columns` does not fit.
    """
    first = _first(table)
    if columns is not None:
        return f"columns {columns}", _mapping(table, first, columns)
    named = [_in_lower_case(row).keys() for row in first]

    def fit(shape: Shape) -> float:
        """How many rows have the columns; from a half on all shapes are equal, and the first is taken."""
        return min(sum(names >= set(shape.columns) for names in named), len(first) / 2)

    shape = max(SHAPES, key=fit)
    if not fit(shape):
        raise _unknown(table, first)
    if shape.read is None:
        raise DataError(f"{table.source} {shape.refusal} (columns: {_listed(_names(first))}).", shape.remedy)
    return shape.name, shape.messages


def _first(table: Table) -> list[dict]:
    return [table.rows[index] for index in range(min(len(table.rows), FIRST_ROWS))]


def _in_lower_case(row: dict) -> dict:
    return {name.strip().lower(): value for name, value in row.items()} | row


def column_names(table: Table) -> list[str]:
    return _names(_first(table))


def _names(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _listed(names: list[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name[:60] for name in names[:limit]) + more


def _unknown(table: Table, first: list[dict]) -> UnknownShape:
    return UnknownShape(
        f"{table.source}: no shape is known with the columns {_listed(_names(first))}.",
        f'Say what the columns hold, as in columns: "{_example(first)}" (check has --columns for it), or rename them '
        "to messages, or to question and answer.",
    )


def _example(first: list[dict]) -> str:
    """A setting `columns` for a table like this: a good guess, made of columns that are there."""
    sides = _guess(first)
    return written(sides if "messages" in sides else {"user": ["…"], "assistant": ["…"]} | sides)


def guess(table: Table) -> dict[str, list[str]]:
    """What the columns may hold, as far as the first rows tell: a side of the setting `columns` → columns."""
    return _guess(_first(table))


def _guess(first: list[dict]) -> dict[str, list[str]]:
    names = _names(first)
    dialogs = [name for name in names if any(isinstance(row.get(name), list) for row in first)]
    if dialogs:
        return {"messages": dialogs[:1]}
    texts = [name for name in names if any(isinstance(row.get(name), str) for row in first)] or names
    worded = [name for name in texts if any(" " in str(row.get(name)) for row in first)]  # no number and no key
    texts = worded if len(worded) > 1 else texts
    return {side: [name] for side, name in zip(("user", "assistant"), texts, strict=False)}


def written(sides: dict[str, list[str]]) -> str:
    """The setting `columns` that says this."""
    return ", ".join(f"{side}={'+'.join(columns)}" for side, columns in sides.items() if columns)


# ---- the setting `columns` ----


def _mapping(table: Table, first: list[dict], text: str) -> Reader:
    """The reader that the setting says: "user=Frage+Text, assistant=Antwort", or "messages=dialog"."""
    names, found, sides = _names(first), [], {}
    for part in text.split(","):
        side, _, columns = (piece.strip() for piece in part.partition("="))
        if side not in LEFT_SIDES or not columns:
            found.append(f"{part.strip()!r} is not {' or '.join(f'{side}=COLUMN' for side in LEFT_SIDES)}")
        elif side in sides:
            found.append(f"{side} is given twice")
        else:
            sides[side] = [columns] if columns in names else [name.strip() for name in columns.split("+")]
            found += [problem for name in sides[side] for problem in _column_problems(name, names)]
    found = found or _side_problems(sides)
    if found:
        raise ConfigError(
            f"columns {text!r} does not fit {table.source}:\n{listed(found)}",
            f'Its columns are {_listed(names)}. Write columns like "{_example(first)}".',
        )
    read = _dialog(sides["messages"][0]) if "messages" in sides else _pair(sides["user"], sides["assistant"])
    system = sides.get("system")
    return lambda row: _with_system(read(row), _joined(row, system) if system else None)


def _column_problems(name: str, names: list[str]) -> list[str]:
    if name in names:
        return []
    near = difflib.get_close_matches(name.lower(), [known.lower() for known in names], n=1)
    meant = next((known for known in names if near and known.lower() == near[0]), None)
    return [f"there is no column {name!r}" + (f"; did you mean {meant!r}?" if meant else "")]


def _side_problems(sides: dict[str, list[str]]) -> list[str]:
    if "messages" not in sides:
        return [f"no {side}= is given" for side in ("user", "assistant") if side not in sides]
    found = ["messages takes one column"] if len(sides["messages"]) > 1 else []
    return found + [f"{side} cannot be given beside messages" for side in ("user", "assistant") if side in sides]

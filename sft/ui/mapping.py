"""The form that asks what a table's columns hold where their names do not say it. It writes the setting `columns`."""

import gradio as gr

from sft.data import conversations
from sft.errors import UserError
from sft.shapes import UnknownShape, column_names, guess, written
from sft.tables import Table
from sft.ui import paint

SIDES = ("user", "assistant", "system", "messages")
_ABOUT = {
    "user": ("User", "what is asked; several columns are joined"),
    "assistant": ("Assistant", "the answer, which is learned"),
    "system": ("System (optional)", "goes before the rest"),
    "messages": ("Or: messages", "a column with whole conversations"),
}
SHOWN = 600  # characters of a message in the preview


def fields() -> list[gr.Dropdown]:
    """A dropdown of columns for each side."""
    return [
        gr.Dropdown(
            [], label=label, info=info, multiselect=side == "user", min_width=210 if side == "user" else 150,
            interactive=True, elem_id=f"column-{side}",
        )
        for side, (label, info) in _ABOUT.items()
    ]  # fmt: skip


def offered(table: Table) -> list[dict]:
    """The updates that fill the fields with the table's columns and a first guess."""
    # A name with a comma or a plus cannot be written in the setting, and one with spaces around it is not found.
    names = [name for name in column_names(table) if name and name == name.strip() and not set(name) & set(",+")]
    guessed = {side: [name for name in columns if name in names] for side, columns in guess(table).items()}
    optional = [("none", "")]
    updates = []
    for side in SIDES:
        value, several = guessed.get(side, []), side == "user"
        choices = names if side in ("user", "assistant") else [*optional, *((name, name) for name in names)]
        none = None if side == "assistant" else ""
        updates.append(gr.update(choices=choices, value=value if several else next(iter(value), none)))
    return updates


def question(error: UserError) -> str:
    """Why the form is there: no mistake where the names of the columns just say nothing."""
    if not isinstance(error, UnknownShape):
        return paint.problem("These rows cannot be read as conversations", error.message, error.hint)
    return (
        f'<div class="card asks" role="status"><h4>What do the columns hold?</h4>{paint.escape(error.message)}'
        '<p class="hint">→ Choose the columns below. The run reads its rows in the same way.</p></div>'
    )


def setting(user: list[str] | None, assistant: str | None, system: str | None, messages: str | None) -> str:
    """The setting that the fields say. Whole conversations need no user and no assistant."""
    system = [system] if system else []
    if messages:
        return written({"messages": [messages], "system": system})
    return written({"user": user or [], "assistant": [assistant] if assistant else [], "system": system})


def first_row(table: Table, picked: list) -> str:
    """The first row as the fields say it, or what they lack."""
    try:
        return _preview(table, setting(*picked))
    except UserError:  # a side is still missing
        return paint.empty("Choose the columns of the user and of the assistant to see the first row.")


def _preview(table: Table, columns: str) -> str:
    row = next(conversations(table, columns, [0]))
    if row.conversation is None:
        return paint.problem(f"{row.place} as these columns say it", "; ".join(row.problems), "Choose others.")
    turns = "".join(
        f'<li><b class="chip role-{message["role"]}">{message["role"]}</b> '
        f"<span>{paint.escape(_short(message.get('content') or ''))}</span></li>"
        for message in row.conversation.messages
    )
    return f'<h4>{paint.escape(row.place)} as these columns say it</h4><ol class="mapped">{turns}</ol>'


def _short(text) -> str:
    text = str(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"

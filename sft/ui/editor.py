"""The message editor, which lives on the page (editor.js), and what goes to it and comes back.

The page changes roles and contents alone. All else of a conversation passes through it as JSON text: JavaScript would
change numbers and the order of keys, and what is shown would not be what is trained on.
"""

import json

import gradio as gr

from sft.errors import DataError
from sft.messages import ROLES


def build(conversation: dict) -> gr.HTML:
    """Its event `input` says that the conversation is another one, whoever changed it."""
    return gr.HTML(
        to_page(conversation),
        roles=list(ROLES),
        html_template="<div></div>",
        js_on_load="window.sftEditor(element, props, watch, () => trigger('input'));",
        apply_default_css=False,
        elem_id="editor",
    )


def to_page(conversation: dict) -> dict:
    """A conversation (messages and tools, as `parse_conversation` reads it) as the editor's value."""
    messages = [
        {"role": message["role"], "content": message.get("content") or "", "whole": json.dumps(message)}
        for message in conversation["messages"]
    ]
    return {"messages": messages, "tools": json.dumps(conversation["tools"])}


def from_page(value: dict) -> dict:
    """The conversation that the editor's value is. Raises DataError where it is none."""
    try:
        messages = [_message(each["role"], each["content"], each.get("whole")) for each in value["messages"]]
        return {"messages": messages, "tools": json.loads(value["tools"])}
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as error:
        raise DataError("What came from the message editor is not a conversation.", "Reload the page.") from error


def _message(role: str, content: str, whole: str | None) -> dict:
    if whole is None:  # it was added on the page
        return {"role": role, "content": content}
    message = json.loads(whole) | {"role": role}
    if content != (message.get("content") or ""):
        message["content"] = content
    return message

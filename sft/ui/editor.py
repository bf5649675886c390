"""The message editor: a role and a text field for each message, and the ways to change their number and order."""

import time
from collections.abc import Callable

import gradio as gr

from sft.messages import ROLES

_QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def build(demo: gr.Blocks, conversation_st: gr.State, shape_st: gr.State, live: Callable) -> None:
    """Draws the messages of `conversation_st`, anew only when `shape_st` says that messages came, went or moved.

    `live(trigger, change, inputs)` wires a change that leaves the editor as it is: `change(*inputs, conversation)`
    makes it in place and says whether there was any, and the views follow in the same round trip.
    """

    @gr.render([conversation_st, shape_st], [demo.load, shape_st.change], show_progress="hidden")
    def draw(conversation, shape):
        messages = conversation["messages"]
        for index, message in enumerate(messages):
            with gr.Group(elem_classes=f"turn role-{message['role']} m-{index}"):
                with gr.Row(equal_height=True):
                    role_dd = gr.Dropdown(
                        ROLES, value=message["role"], label=f"Role of message {index}", interactive=True,
                        show_label=False, container=False, min_width=130, scale=3,
                    )  # fmt: skip
                    up_btn = gr.Button("↑", size="sm", min_width=36, elem_id=f"up-{index}", interactive=index > 0)
                    down_btn = gr.Button("↓", size="sm", min_width=36, interactive=index < len(messages) - 1)
                    remove_btn = gr.Button("✕", size="sm", min_width=36, elem_id=f"remove-{index}")
                content_tb = gr.Textbox(
                    message.get("content") or "", lines=1, max_lines=12, label=f"Content of message {index}",
                    show_label=False, container=False, elem_id=f"content-{index}", interactive=True,
                )  # fmt: skip
            live(content_tb.input, _write("content", index), [content_tb])
            live(role_dd.input, _write("role", index), [role_dd])
            up_btn.click(_move(index, -1), conversation_st, shape_st, **_QUIET)
            down_btn.click(_move(index, 1), conversation_st, shape_st, **_QUIET)
            remove_btn.click(_remove(index), conversation_st, shape_st, **_QUIET)


def _write(key: str, index: int) -> Callable:
    def written(value, conversation) -> bool:
        messages = conversation["messages"]
        if index >= len(messages) or (messages[index].get(key) or "") == value:
            return False
        messages[index] = {**messages[index], key: value}
        return True

    return written


def _move(index: int, by: int) -> Callable:
    def moved(conversation) -> int:
        conversation["messages"].insert(index + by, conversation["messages"].pop(index))
        return time.time_ns()

    return moved


def _remove(index: int) -> Callable:
    def removed(conversation) -> int:
        del conversation["messages"][index : index + 1]  # none, where it was pressed twice
        return time.time_ns()

    return removed


def add_message(conversation: dict) -> int:
    """A message more, of the role whose turn it is. Returns when."""
    messages = conversation["messages"]
    role = "assistant" if messages and messages[-1]["role"] == "user" else "user"
    messages.append({"role": role, "content": ""})
    return time.time_ns()

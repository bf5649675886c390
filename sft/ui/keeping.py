"""Keeping a conversation: download it, open it again, ask it all again."""

from collections.abc import Callable

import gradio as gr

from sft.errors import UserError
from sft.ui.inputs import user_errors
from sft.ui.kept import opened, to_json, to_markdown
from sft.ui.panes import models_of
from sft.ui.proof_view import names
from sft.ui.talk import Talk, Who
from sft.ui.turning import leave
from sft.ui.who import choices, value_of

_QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def build(owner_st: gr.State, talk_st: gr.State) -> dict:
    """Builds the panel and wires the downloads. Returns its buttons for opening and asking again."""
    with gr.Accordion("Keep this conversation", open=False, elem_id="keep"):
        gr.Markdown(
            "A file holds who answered, the settings and every word, but no weights. Asked again, each question gets a "
            "new reply in place of the old one, and it is said whether they are the same; Stop ends it there."
        )
        with gr.Row():
            json_btn = gr.Button("Download as JSON", size="sm", min_width=150, elem_id="keep-json")
            markdown_btn = gr.Button("Download as Markdown", size="sm", min_width=150, elem_id="keep-markdown")
            open_btn = gr.UploadButton(
                "Open a kept one", size="sm", min_width=150, file_types=[".json"], type="binary", elem_id="keep-open"
            )
            again_btn = gr.Button("Ask it all again", size="sm", min_width=150, elem_id="keep-again")
        file_tb = gr.Textbox(visible=False)
    for button, written, name in (
        (json_btn, to_json, "conversation.json"),
        (markdown_btn, to_markdown, "conversation.md"),
    ):
        button.click(user_errors(_writer(written)), [owner_st, talk_st], file_tb, **_QUIET).success(
            None, file_tb, None, js=f"(text) => saveAs('{name}', text)", **_QUIET
        )
    return {"open_btn": open_btn, "again_btn": again_btn}


def _writer(written: Callable) -> Callable:
    def write(owner, talk: Talk) -> str:
        if not talk.questions:
            gr.Info("Nothing was said yet.")
            return ""
        return written(talk, _models(owner, talk.who))

    return write


def _models(owner, who: Who) -> list[str]:
    """What answered in each pane; by name alone where a run has been deleted since: its words can still be kept."""
    try:
        return models_of(owner, who)
    except UserError:
        return names(who)


def open_kept(owner, file: bytes, talk: Talk, kept: dict) -> tuple:
    """Leaves the conversation for one from a file.

    Returns that, all that are kept, who answers in it, its template, and its four settings of sampling.
    """
    now = opened(owner, file)
    leave(talk, kept)
    kept[now.key] = now  # found again, should the page be turning just now
    drawn = now.sampling
    settings = (drawn.temperature, drawn.top_p, drawn.max_new_tokens, drawn.seed) if drawn else (gr.skip(),) * 4
    return now, kept, gr.update(choices=choices(owner), value=value_of(now.who)), now.template, *settings

"""The page: composes the tabs. One file a tab; each builds its components, then its handlers, then the wiring.

Nothing here is 'the current run' of the process: every handler is told whose page it serves and which run it is
about. Locally there is one owner; on a Space each browser keeps an unguessable token.
"""

import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from sft import launch
from sft.runs import list_runs, runs_dir
from sft.ui import chat, preview, run_view, tune, visitors, who
from sft.ui.floor import quiet
from sft.ui.readiness import READINESS
from sft.ui.talk import Talk

_HERE = Path(__file__).parent
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}


def theme() -> gr.Theme:
    """Soft, with colours moved until they pass WCAG AA in light and dark."""
    return gr.themes.Soft(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_500",
        block_label_text_color="*primary_700",
        block_title_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )


def launch_options() -> dict:
    """What `Blocks.launch` is called with, apart from host and port."""
    return {
        "theme": theme(),
        "css": _all("*.css"),
        "head": f"<script>{_all('*.js')}</script>",
        "ssr_mode": False,
        "run_history": False,
        "enable_monitoring": False,
        "strict_cors": True,
        "max_file_size": "200mb",
        "footer_links": [],
    }


def _all(pattern: str) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in sorted(_HERE.glob(pattern)))


def build() -> gr.Blocks:
    """The page with its three tabs."""
    launch.reconcile(runs_dir())
    with gr.Blocks(title="SFT Playground", analytics_enabled=False, fill_width=True) as demo:
        owner_st = gr.State(visitors.first_owner())
        browser_bs = gr.BrowserState({"owner": "", "run": ""}, storage_key="sft-playground", secret="sft-playground")
        gr.HTML(
            '<header class="top"><h1>SFT Playground</h1><p>See what a chat model reads, tune it in minutes, and '
            "compare it with what it was.</p></header>"
        )
        banner_html = gr.HTML(READINESS.banner())
        # Of the Chat tab, but outside: what is inside is not there before somebody opens the tab.
        turn_btn = gr.Button("Turn", visible="hidden", elem_id="turn")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("1 · Preview", id="preview"):
                preview_parts = preview.build()
            with gr.Tab("2 · Tune", id="tune") as tune_tab:
                tune_parts = tune.build(owner_st)
            with gr.Tab("3 · Chat", id="chat") as chat_tab:
                chat_parts = chat.build(owner_st, turn_btn)
        ready_timer = gr.Timer(0.5)
        _wire(demo, tabs, owner_st, browser_bs, banner_html, ready_timer, preview_parts, tune_parts, chat_parts)
        tune_tab.select(_stand_by, **_QUIET)
        tune_tab.select(**tune_parts["look"])
        # A page's events of one kind come one after the other: what takes seconds is the last.
        chat_tab.select(None, js="() => nameThePanes()", **_QUIET)
        chat_tab.select(
            _refresh_chat,
            [owner_st, chat_parts["run_dd"], chat_parts["talk_st"]],
            [chat_parts["run_dd"], chat_parts["state_html"]],
            **_QUIET,
        )
        chat_tab.select(_import_chat, **_QUIET)
        chat_tab.select(lambda: True, None, chat_parts["in_sight_st"], **_QUIET).then(**chat_parts["readying"])
    return demo


def _wire(demo, tabs, owner_st, browser_bs, banner_html, ready_timer, preview_parts, tune_parts, chat_parts) -> None:
    """What concerns more than one tab: who is visiting, readiness, and the way from a run to its chat."""
    run_dd, chat_dd = tune_parts["run_dd"], chat_parts["run_dd"]
    model_dds = [preview_parts["model_dd"], tune_parts["model_dd"]]

    def arrive(stored):
        READINESS.begin()
        return arrived(stored)

    def remember(owner, run):
        # A page that the server has forgotten must not overwrite the token that its browser keeps.
        return {"owner": owner, "run": run or ""} if visitors.known(owner) else gr.skip()

    def to_chat(owner, run, talk):
        # To turn to: also where that run is chosen there already, for it may have been resumed.
        chosen = gr.update(choices=who.choices(owner), value=run)
        return gr.Tabs(selected="chat"), chosen, replace(talk, controls=None), ""

    demo.load(arrive, browser_bs, [owner_st, browser_bs, run_dd], **_QUIET).then(**tune_parts["looking"]).then(
        _refresh_chat, [owner_st, chat_dd, chat_parts["talk_st"]], [chat_dd, chat_parts["state_html"]], **_QUIET
    )
    ready_timer.tick(
        watch, model_dds, [banner_html, ready_timer, *model_dds], queue=False, **_QUIET
    ).then(
        _when_ready(preview_parts["show"], 7), preview_parts["view_inputs"], preview_parts["views"], **_QUIET
    ).then(
        _when_ready(preview_parts["choose_template"], 3), preview_parts["template_inputs"],
        preview_parts["template_outputs"], **_QUIET,
    ).then(**_rows_when_ready(**tune_parts["look"]))  # fmt: skip
    run_dd.change(remember, [owner_st, run_dd], browser_bs, **_QUIET)
    tune_parts["chat_btn"].click(**quiet(chat_parts["floor_st"])).then(
        to_chat,
        [owner_st, run_dd, chat_parts["talk_st"]],
        [tabs, chat_dd, chat_parts["talk_st"], chat_parts["state_html"]],
        **_QUIET,
    ).then(**chat_parts["turning"]).then(None, None, None, js="() => focusOnPrompt()", **_QUIET)


def arrived(stored) -> tuple:
    """Who a visitor is, what the browser is to remember, and the runs, from what the browser sent."""
    owner = visitors.owner_of(stored)
    names = run_view.run_names(owner)
    wanted = stored.get("run") if isinstance(stored, dict) else None
    run = wanted if isinstance(wanted, str) and wanted in names else next(iter(names), None)
    return owner, {"owner": owner, "run": run or ""}, gr.update(choices=names, value=run)


def watch(*chosen: str) -> tuple:
    """Ticks until it is settled which model there is, then fills it in where the visitor has not picked another."""
    if not READINESS.settled:
        return READINESS.banner(), *(gr.skip() for _ in range(1 + len(chosen)))
    models = [READINESS.model if READINESS.ready and model == "embedded" else gr.skip() for model in chosen]
    return READINESS.banner(), gr.Timer(active=False), *models


def _rows_when_ready(fn, outputs: list, **look) -> dict:
    """The same look at the rows, once it is settled which model there is."""

    def shown(*inputs):
        yield from fn(*inputs) if READINESS.settled else [(gr.skip(),) * len(outputs)]

    return {"fn": shown, "outputs": outputs, **look}


def _when_ready(show, outputs: int):
    """Shows once the model is there; before that there is nothing to show."""

    def shown(*inputs):
        return show(*inputs) if READINESS.ready else (gr.skip(),) * outputs

    return shown


def _stand_by() -> None:
    if not any(run.status().active for run in list_runs(runs_dir())):
        launch.stand_by()


def _import_chat() -> None:
    """Torch takes seconds to import; better while a person looks at the tab than at the first reply."""
    import sft.chat  # noqa: F401


def _refresh_chat(owner: str, chosen: str | None, talk: Talk) -> tuple:
    """The chat's choices now; the newest run is chosen where nothing is. What a visitor has chosen stays untouched:
    another choice may have been made since. A page that has turned to a base model alone says whether there is a run by
    now."""
    if not visitors.known(owner):
        return gr.skip(), gr.skip()  # the page is still loading, and comes back here when it has
    options = who.choices(owner)
    values = [value for _, value in options]
    if chosen in values:
        alone = bool(talk.who.base) and who.value_of(talk.who) == chosen
        return gr.update(choices=options), who.state(owner, talk.who)[0] if alone else gr.skip()
    default = next((value for value in values if not value.startswith(who.BASE_ALONE)), f"{who.BASE_ALONE}embedded")
    return gr.update(choices=options, value=default), gr.skip()

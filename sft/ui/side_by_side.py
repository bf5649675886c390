"""The visitor's runs side by side: tick some to compare them; rename, delete, or take the settings of one."""

import gradio as gr

from sft.errors import RunError
from sft.run import Run
from sft.runs import rename
from sft.ui.inputs import user_errors
from sft.ui.paint import escape
from sft.ui.run_view import run_names
from sft.ui.runs_table import differences, overlay, table
from sft.ui.visitors import check_owner, run_of, runs_of

EVERY = 5.0  # seconds between two looks at all runs, while the list is open
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
PARTS = ["train", "held-out", "stop token"]
_UP = "() => document.querySelector('#run-view').scrollIntoView({ behavior: 'smooth' })"
_TABLE = "window.sftRuns(element, props, watch, (names) => trigger('pick', { names }));"


def build(owner_st: gr.State, run_dd: gr.Dropdown) -> dict:
    """Builds and wires the panel. Returns what the form needs to take over the settings of the run that is ticked."""
    ticked_st, seen_st = gr.State([]), gr.State("")
    with gr.Accordion("Your runs, side by side", open=False, elem_id="runs") as panel:
        table_html = gr.HTML("", html_template="<div></div>", js_on_load=_TABLE, elem_id="runs-table")
        with gr.Row(visible=False, elem_id="run-actions") as one_row:
            name_tb = gr.Textbox(label="Name", max_lines=1, min_width=200, scale=3, elem_id="run-name")
            rename_btn = gr.Button("Rename", min_width=90, elem_id="rename-run")
            show_btn = gr.Button("Show above", min_width=110, elem_id="show-run")
            duplicate_btn = gr.Button("Duplicate into the form", min_width=180, elem_id="duplicate-run")
        delete_btn = gr.Button("Delete", visible=False, size="sm", elem_id="delete-runs")
        with gr.Row(visible=False, elem_id="confirm-delete") as confirm_row:
            confirm_html = gr.HTML()
            yes_btn = gr.Button("Delete for good", variant="stop", min_width=130, elem_id="delete-yes")
            no_btn = gr.Button("Keep", min_width=90, elem_id="delete-no")
        part_rd = gr.Radio(PARTS, value="train", label="Loss", visible=False, elem_id="part")
        compared_html = gr.HTML(elem_id="compared")
    timer = gr.Timer(EVERY, active=False)
    picked = [ticked_st, one_row, name_tb, delete_btn, confirm_row, part_rd, compared_html]

    def pick(owner, part, event: gr.EventData):
        return chosen(owner, event.names, part)

    def renamed(owner, ticked, name, shown, part):
        new = rename_one(owner, ticked, name)
        value = new if shown in ticked else shown
        return gr.update(choices=run_names(owner), value=value), *painted(owner, [new], part)

    def deleted(owner, ticked, shown, part):
        delete(owner, ticked)
        names = run_names(owner)
        value = shown if shown in names else next(iter(names), None)
        return gr.update(choices=names, value=value), *painted(owner, [], part)

    def show(owner, ticked):
        return gr.update(choices=run_names(owner), value=only(owner, ticked).name)

    def ask(owner, ticked):
        return gr.update(visible=True), question(runs_named(owner, ticked))

    # ---- wiring ----

    look = {"fn": listed, "inputs": [owner_st, seen_st, ticked_st], "outputs": [table_html, seen_st], **_QUIET}
    compare = {"fn": compared, "inputs": [owner_st, ticked_st, part_rd], "outputs": compared_html, **_QUIET}
    panel.expand(**look).then(lambda: gr.Timer(active=True), None, timer, **_QUIET)
    panel.collapse(lambda: gr.Timer(active=False), None, timer, **_QUIET)
    timer.tick(queue=False, **look)
    seen_st.change(**compare)
    part_rd.input(**compare)
    table_html.pick(pick, [owner_st, part_rd], picked, trigger_mode="always_last", **_QUIET)
    changed = [run_dd, *picked, table_html, seen_st]
    renaming = [owner_st, ticked_st, name_tb, run_dd, part_rd]
    gr.on([rename_btn.click, name_tb.submit], user_errors(renamed), renaming, changed, **_QUIET)
    delete_btn.click(user_errors(ask), [owner_st, ticked_st], [confirm_row, confirm_html], **_QUIET)
    no_btn.click(lambda: gr.update(visible=False), None, confirm_row, **_QUIET)
    yes_btn.click(user_errors(deleted), [owner_st, ticked_st, run_dd, part_rd], changed, **_QUIET)
    show_btn.click(user_errors(show), [owner_st, ticked_st], run_dd, **_QUIET).success(None, js=_UP)
    return {"duplicate_btn": duplicate_btn, "ticked_st": ticked_st}


def listed(owner: str, seen: str, ticked: list[str]) -> tuple:
    """The list and a mark of what it shows; nothing where it shows that already."""
    runs = runs_of(owner)
    now = " ".join(f"{run.name} {status.state} {status.updated}" for run in runs for status in [run.status()]) or "none"
    return (gr.skip(), gr.skip()) if now == seen else (table(runs, ticked), now)


def chosen(owner: str, names, part: str) -> tuple:
    """What is to be seen when these runs are ticked; names that are not the visitor's are left out."""
    mine = run_names(owner)
    ticked = [name for name in mine if isinstance(names, list) and name in names]
    delete = "Delete this run" if len(ticked) == 1 else f"Delete these {len(ticked)} runs"
    return (
        ticked, gr.update(visible=len(ticked) == 1), ticked[0] if ticked else "",
        gr.update(value=delete, visible=len(ticked) > 0), gr.update(visible=False),
        gr.update(visible=len(ticked) > 1), compared(owner, ticked, part),
    )  # fmt: skip


def painted(owner: str, ticked: list[str], part: str) -> tuple:
    """The same, and the list anew."""
    return *chosen(owner, ticked, part), *listed(owner, "", ticked)


def compared(owner: str, ticked: list[str], part: str) -> str:
    """Curves and differing settings of the ticked runs, where there are several."""
    mine = run_names(owner)
    runs = [run_of(owner, name) for name in ticked if name in mine]
    return f'<div class="compared">{overlay(runs, part)}{differences(runs)}</div>' if len(runs) > 1 else ""


def runs_named(owner: str, ticked: list[str]) -> list[Run]:
    check_owner(owner)
    return [run_of(owner, name) for name in ticked]


def rename_one(owner: str, ticked: list[str], name: str | None) -> str:
    """The new name of the run that is ticked."""
    return rename(only(owner, ticked), (name or "").strip()).name


def delete(owner: str, ticked: list[str]) -> None:
    """All that are ticked, or none where one of them cannot be."""
    runs = runs_named(owner, ticked)
    for run in runs:
        if run.status().active:
            raise RunError(f"The run {run.name} is still working.", "Stop it first.")
    for run in runs:
        run.delete()


def only(owner: str, ticked: list[str]) -> Run:
    if len(ticked) != 1:
        raise RunError("Not one run is ticked.", "Tick the one that is meant.")
    return run_of(owner, ticked[0])


def question(runs: list[Run]) -> str:
    names = ", ".join(run.name for run in runs)
    return f'<p role="alert">Delete {escape(names)}? Settings, curves and what was trained are gone then.</p>'

"""The rows of the chosen data set: what a check of all of them finds, and each one as it will be trained on.

Components, then handlers, then wiring. `look` shows the first rows' verdicts and the first row at once; the check of
all rows then goes on in steps of half a second, so that it holds nothing up and ends when something else is asked.
Gradio's own `cancels` is not used for that: it leaves an error in the browser when the check has ended by itself.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import gradio as gr

from sft.config import TrainConfig
from sft.errors import SandboxBusy, UserError
from sft.shapes import shape_of
from sft.ui import mapping, paint
from sft.ui.checks import KINDS, LETTERS, Asked, Check, Progress, check_of
from sft.ui.inputs import format_of, user_errors
from sft.ui.readiness import READINESS
from sft.ui.row_views import as_trained, tally
from sft.ui.sources import NothingChosen, chosen, table_of

AT_ONCE = 0.2  # seconds of checking before anything is shown
STEP = 0.5  # seconds of checking between two pictures of how far it has come
_QUIET = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 4}


def build(model_dd, max_length_nb, columns_tb, source: list, triggers: list[Callable]) -> dict:
    """Builds and wires the panel. `triggers` look again by themselves; returns the event that makes others do so."""
    asked_st = gr.State(None)  # (Asked, when), or None where there is nothing to check
    page_st = gr.State(Page())
    at_st = gr.State(0)  # the index of the row shown
    summary_html = gr.HTML(paint.empty("Choose a data set to see what its rows teach."), elem_id="rows-summary")
    with gr.Column(visible=False, elem_id="mapping") as form:
        with gr.Row():
            picks = mapping.fields()
        first_html = gr.HTML()
        apply_btn = gr.Button("Read the rows like this", elem_id="apply-columns")
    with gr.Column(visible=False) as stepper:
        with gr.Row(equal_height=True, elem_classes="row-stepper"):
            row_nb = gr.Number(1, label="Row", precision=0, min_width=170, elem_id="row-number")
            kind_dd = gr.Dropdown(
                [("All rows", "all"), *((f"Only {kind}", kind) for kind in KINDS)], value="all",
                label="Step through", min_width=150, elem_id="row-kind",
            )  # fmt: skip
            previous_btn = gr.Button("← Previous", min_width=110, elem_id="previous-row")
            next_btn = gr.Button("Next →", min_width=110, elem_id="next-row")
        note_html = gr.HTML(elem_id="row-note")
    row_html = gr.HTML(elem_id="row")

    def look(page, asked, at, model, max_length, columns, *source):
        """The first verdicts and the first row; the form where nobody can tell what the columns hold."""
        page.asked = None
        nothing = {asked_st: None, stepper: gr.update(visible=False), form: gr.update(visible=False), row_html: ""}
        try:
            if not READINESS.settled:
                waits = "The model is being prepared. The rows appear when it is ready."
                yield {**nothing, summary_html: paint.empty(waits)}
                return
            where, former = chosen(*source), asked[0] if asked else None
            new = former is None or former.source != where
            if former and new and columns == former.columns:
                columns = None  # it was said of other rows
            if new or former.model != model:
                yield {**nothing, summary_html: paint.loading("Reading the rows …")}
            wanted = wish(where, model, max_length, columns)
            if wanted == former:
                yield {asked_st: page.ask(wanted)}  # a check goes on where it broke off
                return
            table = table_of(where)
            try:
                shape_of(table, wanted.columns)
            except UserError as error:
                yield {**nothing, **ask_columns(table, error)}
                return
            check = check_of(wanted)
            progress = check.advance(AT_ONCE)
            yield {
                asked_st: page.ask(wanted), columns_tb: columns or "", summary_html: summary(check, progress),
                form: gr.update(visible=False), stepper: gr.update(visible=True),
                row_nb: gr.update(value=1 if new else at + 1, label=f"Row of {progress.total:,}"),
                **({kind_dd: "all"} if new else {}), **show(check, 0 if new else at),
            }  # fmt: skip
        except NothingChosen as error:
            yield {**nothing, summary_html: paint.empty(error.hint)}
        except UserError as error:
            yield {**nothing, summary_html: paint.problem("No rows to show", error.message, error.hint)}

    def ask_columns(table, error):
        updates = mapping.offered(table)
        guessed = [update["value"] for update in updates]
        return {
            summary_html: mapping.question(error), form: gr.update(visible=True),
            first_html: mapping.first_row(table, guessed),
            **dict(zip(picks, updates, strict=True)),
        }  # fmt: skip

    def try_columns(*values):
        picked, where = values[: len(picks)], values[len(picks) :]
        return mapping.first_row(table_of(chosen(*where)), picked)

    def check_all(page, asked):
        """Until all rows are checked or the page asks for something else."""
        yield gr.skip()
        try:
            for check, progress in steps(page, asked):
                yield summary(check, progress)
        except UserError as error:
            yield paint.problem("The check broke off", error.message, error.hint)

    def show(check: Check, index: int) -> dict:
        try:
            row = as_trained(check, index)
        except SandboxBusy as error:  # the check goes on
            row = paint.problem("This row cannot be shown just now", error.message, error.hint)
        return {at_st: index, note_html: "", row_html: row}

    def step(way, asked, at, kind):
        """The next row of a kind, or why there is none."""
        if asked is None:
            return {note_html: ""}
        check = check_of(asked[0])
        index, why = neighbour(check, at, kind, way)
        return {note_html: note(why)} if index is None else {row_nb: index + 1, **show(check, index)}

    def go(asked, at, number):
        """The row of a number that somebody wrote; nothing where it is shown already."""
        if asked is None or number is None or number - 1 == at:
            return {note_html: ""}
        check = check_of(asked[0])
        total = len(check.table.rows)
        if not 1 <= number <= total:
            return {note_html: note(f"There is no row {number:,}: the rows are numbered from 1 to {total:,}.")}
        return show(check, int(number) - 1)

    # ---- wiring ----

    inputs = [page_st, asked_st, at_st, model_dd, max_length_nb, columns_tb, *source]
    outputs = [
        asked_st, at_st, columns_tb, summary_html, form, *picks, first_html, stepper, row_nb, kind_dd, note_html,
        row_html,
    ]  # fmt: skip
    asked_st.change(check_all, [page_st, asked_st], summary_html, trigger_mode="multiple", **_QUIET)
    looking = {"fn": look, "inputs": inputs, "outputs": outputs, "trigger_mode": "always_last", **_QUIET}
    gr.on([model_dd.change, max_length_nb.change, columns_tb.submit, columns_tb.blur, *triggers], **looking)
    gr.on([pick.input for pick in picks], user_errors(try_columns), [*picks, *source], first_html, **_QUIET)
    apply_btn.click(mapping.setting, picks, columns_tb, **_QUIET).then(**looking)
    stepping = {"outputs": [row_nb, at_st, note_html, row_html], "trigger_mode": "always_last", **_QUIET}
    for trigger, way in ((previous_btn.click, -1), (next_btn.click, 1), (kind_dd.change, 0)):
        trigger(user_errors(partial(step, way)), [asked_st, at_st, kind_dd], **stepping)
    row_nb.change(user_errors(go), [asked_st, at_st, row_nb], **stepping)
    return looking


# ---- the check ----


class Page:
    """What one visitor's page looks at now. It is not exchanged but changed, so that a running check sees it."""

    asked: tuple[Asked, float] | None = None

    def ask(self, wanted: Asked) -> tuple[Asked, float]:
        self.asked = wanted, time.monotonic()
        return self.asked


def wish(where, model: str, max_length, columns: str | None) -> Asked:
    """What is to be checked. Raises UserError where a setting is wrong."""
    config = TrainConfig.from_dict({"dataset": where.name, "max_length": max_length, "columns": columns or None})
    format_of(model)
    return Asked(where, model.strip(), config.max_length, config.columns)


def steps(page: Page, asked: tuple[Asked, float] | None) -> Iterator[tuple[Check, Progress]]:
    """A check and its progress every half second, until it is done or the page asks for something else."""
    done = False
    while asked and page.asked == asked and not done:
        check = check_of(asked[0])  # asked for each time, for its file may have changed
        progress = check.advance(STEP)
        done = progress.done
        if page.asked == asked:  # else its picture would replace that of the new check
            yield check, progress


def summary(check: Check, progress: Progress) -> str:
    shape, _ = shape_of(check.table, check.asked.columns)
    return tally(check.table.source, shape, progress, check.asked.max_length)


def neighbour(check: Check, at: int, kind: str, way: int) -> tuple[int | None, str]:
    """The row to step to from `at`, or why there is none. `way` 0 stays where the row is of the kind."""
    known, total = len(check.verdicts), len(check.table.rows)
    if kind == "all":
        index = at + way
        return (index, "") if 0 <= index < total else (None, f"This is the {'last' if way > 0 else 'first'} row.")
    if way == 0 and check.verdicts[at : at + 1] == LETTERS[kind]:
        return at, ""
    index = check.find(kind, -1 if way == 0 else at, way or 1)
    if index is not None:
        return index, ""
    where = {0: "", 1: f" after row {at + 1:,}", -1: f" before row {at + 1:,}"}[way]
    if way < 0 or known == total:
        return None, f"No row{where} is {kind}."
    return None, f"No row{where} is {kind} among the {known:,} checked so far; the check goes on."


def note(text: str) -> str:
    return f'<p class="hint" role="alert">{paint.escape(text)}</p>' if text else ""

"""What happens in the panel Prompt or tune?: looking, starting, stopping, turning pages. No components."""

from dataclasses import dataclass, field

import gradio as gr

from sft import launch
from sft.best_prompt import best_prompt, ends_in_answer, some_of
from sft.contest import Contestant
from sft.data import load_split
from sft.errors import UserError
from sft.evaluation import BESIDE, FAILED, RESULT, Settings, read_evaluation, read_progress
from sft.reply_format import wanted_format
from sft.run import Run
from sft.runs import runs_dir, training_in
from sft.ui import paint
from sft.ui.verdict_rows import rows
from sft.ui.verdict_view import failed, result, working
from sft.ui.visitors import run_of
from sft.verdict import ENOUGH

NO_RUN = "Choose a run that has a result under Who answers. A base model alone has nothing to be measured against."
NOTHING_YET = "Not measured yet. Write the best instruction you can, then press Start."
NO_ROWS = (
    "This run held back no rows that end in an answer, so there is nothing fair to measure on. Tune again with rows "
    "held out: name an evaluation file or split, or set eval_share."
)
STOPPED = "Stopped. Nothing of it was kept; an earlier result stays."
SHOWN = 13  # what `look` gives
OLD = "The run was trained further after this was measured. Measure again."


@dataclass(frozen=True)
class Filled:
    """For which run the form was filled in, the instruction that its data set provides, and what was written for
    other runs before."""

    run: str = ""
    system: str = ""
    written: dict[str, str] = field(default_factory=dict)


# ---- what is to be seen ----


def look(owner, name, said: str = "") -> tuple:
    """All of the panel; while it works, when the result was written that is there until then; and what it was made of.
    `said` is a word on what was just done."""
    run = _measurable(owner, name)
    if run is None:
        return *_panel(paint.empty(NO_RUN), None), None, None
    progress, written = read_progress(run), _written(run)
    return *_of_run(run, progress, said), written if _works(progress) else None, _made_of(run)


def follow(owner, name, seen: tuple | None) -> tuple:
    """The same as the page turns, where there is something else to see than was `seen`: whoever browses the rows of a
    run goes on with them."""
    run = _measurable(owner, name)
    return (gr.skip(),) * SHOWN if run and _made_of(run) == seen else look(owner, name)


def _made_of(run: Run) -> tuple:
    return run.name, read_progress(run), _written(run), Contestant(run).written, training_in(runs_dir())


def _works(progress: dict | None) -> bool:
    return progress is not None and progress["stage"] != FAILED


def _of_run(run: Run, progress: dict | None, said: str) -> tuple:
    evaluation = read_evaluation(run)
    if _works(progress):
        return _panel(working(progress), evaluation, working_now=True)
    if progress:
        return _panel(failed(progress, run.log_tail(name="evaluate.log")), evaluation, startable=True)
    said = said or ("" if evaluation else NOTHING_YET)
    warned = [BESIDE] * training_in(runs_dir()) + [OLD] * bool(evaluation and _outdated(run, evaluation))
    hints = "".join(f'<p class="hint">⚠ {hint}</p>' for hint in warned)
    return _panel((paint.empty(said) if said else "") + hints, evaluation, startable=True)


def tick(owner, name, before: float | None) -> tuple:
    """Every second while it works: how far it is; and the whole panel when it has ended. `before` says when the result
    was written that was there meanwhile: where there is no other one, somebody has stopped it. It is None where the
    end has been seen: a tick that comes late leaves the rows as they are browsed."""
    if before is None:
        return (gr.skip(),) * SHOWN
    run = _measurable(owner, name)
    progress = read_progress(run) if run else None
    if _works(progress):
        return working(progress), *(gr.skip(),) * (SHOWN - 1)
    return look(owner, name, STOPPED if run and _written(run) == before else "")


def _panel(state: str, evaluation: dict | None, startable: bool = False, working_now: bool = False) -> tuple:
    return (
        state, result(evaluation) if evaluation else "", gr.update(interactive=startable),
        gr.update(visible=working_now), gr.Timer(active=working_now), gr.update(visible=evaluation is not None), "all",
        *browsed(evaluation, "all", 0),
    )  # fmt: skip


def _measurable(owner, name) -> Run | None:
    """The visitor's run, where it has a result."""
    try:
        run = run_of(owner, name)
    except UserError:
        return None
    return run if run.has_result else None


def _outdated(run: Run, evaluation: dict) -> bool:
    """Whether another result was measured than the one that is there now."""
    return evaluation["settings"].get("written") != Contestant(run).written


def _written(run: Run) -> float:
    """When the result was written, in seconds since 1970; 0 where there is none."""
    try:
        return (run.folder / RESULT).stat().st_mtime
    except FileNotFoundError:
        return 0.0


# ---- fill in, start, stop, turn pages ----


def fill(owner, name, is_open: bool, filled: Filled, instruction) -> tuple:
    """The form for another run, once it is to be seen: reading all rows takes long where there are many. What was
    written for the run before comes back with it."""
    run, as_before = _measurable(owner, name), (gr.skip(),) * 3
    if not is_open or run is None or run.name == filled.run:
        return *as_before, gr.skip(), gr.skip()
    try:
        held_out, system = provided(run)
    except UserError as error:
        return *as_before, paint.problem("Its rows cannot be read", error.message, error.hint), gr.skip()
    if not held_out:
        return *as_before, paint.empty(NO_ROWS), gr.update(interactive=False)
    limit = gr.update(value=min(held_out, ENOUGH), label=f"Rows (of {held_out:,} held out)")
    written = {**filled.written, filled.run: instruction}
    return Filled(run.name, system, written), written.get(run.name, system), limit, gr.skip(), gr.skip()


def provided(run: Run) -> tuple[int, str]:
    """How many held-out rows there are, and the instruction that the evaluation takes where none is written."""
    config = run.config()
    split = load_split(config)
    held_out = list(filter(ends_in_answer, split.held_out))
    if not held_out:
        return 0, ""
    looked_at = some_of(split.train, seed=0)
    reply_format = wanted_format(config.eval_format, [row.messages[-1]["content"] for row in looked_at])
    prompt = best_prompt(looked_at, held_out, reply_format, None, 1).messages(held_out[0].messages[:-1])
    return len(held_out), next((message["content"] for message in prompt if message["role"] == "system"), "")


def start(owner, name, filled: Filled, system, examples, limit, seed) -> None:
    """An instruction that was left as it was provided is left to the evaluation: rows may have different ones. So is
    one that was written about another run: reading the rows of this one takes a while."""
    own = (system or "").strip() if filled.run == name else ""
    launch.evaluate(
        run_of(owner, name),
        Settings(
            limit=int(limit) if limit else None,
            system=None if own in ("", filled.system.strip()) else own,
            examples=int(examples or 0),
            seed=int(seed or 0),
        ),
    )


def stop(owner, name) -> tuple:
    launch.stop_evaluation(run_of(owner, name))
    return look(owner, name, STOPPED)


def turn(way: int | None, owner, name, kind: str, at: int) -> tuple:
    """Another page of rows; the first one where there is no `way`."""
    run = _measurable(owner, name)
    return browsed(read_evaluation(run) if run else None, kind, 0 if way is None else at + way)


def browsed(evaluation: dict | None, kind: str, page: int) -> tuple:
    """The page shown, its rows, and which way one can turn."""
    if evaluation is None:
        return 0, "", gr.update(interactive=False), gr.update(interactive=False)
    html, page, pages = rows(evaluation, kind, page)
    return page, html, gr.update(interactive=page > 0), gr.update(interactive=page < pages - 1)

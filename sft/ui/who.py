"""Who can answer a visitor, what the controls mean by it, and in words why somebody cannot."""

import gradio as gr

from sft import models
from sft.data import conversations, load_split
from sft.errors import DataError, TemplateError, UserError
from sft.run import Run
from sft.tables import read_table
from sft.ui import paint
from sft.ui.talk import PROMPTED, Who, contest_of
from sft.ui.visitors import run_of, runs_of

BASE_ALONE = "base alone: "
NOBODY = "Tune a model first, or choose a base model alone."
ALONE = "None of your runs has finished yet: tune a model in tab 2, and it answers here beside its base model."
PAIRED = (
    "⚠ Paired anyway, with another chat format than was trained on: what is seen here may be the format's doing, not "
    "the training's."
)


def choices(owner: str) -> list[tuple[str, str]]:
    """The visitor's runs that have an adapter, then the catalogue's models alone."""
    runs = [(run.name, run.name) for run in runs_of(owner) if run.has_result]
    alone = [(f"{BASE_ALONE}{models.title(entry.name)}", f"{BASE_ALONE}{entry.name}") for entry in models.CATALOGUE]
    return [*runs, *alone]


def who_of(owner: str, chosen: str | None, stage: int, third: str | None, other_format: bool) -> Who:
    """What the controls say. `stage` counts the stages of a run; the last is its result."""
    chosen, third = chosen or "", third or ""
    if chosen.startswith(BASE_ALONE):
        return Who(base=chosen.removeprefix(BASE_ALONE), third=third if third == PROMPTED else "")
    if not chosen:
        return Who()
    steps = stages(run_of(owner, chosen))
    step = steps[int(stage)] if 0 <= int(stage) < len(steps) - 1 else None
    return Who(run=chosen, step=step, third=third, other_format=bool(other_format))


def value_of(who: Who) -> str | None:
    """What the list of who answers calls them."""
    return who.run or (f"{BASE_ALONE}{who.base}" if who.base else None)


def same_model(one: Who, other: Who) -> bool:
    """Whether both are of one run, or one base model alone; in whatever stage, and whoever is beside them."""
    return (one.run, one.base) == (other.run, other.base)


def stages(run: Run) -> list[int]:
    """The steps as after which a run can be talked to: before the first, its snapshots, and its result."""
    last = _saved_after(run)
    return [0, *(step for step in run.snapshots if 0 < step < last), last]


def _saved_after(run: Run) -> int:
    """The step after which the result was saved. A run that was resumed has its former one until it ends."""
    for event in reversed(run.events("start", "end")):
        if event["kind"] == "start":
            return event.get("resumed_from", 0)
        if event.get("state") in ("stopped", "finished"):
            return event["step"]
    return run.written_status().step


def stage_of(who: Who, steps: list[int]) -> int:
    return steps.index(who.step) if who.step in steps else len(steps) - 1


def stage_label(steps: list[int], stage: int) -> str:
    """The label of the slider at one of the stages."""
    if stage == 0:
        return f"As it was before the first step (of {steps[-1]:,})"
    if stage >= len(steps) - 1:
        return f"As it is, after {steps[-1]:,} steps"
    return f"As it was after step {steps[stage]:,} of {steps[-1]:,}"


def thirds(owner: str, who: Who) -> list[tuple[str, str]]:
    """Who may answer beside the two: the base model told more, or another run of the same base model."""
    found = [("Nobody", ""), ("Base + a system message of its own", PROMPTED)]
    if not who.run:
        return found
    model = run_of(owner, who.run).config().model
    others = [run for run in runs_of(owner) if run.has_result and run.name != who.run and _tunes(run, model)]
    return [*found, *((f"The run {run.name}", run.name) for run in others)]


def _tunes(run: Run, model: str) -> bool:
    try:
        return run.config().model == model
    except UserError:
        return False  # another version wrote it: it cannot answer, and must not keep others from it


def check_offered(owner: str, who: Who) -> None:
    """Raises UserError for a third that the page does not offer."""
    if who.third not in {value for _, value in thirds(owner, who)}:
        raise UserError(f"{who.third} cannot answer beside them: there is no such run of the same base model.")


def state(owner: str, who: Who) -> tuple[str, bool]:
    """Why they cannot answer, as HTML, empty where they can; and whether pairing other chat formats would mend it."""
    if not (who.run or who.base):
        return paint.empty(NOBODY), False
    if who.base:  # it may have to be downloaded first: that is for the first question
        return "" if any(run.has_result for run in runs_of(owner)) else paint.empty(ALONE), False
    try:
        contest_of(owner, who)
    except UserError as error:
        mendable = isinstance(error, TemplateError) and not who.other_format
        return paint.problem("They cannot answer as they are", error.message, error.hint), mendable
    return (f'<div class="card paired" role="status">{PAIRED}</div>' if who.other_format else ""), who.other_format


def suggested_system(owner: str, chosen: str | None) -> str:
    """The system message that all of a run's rows share, if there is one; without it the tuned model is lost."""
    if not chosen or chosen.startswith(BASE_ALONE):
        return ""
    try:
        config = run_of(owner, chosen).config()
        table = read_table(config.dataset, config.dataset_config, config.train_split)
        found = set()
        for row, _ in zip(conversations(table, config.columns), range(50), strict=False):
            first = row.conversation.messages[0] if row.conversation else {}
            found.add(first.get("content") if first.get("role") == "system" else None)
        return found.pop() or "" if len(found) == 1 else ""
    except UserError:
        return ""  # the data may have gone since; a suggestion is all that is lost


def held_out_questions(run: Run) -> dict[str, str]:
    """What each held-out row asks first → its system message, or "". Raises DataError where there is nothing."""
    asked = {}
    for row in load_split(run.config()).held_out:
        question = next((m.get("content") for m in row.messages if m["role"] == "user"), None)
        if question:
            asked[question] = row.messages[0]["content"] if row.messages[0]["role"] == "system" else ""
    if asked:
        return asked
    raise DataError(f"The run {run.name} has no held-out rows.", "Write a question of your own.")


def told_with(questions: dict[str, str], question: str, written: str | None):
    """The system message that belongs to a question, for the box; what somebody has written there themselves stays."""
    return questions[question] if (written or "") in {"", *questions.values()} else gr.skip()

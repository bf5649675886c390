"""One visitor's conversation: who answers, and for each of them a pane with a history of its own.

Replies part, so histories do. Nothing here is shared: a Talk lives in the visitor's session alone.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sft import models
from sft.contest import Contest, Contestant
from sft.errors import UserError
from sft.ui.inputs import check_ready, guard_model
from sft.ui.readiness import READINESS
from sft.ui.visitors import run_of

if TYPE_CHECKING:  # torch takes seconds to import, and a page begins with an empty talk
    from sft.chat import Reply, Sampling

PROMPTED = "prompted"  # the third pane: the base model with a system prompt of its own


@dataclass(frozen=True)
class Who:
    """Who answers: a run beside its base model, or a base model alone, and perhaps a third.

    `step` takes a snapshot of the run for its result; 0 is the model before the first step. `third` is "", another
    run's name or PROMPTED. `other_format` pairs what has another chat format now than it was tuned with.
    """

    run: str = ""
    base: str = ""
    step: int | None = None
    third: str = ""
    third_system: str = ""
    other_format: bool = False


@dataclass
class Pane:
    """One contestant's side: its messages without the system message; the ids that it read last, also as text; its
    last reply, and a note on that. `turns` has for each reply the ids that were read before it and its own; None where
    nobody knows them, in a conversation from a file."""

    history: list[dict] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    text: str = ""
    reply: "Reply | None" = None
    note: str = ""
    turns: list[tuple[list[int], list[int]] | None] = field(default_factory=list)


@dataclass
class Talk:
    """A conversation: `panes` in the order of the contest's contestants, the base model first.

    `template` is one of prompts.TEMPLATES. `sampling` and `format_hash` are those of the last replies. `asked` is a
    question whose reply has not begun; it joins the histories together with its reply. `said` is a word on the whole.
    `controls` is what the page's controls say when it has turned to this conversation, None before that.
    """

    who: Who = field(default_factory=Who)
    panes: list[Pane] = field(default_factory=list)
    system: str = ""
    template: str = "right"
    sampling: "Sampling | None" = None
    format_hash: str = ""
    asked: str = ""
    said: str = ""
    controls: tuple | None = None

    @property
    def key(self) -> tuple[Who, str]:
        """What a conversation is about. Other system messages go on with it, other contestants begin anew."""
        return replace(self.who, third_system="", other_format=False), self.template

    @property
    def questions(self) -> list[str]:
        history = self.panes[0].history if self.panes else []
        return [message["content"] for message in history if message["role"] == "user"]

    def until(self, turns: int) -> "Talk":
        """The first so many questions and their replies."""
        panes = [Pane(pane.history[: 2 * turns], turns=pane.turns[:turns]) for pane in self.panes]
        return replace(self, panes=panes, asked="", said="")


def empty(who: Who, template: str = "right") -> Talk:
    """A conversation that has not begun."""
    count = (2 if who.run else 1 if who.base else 0) + bool(who.third)
    return Talk(who, [Pane() for _ in range(count)], template=template)


def contest_of(owner: str, who: Who) -> Contest:
    """Who answers, as chat takes it. Raises UserError for a run that is not the owner's, or that cannot answer."""
    if who.run:
        run = run_of(owner, who.run)
        _check_ready(run.config().model)
        contest = Contest.of_run(run, who.step or None, who.other_format)
        if who.step == 0:
            contest = replace(contest, contestants=(Contestant(), Contestant()))
    elif who.base:
        guard_model(who.base)
        _check_offered(who.base)
        _check_ready(who.base)
        contest = Contest.of_base(who.base)
    else:
        raise UserError("Nobody is chosen to answer.", "Choose a run or a base model under Who answers.")
    if not who.third:
        return contest
    third = Contestant() if who.third == PROMPTED else Contestant(run_of(owner, who.third))
    return contest.with_contestant(third, who.other_format)


def _check_offered(base: str) -> None:
    """What is posted may name anything, and would be downloaded."""
    if base not in {entry.name for entry in models.CATALOGUE}:
        raise UserError(f"{base} is none of the models that answer here.", "Choose one under Who answers.")


def _check_ready(model: str) -> None:
    if READINESS.model == model:  # any other is not the one that the page prepares
        check_ready(model)

"""What happens in the Chat tab when somebody else is chosen to answer. Handlers alone, no components.

Each choice of who answers, and in which template, has a conversation of its own. The one that is left is kept, and
comes back with the choice; its last question goes along, so that the next can be asked the same.
"""

from dataclasses import replace

import gradio as gr

from sft.best_prompt import LIKE_EXAMPLES
from sft.errors import UserError
from sft.ui import paint
from sft.ui.answering import broken_off
from sft.ui.asking import SHOWN, paint_talk, told
from sft.ui.floor import Floor
from sft.ui.panes import PANES, stamps
from sft.ui.talk import PROMPTED, Talk, Who, empty
from sft.ui.verdict_events import provided
from sft.ui.visitors import run_of
from sft.ui.who import same_model, stage_label, stage_of, stages, state, suggested_system, thirds, who_of

TURNED = SHOWN + 2 * PANES + 10  # what `turn` gives
LEFT = "cut by your next choice"
TEMPLATES = {
    "right": "The chat template that belongs to the model, as in training: in it a tuned model learned to answer, and "
    "to stop.",
    "none": "No template, no markers: the bare text, and the model goes on with it. That is all that a base model "
    "does; it may as well write further questions.",
    "wrong": "The template of another family, named under each reply. Its markers are odd text to this model: it is "
    "asked as it never was in training. The reply may still be right, or make no sense, or never end.",
}


def leave(talk: Talk, kept: dict) -> None:
    """Keeps a conversation for when its turn comes again; one that was cleared is forgotten."""
    kept.pop(talk.key, None)
    if talk.questions:
        kept[talk.key] = broken_off(talk, LEFT)


def make_way(chosen, stage, third, other_format, template, talk: Talk, floor: Floor) -> None:
    """Before the page turns: whoever still answers is quiet, unless the page has turned to whom the controls name."""
    if (chosen, stage, third, other_format, template) != talk.controls:
        floor.begin_turning()


def turn(
    owner, chosen, stage, third, other_format, template, system, third_system, talk: Talk, kept: dict, floor: Floor
) -> tuple:
    """The conversation with who is chosen now, in the template that is chosen now.

    A last question that has no reply there goes along: the same model in another state is asked it at once, anybody
    else finds it in the prompt. Where the page has turned there before, all stays as it is, but what was still to be
    answered is asked again.
    """
    try:
        controls = chosen, stage, third, other_format, template
        if controls != talk.controls:
            return _turned(owner, controls, (system, third_system), talk, kept, floor)
        if floor.taken:
            return *(gr.skip() for _ in range(TURNED - 2)), "", False
        as_it_is = replace(broken_off(talk, LEFT), asked=talk.asked, said=talk.said)
        at_once = bool(talk.asked) and not floor.stopped
        return *paint_talk(as_it_is), *(gr.skip() for _ in range(TURNED - SHOWN - 2)), "", at_once
    finally:
        floor.end_turning()


def _turned(owner, controls: tuple, boxes: tuple, talk: Talk, kept: dict, floor: Floor) -> tuple:
    chosen, *_, template = controls
    about, written = ({}, {}, {}), (None, None)
    try:
        if talk.controls is None or talk.controls[0] != chosen:
            controls, about, written = _begun(owner, chosen, template, talk)
        who = who_of(owner, *controls[:4])
        heads, (html, mendable) = stamps(owner, who), state(owner, who)
        label = stage_label(stages(run_of(owner, who.run)), controls[1]) if who.run else ""
    except UserError as error:
        who, heads, mendable, label = Who(), [""] * PANES, False, ""
        html = paint.problem("This run cannot be used", error.message, error.hint)
    now = empty(who, template)
    if now.key == talk.key:
        now = broken_off(talk, LEFT)
    else:
        leave(told(talk, *boxes), kept)
        if now.key in kept:
            now = kept[now.key]
            written = now.system, now.who.third_system
        elif who.third == PROMPTED != talk.who.third and boxes[0] == boxes[1]:
            written = None, instruction(owner, who)
    again = _only_state_differs(talk.controls, controls)
    question = goes_along(talk, now, again)
    at_once = bool(question) and again and not floor.stopped
    who = replace(who, third_system=now.who.third_system)
    stage, third, other_format = about
    return (
        *paint_talk(replace(now, who=who, asked=question if at_once else "", controls=controls)),
        kept,
        *(gr.update(visible=at == 0 or at < len(now.panes)) for at in range(PANES)),
        *heads,
        html,
        gr.update(**stage, **({"label": label} if label else {})),
        gr.update(**third),
        gr.update(**other_format, visible=mendable),
        gr.update(**_value(written[0])),
        gr.update(**_value(written[1]), visible=who.third == PROMPTED),
        TEMPLATES[template],
        "" if at_once else question,
        at_once,
    )


def _begun(owner, chosen, template, talk: Talk) -> tuple[tuple, tuple, tuple]:
    """With a run or model that was just chosen: what the controls say then, what changes of three of them (stage,
    third, other format), and the system messages.

    All that as in the conversation, where it is with them already: one that was opened from a file.
    """
    who = who_of(owner, chosen, -1, "", False)
    steps = stages(run_of(owner, who.run)) if who.run else [0]
    beside, system = thirds(owner, who), suggested_system(owner, chosen)
    written = system, system
    if same_model(talk.who, who):
        who = talk.who
        if talk.questions:
            written = talk.system, who.third_system
    last, at = len(steps) - 1, stage_of(who, steps)
    stage = {"visible": last > 1, "maximum": max(last, 1), "value": at}
    about = stage, {"choices": beside, "value": who.third}, {"value": who.other_format}
    return (chosen, at, who.third, who.other_format, template), about, written


def _only_state_differs(before: tuple | None, now: tuple) -> bool:
    """Whether the same ones are chosen, and the stage or the template is another."""
    return before is not None and (before[0], *before[2:4]) == (now[0], *now[2:4]) and before != now


def goes_along(talk: Talk, now: Talk, again: bool) -> str:
    """The question of `talk` to be put to `now`: one that waits for its reply, or the last one. Not where it has been
    answered there, nor, unless it is to be asked again, where something else has."""
    if talk.asked:
        return "" if now.questions[-1:] == [talk.asked] else talk.asked
    last = "".join(talk.questions[-1:])
    return "" if last in now.questions or (now.questions and not again) else last


def _value(written: str | None) -> dict:
    """What changes where something is written in a box."""
    return {} if written is None else {"value": written}


def instruction(owner, who: Who) -> str | None:
    """What the data set tells a model to do, for a base model that is told more; None where nobody knows."""
    try:
        told_more = provided(run_of(owner, who.run))[1] if who.run else ""
    except UserError:
        return None  # the data may have gone since; a suggestion is all that is lost
    return told_more if told_more not in ("", LIKE_EXAMPLES) else None  # here there are no examples

"""What happens in the Chat tab: asking, stopping, and turning to somebody else. Handlers alone, no components.

Each choice of who answers, and in which template, has a conversation of its own. The one that is left is kept, and
comes back with the choice; its last question goes along, so that the next can be asked the same.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import gradio as gr

from sft.best_prompt import LIKE_EXAMPLES
from sft.errors import UserError
from sft.ui import paint
from sft.ui.answering import answer, broken_off, get_ready
from sft.ui.floor import Floor
from sft.ui.panes import PANES, painted, stamps
from sft.ui.talk import PROMPTED, Talk, Who, empty
from sft.ui.verdict_events import provided
from sft.ui.visitors import run_of
from sft.ui.who import (
    BASE_ALONE,
    held_out_questions,
    same_model,
    stage_label,
    stage_of,
    stages,
    state,
    suggested_system,
    thirds,
    told_with,
    who_of,
)

SHOWN = 2 + 2 * PANES  # what `paint_talk` gives
TURNED = SHOWN + 2 * PANES + 10  # what `turn` gives
TURNING = "One moment: the page is still turning to who you chose."
BUSY = "A reply is still being written. Wait for its end, or press Stop."
TEMPLATES = {
    "right": "The chat template that belongs to the model, as in training: in it a tuned model learned to answer, and "
    "to stop.",
    "none": "No template, no markers: the bare text, and the model goes on with it. That is all that a base model "
    "does; it may as well write further questions.",
    "wrong": "The template of another family, named under each reply. Its markers are odd text to this model: it is "
    "asked as it never was in training. The reply may still be right, or make no sense, or never end.",
}


def paint_talk(talk: Talk) -> tuple:
    return talk, *painted(talk)


# ---- asking ----


def once_turned(asking: Callable, skipped: int, busy: str = BUSY) -> Callable:
    """`asking`, where the page has turned to whom the controls name, and no reply has the floor.

    Turning takes a second; until then `talk` is still with those before, and a question would go to them. Its answer
    ends in whether to ask again a moment later; `skipped` is how many values go before that. `busy` is said where
    another reply has the floor.
    """

    def ask(chosen, stage, third, other_format, template, talk: Talk, floor: Floor, *values) -> Iterator[tuple]:
        untouched = (gr.skip(),) * skipped
        if floor.turning or (chosen, stage, third, other_format, template) != talk.controls:
            waiting = (*untouched[: SHOWN - 1], f'<p class="talk-said" role="status">{TURNING}</p>')
            yield *waiting, *untouched[SHOWN:], True
        elif (steps := floor.speak(asking(talk, *values))) is None:
            if busy:
                gr.Info(busy)
            yield *untouched, False
        else:
            yield from ((*shown, False) for shown in steps)

    ask.__name__ = asking.__name__
    return ask


def send(talk: Talk, owner, system, third_system, prompt, *sampling) -> Iterator[tuple]:
    """The replies to what was written; what a person wrote goes back to the prompt where none came.

    A question that went along when the page turned, and was not asked yet, comes first.
    """
    if not (prompt or "").strip():
        yield (gr.skip(),) * (SHOWN + 1)
        return
    waiting = [talk.asked] if talk.asked.strip() not in ("", prompt.strip()) else []
    now = told(talk, system, third_system)
    try:
        for question in [*waiting, prompt]:
            left = question is prompt  # once: the next question may be written meanwhile
            for values in replying(owner, now, question, sampling, kept=replace(now, asked=question)):
                yield *values, "" if left else gr.skip()
                left = False
            now = values[0]
    except gr.Error:
        yield *(gr.skip() for _ in range(SHOWN)), prompt
        raise


def send_along(talk: Talk, owner, system, third_system, prompt, *sampling) -> Iterator[tuple]:
    """The replies to the question that went along when the page turned. What is in the prompt is a draft, and stays."""
    if not talk.asked:
        yield (gr.skip(),) * (SHOWN + 1)
        return
    try:
        for values in replying(owner, told(talk, system, third_system), talk.asked, sampling, kept=talk):
            yield *values, gr.skip()
    except gr.Error:
        yield *(gr.skip() for _ in range(SHOWN)), gr.skip() if (prompt or "").strip() else talk.asked
        raise


def retry(talk: Talk, owner, system, third_system, *sampling) -> Iterator[tuple]:
    """The last question once more, as if it had not been answered."""
    if not talk.questions:
        yield (gr.skip(),) * SHOWN
        return
    earlier = told(talk.until(len(talk.questions) - 1), system, third_system)
    yield from replying(owner, earlier, talk.questions[-1], sampling, kept=talk)


def ask_again(talk: Talk, owner, system, third_system, *sampling) -> Iterator[tuple]:
    """All questions from the first on, and at the end whether the replies are the same."""
    if not talk.questions:
        yield (gr.skip(),) * SHOWN
        return
    now = told(talk.until(0), system, third_system)
    for question in talk.questions:
        for values in replying(owner, now, question, sampling, kept=talk):
            yield values
        now = values[0]
    yield paint_talk(replace(now, said=_compared(talk, now)))


def _compared(before: Talk, now: Talk) -> str:
    others = []
    for old, new in zip(before.panes, now.panes, strict=True):
        pairs = zip(old.history[1::2], new.history[1::2], strict=True)
        others.append([(was["content"], text["content"]) for was, text in pairs if was != text])
    other, count = sum(map(len, others)), len(now.panes) * len(now.questions)
    if not other:
        return f"Asked again: all {count} replies are what they were."
    first = [pane[0] for pane in others if pane]  # those after it answer another history
    why = "Settings, seed, libraries or weights differ."
    if all(text.startswith(was) for was, text in first):
        why = "They go on where a reply was stopped before, by hand or at a lower limit."
    return f"Asked again: {other} of {count} replies are others now. {why}"


def told(talk: Talk, system, third_system) -> Talk:
    """The conversation with the system messages as they are now."""
    who = replace(talk.who, third_system=third_system or "")
    return replace(talk, who=who, system=system or "", asked="", said="")


def replying(owner, talk: Talk, question: str, sampling, kept: Talk) -> Iterator[tuple]:
    """Streams what `shown` shows. Until a reply begins the visitor's talk stays `kept`, and so it is again where none
    comes: a question without a reply would be read as part of the next one."""
    try:
        begun = False
        for now in answer(owner, talk, question, *sampling):
            begun = begun or any(pane.reply for pane in now.panes)
            yield now if begun else kept, *painted(now)
    except Exception as error:
        yield paint_talk(replace(kept, asked=""))
        if isinstance(error, UserError):
            words = paint.escape(str(error))
            raise gr.Error(words, duration=None, title="No reply", print_exception=False) from None
        words = paint.escape(f"{type(error).__name__}: {error}\n→ The conversation is as it was. Try again.")
        raise gr.Error(words, duration=None, title="The reply broke off") from error


def stopped(talk: Talk, prompt) -> tuple:
    """What is kept after Stop; a question without a reply goes back to the prompt, but in place of no draft."""
    return *paint_talk(broken_off(talk)), gr.skip() if (prompt or "").strip() else talk.asked or gr.skip()


def ready(in_sight: bool, owner, system, talk: Talk) -> None:
    """Loads who was chosen, once the tab has been looked at: others need no models in memory."""
    if in_sight:
        get_ready(owner, told(talk, system, talk.who.third_system))


def clear(talk: Talk) -> tuple:
    return paint_talk(replace(empty(talk.who, talk.template), controls=talk.controls))


def held_out_prompt(owner: str, chosen: str | None, draft: str | None, system: str | None) -> tuple:
    """A question from the rows that the run was never trained on, and the system message of its row. Takes the place of
    another such, but of no draft."""
    if not chosen or chosen.startswith(BASE_ALONE):
        gr.Info("A base model alone has no held-out rows; choose a run.")
        return (gr.skip(),) * 2
    try:
        questions = held_out_questions(run_of(owner, chosen))
    except UserError as error:
        raise gr.Error(paint.escape(str(error)), title="No held-out rows", print_exception=False) from None
    if (draft or "").strip() and draft not in questions:
        gr.Info("There is a draft in the prompt. Send it or delete it first.")
        return (gr.skip(),) * 2
    question = random.choice(list(questions))
    return question, told_with(questions, question, system)


# ---- turning to somebody else ----


def leave(talk: Talk, kept: dict) -> None:
    """Keeps a conversation for when its turn comes again; one that was cleared is forgotten."""
    kept.pop(talk.key, None)
    if talk.questions:
        kept[talk.key] = broken_off(talk)


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
        as_it_is = replace(broken_off(talk), asked=talk.asked, said=talk.said)
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
        now = broken_off(talk)
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

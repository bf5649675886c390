"""What happens in the Chat tab when somebody asks, or says Stop. Handlers alone, no components."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import gradio as gr

from sft.errors import UserError
from sft.ui import paint
from sft.ui.answering import answer, broken_off, get_ready
from sft.ui.floor import Floor
from sft.ui.panes import PANES, painted
from sft.ui.talk import Talk, empty
from sft.ui.visitors import run_of
from sft.ui.who import BASE_ALONE, held_out_questions, told_with

SHOWN = 2 + 2 * PANES  # what `paint_talk` gives
TURNING = "One moment: the page is still turning to who you chose."
BUSY = "A reply is still being written. Wait for its end, or press Stop."


def paint_talk(talk: Talk) -> tuple:
    return talk, *painted(talk)


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

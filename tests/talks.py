"""Talks of the Chat tab, as its tests hold them."""

from sft.ui import answering
from sft.ui.floor import Floor
from sft.ui.turning import turn

GREEDY = (0, 1, 8, 0)  # eight tokens at most


def last(steps):
    found = None
    for found in steps:  # noqa: B007
        pass
    return found


def say(talk, *questions, settings=GREEDY):
    for question in questions:
        talk = last(answering.answer("local", talk, question, *settings))
    return talk


def replies(talk):
    return [pane.history[-1]["content"] for pane in talk.panes]


def turned(talk, drawer, chosen, stage=3, third="", template="right", boxes=("", "")):
    """As the page turns: to who is chosen, then to what is set about them. And the question that goes along."""
    controls, floor = (chosen, stage, third, False, template), Floor()
    if talk.controls is None or talk.controls[0] != chosen:
        *_, along, _ = values = turn("local", chosen, 0, "", False, template, *boxes, talk, drawer, floor)
        talk = values[0]
        if talk.controls == controls:
            return talk, along
    talk, *_, along, at_once = turn("local", *controls, *boxes, talk, drawer, floor)
    assert at_once == bool(talk.asked)
    return talk, talk.asked if at_once else along

"""The Chat tab turns to whom its controls name: what is kept, what goes along, what is asked again."""

from dataclasses import replace

import gradio as gr
import pytest
from talks import GREEDY, last, say, turned
from tiny_models import save_tiny_run

from sft.errors import UserError
from sft.ui import asking, turning, who
from sft.ui.asking import once_turned, send, send_along
from sft.ui.floor import Floor
from sft.ui.talk import PROMPTED, Talk, Who, empty
from sft.ui.turning import TURNED, make_way, turn

pytestmark = pytest.mark.usefixtures("two_runs")


def test_each_choice_keeps_its_own_conversation():
    drawer = {}
    first, _ = turned(Talk(), drawer, "one")
    first = say(first, "Hello?")
    other, question = turned(first, drawer, "two", stage=1)
    assert (other.questions, question) == ([], "Hello?")
    other = say(other, question)
    back, question = turned(other, drawer, "one")
    assert back.panes == first.panes
    assert question == ""
    wrong, question = turned(back, drawer, "one", template="wrong")
    assert (wrong.template, wrong.questions, question) == ("wrong", [], "Hello?")
    assert turned(wrong, drawer, "one", stage=1)[0].who == Who(run="one", step=2)
    assert turned(wrong, drawer, "two", stage=1)[0].panes == other.panes


def test_a_question_without_a_reply_goes_along():
    drawer = {}
    one = turned(Talk(), drawer, "one")[0]
    waiting = next(send(one, "local", "", "", "Hello?", *GREEDY))[0]
    assert turned(waiting, drawer, "one")[1] == "Hello?"
    two, question = turned(waiting, drawer, "one", stage=2)
    assert question == "Hello?"
    assert turned(two, drawer, "one", stage=1)[1] == "Hello?"  # moved on before it was asked
    assert turned(waiting, {}, "two", stage=1)[1] == "Hello?"  # it is for the prompt
    assert not drawer
    answered = say(one, "Hello?")
    waiting = next(send(answered, "local", "", "", "And then?", *GREEDY))[0]
    assert turned(waiting, drawer, "one", stage=2)[1] == "And then?"
    assert [talk.asked for talk in drawer.values()] == [""]
    assert turned(replace(two, asked="Hello?"), drawer, "one")[1] == ""  # it was answered there


def test_a_reply_cut_by_turning_says_that_it_was_stopped():
    steps = send(empty(Who(run="one")), "local", "", "", "Hello?", *GREEDY)
    begun = [next(steps), next(steps)][-1][0]
    next(steps)
    steps.close()
    assert len(begun.panes[0].reply.token_ids) == 1  # what was kept does not grow
    drawer = {}
    turned(begun, drawer, "two", stage=1)
    assert "1 token, cut by your next choice" in turned(Talk(), drawer, "one")[0].panes[0].note
    assert "1 token, cut by your next choice" in turned(begun, drawer, "one")[0].panes[0].note


def test_what_is_written_during_a_reply_stays():
    steps = list(send(empty(Who(run="one")), "local", "", "", "Hello?", *GREEDY))
    assert [values[-1] for values in steps] == ["", *[gr.skip()] * (len(steps) - 1)]


def test_a_question_that_goes_along_is_asked_without_the_draft():
    drawer = {}
    talk, question = turned(say(turned(Talk(), drawer, "one")[0], "Hello?"), drawer, "one", stage=1)
    assert question == "Hello?"
    steps = list(send_along(talk, "local", "", "", "a draft", *GREEDY))
    assert all(values[-1] == gr.skip() for values in steps)
    assert steps[-1][0].questions == ["Hello?"]
    assert steps[-1][0].asked == ""
    assert list(send_along(steps[-1][0], "local", "", "", "a draft", *GREEDY)) == [(gr.skip(),) * len(steps[0])]


def test_a_question_that_went_along_is_asked_before_one_that_is_sent():
    talk = replace(empty(Who(run="one")), asked="Hello?")
    steps = list(send(talk, "local", "", "", "And then?", *GREEDY))
    assert steps[-1][0].questions == ["Hello?", "And then?"]
    (cleared,) = (at for at, values in enumerate(steps) if values[-1] == "")
    assert steps[cleared][0].questions == ["Hello?"]  # until then the second one stands in the prompt
    assert last(send(talk, "local", "", "", " Hello?", *GREEDY))[0].questions == [" Hello?"]
    assert list(send(talk, "local", "", "", " ", *GREEDY)) == [(gr.skip(),) * (asking.SHOWN + 1)]


def test_in_another_template_the_last_question_is_asked_again_where_it_was_not():
    drawer = {}
    right = say(turned(Talk(), drawer, "one")[0], "First?")
    wrong = say(*turned(right, drawer, "one", template="wrong"))
    right, question = turned(wrong, drawer, "one")
    assert question == ""
    right = say(right, "Second?")
    wrong, question = turned(right, drawer, "one", template="wrong")
    assert (wrong.questions, question) == (["First?"], "Second?")
    other = say(turned(right, drawer, "two", stage=1)[0], "Mine.")
    assert turned(other, drawer, "one")[1] == ""  # another run has its own conversation


def test_after_stop_a_page_that_turns_asks_nothing_by_itself():
    floor, controls = Floor(), ("one", 3, "", False, "none")
    talk = say(turned(Talk(), {}, "one")[0], "Hello?")
    for stops, asks in ((False, True), (True, False)):
        make_way(*controls, talk, floor)
        if stops:
            floor.stop()
        now, *_, along, at_once = turn("local", *controls, "", "", talk, {}, floor)
        assert (at_once, now.asked, along) == (asks, "Hello?" * asks, "Hello?" * stops)


@pytest.mark.parametrize(("draft", "back"), [("a draft", gr.skip()), ("", "Hello?")])
def test_a_question_that_went_along_in_vain_goes_back_to_the_prompt(monkeypatch, draft, back):
    def nobody(*about):
        raise UserError("There is nobody.")

    monkeypatch.setattr(asking, "answer", nobody)
    talk = replace(empty(Who(run="one")), asked="Hello?")
    steps = send_along(talk, "local", "", "", draft, *GREEDY)
    assert next(steps)[0].asked == ""
    assert next(steps)[-1] == back
    with pytest.raises(gr.Error, match="nobody"):
        next(steps)


def test_nobody_is_asked_before_the_page_has_turned_to_whom_the_controls_name():
    """Then the page asks again a moment later, and says so meanwhile."""
    shown = ("rest",) * (asking.SHOWN + 1)
    ask = once_turned(lambda talk, *values: (each for each in [values]), len(shown))
    controls, floor = ("one", 3, "", False, "right"), Floor()
    talk = turn("local", *controls, "", "", Talk(), {}, floor)[0]
    assert talk.controls == controls
    assert list(ask(*controls, talk, floor, *shown)) == [(*shown, False)]

    def refused(*others):
        ((*values, said, prompt, again),) = ask(*others, talk, floor, *shown)
        assert values == [gr.skip()] * (asking.SHOWN - 1) and prompt == gr.skip()
        return again and "still turning" in said

    for others in (("two", *controls[1:]), ("one", 2, "", False, "right"), ("one", 3, "", False, "none")):
        assert refused(*others)
    make_way("two", *controls[1:], talk, floor)
    assert refused(*controls)  # it is about to turn away
    turn("local", *controls, "", "", talk, {}, floor)
    assert list(ask(*controls, talk, floor, *shown)) == [(*shown, False)]


def test_who_is_chosen_already_is_not_turned_to_again():
    """A second event of the same choice would break off a reply that was asked for since."""
    controls, floor = ("one", 3, "", False, "right"), Floor()
    talk = turn("local", *controls, "", "", Talk(), {}, floor)[0]
    speaking = floor.speak(numbers(3))
    next(speaking)
    make_way(*controls, talk, floor)
    assert floor.taken
    again = turn("local", *controls, "", "", talk, {}, floor)
    assert list(again) == [gr.skip()] * (TURNED - 2) + ["", False]
    make_way("one", 2, *controls[2:], talk, floor)
    assert not floor.taken
    speaking.close()


def test_there_and_back_again_shows_what_was_broken_off_and_asks_what_was_not_answered():
    controls, floor = ("one", 3, "", False, "right"), Floor()
    talk = turn("local", *controls, "", "", Talk(), {}, floor)[0]
    steps = floor.speak(send(talk, "local", "", "", "Hello?", *GREEDY))
    waiting = next(steps)[0]
    make_way("one", 3, "", False, "none", waiting, floor)
    now, *_, along, at_once = turn("local", *controls, "", "", waiting, {}, floor)
    assert (now.asked, along, at_once) == ("Hello?", "", True)
    begun = list(zip(range(3), send(talk, "local", "", "", "Hello?", *GREEDY), strict=False))[-1][1][0]
    now, *_, at_once = turn("local", *controls, "", "", begun, {}, floor)
    assert "cut by your next choice" in now.panes[0].note
    assert not at_once


def numbers(count):
    yield from ((number,) for number in range(count))


def test_a_page_has_one_reply_at_a_time(monkeypatch):
    told, floor = [], Floor()
    monkeypatch.setattr(gr, "Info", told.append)
    ask = once_turned(lambda talk, *values: (each for each in [values] * 3), 1)
    controls = ("one", 3, "", False, "right")
    talk = Talk(controls=controls)
    first = ask(*controls, talk, floor, "first")
    assert next(first) == ("first", False)
    assert list(ask(*controls, talk, floor, "second")) == [(gr.skip(), False)]
    assert told == [asking.BUSY]
    assert list(first) == [("first", False)] * 2
    assert list(ask(*controls, talk, floor, "second")) == [("second", False)] * 3


def test_only_the_same_model_in_another_state_is_asked_at_once():
    talk = say(turned(Talk(), {}, "one")[0], "Hello?")

    def asks(before, *controls):
        now, *_, along, at_once = turn("local", *controls, "", "", replace(talk, controls=before), {}, Floor())
        assert (now.asked or along) == "Hello?"
        return at_once

    before = ("one", 3, "", False, "right")
    assert asks(before, "one", 1, "", False, "right")
    assert asks(before, "one", 3, "", False, "none")
    assert not asks(before, "one", 3, PROMPTED, False, "right")
    assert not asks(before, "two", 1, "", False, "right")


def boxes_after(talk, drawer, chosen, boxes, third=""):
    """What turning writes in the two boxes, None where nothing, and the conversation then."""
    values = turn("local", chosen, 3, third, False, "right", *boxes, talk, drawer, Floor())
    return [box.get("value") for box in values[-5:-3]], values[0]


def test_a_conversation_comes_back_with_its_own_system_message(monkeypatch):
    monkeypatch.setattr(turning, "suggested_system", lambda owner, chosen: f"{chosen}'s.")
    drawer = {}
    talk = say(turned(Talk(), drawer, "one")[0], "Hello?")
    written, other = boxes_after(talk, drawer, "two", boxes=("As asked.", ""))
    assert written == ["two's.", "two's."]
    assert boxes_after(other, drawer, "one", boxes=written)[0] == ["As asked.", ""]
    assert boxes_after(replace(talk, controls=None), drawer, "one", boxes=("", ""))[0] == [talk.system, ""]


def test_a_base_model_told_more_begins_with_what_the_data_set_says(two_runs, tiny_model):
    run = save_tiny_run(two_runs, "share", tiny_model, seed=6)
    replace(run.config(), eval_share=0.1).save(run.folder / "config.yaml")
    for name, begins in (("share", "You file support tickets"), ("one", "None")):  # one held no rows back
        talk = turned(Talk(), {}, name)[0]
        system, told_more = boxes_after(talk, {}, name, third=PROMPTED, boxes=("Same.", "Same."))[0]
        assert system is None
        assert str(told_more).startswith(begins)
        assert boxes_after(talk, {}, name, third=PROMPTED, boxes=("Same.", "Own."))[0] == [None, None]
    run.delete()


def test_the_result_is_of_the_step_at_which_it_was_saved(two_runs, tiny_model):
    run = save_tiny_run(two_runs, "stopped", tiny_model, seed=6)
    run.append_event("start", step=0, resumed_from=0)
    run.append_event("end", step=5, state="stopped")
    assert who.stages(run) == [0, 5]
    run.append_event("start", step=5, resumed_from=5)
    run.set_status("training", step=7, max_steps=9)
    assert who.stages(run) == [0, 5]
    run.append_event("end", step=7, state="failed")
    assert who.stages(run) == [0, 5]
    run.append_event("end", step=9, state="finished")
    assert who.stages(run) == [0, 9]
    run.set_status("finished", step=9, max_steps=9)
    run.delete()


def test_a_run_that_cannot_be_read_keeps_no_other_from_being_chosen(two_runs, tiny_model):
    run = save_tiny_run(two_runs, "older", tiny_model, seed=6)
    (run.folder / "config.yaml").write_text("of_another_version: 1\n")
    assert [value for _, value in who.thirds("local", Who(run="one"))] == ["", PROMPTED, "two"]
    run.delete()


def test_what_can_be_set_follows_who_was_chosen():
    def settings(chosen, talk):
        stage, third, other_format, system, _ = turn("local", chosen, 0, "", False, "right", "", "", talk, {}, Floor())[
            -8:-3
        ]
        return stage, third, other_format["value"], system["value"]

    stage, third, other_format, _ = settings("one", Talk())
    assert (stage["visible"], stage["maximum"], stage["value"]) == (True, 3, 3)
    assert [value for _, value in third["choices"]] == ["", PROMPTED, "two"]
    assert other_format is False
    assert settings("two", Talk())[0]["visible"] is False
    opened = say(empty(Who(run="one", step=2, third="two")), "Hello?")
    opened = replace(opened, system="As then.")
    stage, third, _, system = settings("one", opened)
    assert (stage["value"], third["value"], system) == (1, "two", "As then.")
    assert settings("two", replace(opened, controls=("one", 1, "two", False, "right")))[1]["value"] == ""

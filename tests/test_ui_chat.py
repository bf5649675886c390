"""The Chat tab's own logic on tiny models: who answers, what is kept, what is said where somebody cannot answer."""

import json
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from tiny_models import save_tiny_run

from sft import chat, models
from sft.errors import RunError, TemplateError, UserError
from sft.ui import answering, asking, keeping, kept, turning, who
from sft.ui.asking import ask_again, once_turned, replying, retry, send, send_along, stopped
from sft.ui.floor import Floor
from sft.ui.panes import NOTHING, bubbles, models_of, stamps
from sft.ui.talk import PROMPTED, Pane, Talk, Who, contest_of, empty
from sft.ui.turning import TURNED, make_way, turn

GREEDY = (0, 1, 8, 0)  # eight tokens at most


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model):
    """Two runs of the same model, the first with snapshots."""
    root = tmp_path_factory.mktemp("runs")
    save_tiny_run(root, "one", tiny_model, seed=1, snapshots=(2, 5))
    save_tiny_run(root, "two", tiny_model, seed=2)
    return root


@pytest.fixture(autouse=True)
def runs(folder, monkeypatch):
    monkeypatch.setenv("SFT_RUNS_DIR", str(folder))
    return folder


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


# ---- who answers ----


def test_the_controls_say_who_answers(runs):
    assert who.who_of("local", "one", 3, "", False) == Who(run="one")
    assert who.who_of("local", "one", 0, "two", True) == Who(run="one", step=0, third="two", other_format=True)
    assert who.who_of("local", "one", 1, PROMPTED, False).step == 2
    assert who.who_of("local", "two", 0, None, False).step == 0
    assert who.who_of("local", "base alone: embedded", 1, "two", False) == Who(base="embedded")
    assert who.who_of("local", None, 1, None, False) == Who()
    with pytest.raises(RunError, match="There is no run 'three'"):
        who.who_of("local", "three", 1, "", False)
    steps = who.stages(who.run_of("local", "one"))
    assert steps == [0, 2, 5, 8]
    assert [who.stage_of(Who(run="one", step=step), steps) for step in (0, 2, 5, None)] == [0, 1, 2, 3]
    assert who.stage_label(steps, 2) == "As it was after step 5 of 8"
    assert [value for _, value in who.thirds("local", Who(run="one"))] == ["", PROMPTED, "two"]


def test_each_pane_says_what_made_its_words(tiny_model):
    base, tuned, third = models_of("local", Who(run="one", step=5, third="two"))
    assert base == f"Base model: {tiny_model}, adapter off"
    assert tuned == "Tuned model: the same with the adapter of one as after step 5, adapter on"
    assert third == "Another run: the same with the adapter of two, adapter on"
    assert "still the base model" in stamps("local", Who(run="one", step=0))[1]
    assert stamps("local", Who(base="<b>"))[0].count("&lt;b&gt;") == 1


def test_every_stage_and_a_third_answer_for_themselves():
    """Each pane's reply is that of its model alone, whoever answers beside it."""
    whole = say(empty(Who(run="one", third="two")), "Hello?")
    assert len(set(replies(whole))) == 3
    assert replies(say(empty(Who(run="two")), "Hello?")) == [replies(whole)[0], replies(whole)[2]]
    stages = [replies(say(empty(Who(run="one", step=step)), "Hello?"))[1] for step in (0, 2, 5, None)]
    assert stages[0] == replies(whole)[0]
    assert stages[3] == replies(whole)[1]
    assert len(set(stages)) == 4


def test_a_base_model_told_more_reads_its_own_system_message():
    talk = replace(empty(Who(run="one", third=PROMPTED, third_system="You know it all.")), system="Be brief.")
    read = [pane.text for pane in say(talk, "Hello?").panes]
    assert "Be brief." in read[0] == read[1]
    assert "You know it all." in read[2]
    assert "Be brief." not in read[2]


# ---- asking ----


def test_a_reply_joins_the_talk_and_says_how_it_came_about(runs):
    talk = say(empty(Who(run="one")), "Hello?", "And then?")
    assert talk.questions == ["Hello?", "And then?"]
    assert [message["role"] for message in talk.panes[1].history] == ["user", "assistant"] * 2
    contest = contest_of("local", talk.who)
    assert talk.panes[1].prompt == contest.chat_format.prompt_ids(talk.panes[1].history[:-1])
    note = talk.panes[0].note
    assert note.startswith("8 tokens, cut at the limit: it did not stop · ")
    assert note.endswith(f" tokens/s · greedy · chat format {contest.chat_format.hash[:8]}")
    drawn = say(empty(Who(run="one")), "Hello?", settings=(0.5, 0.9, 4, 3)).panes[0].note
    assert "temperature 0.5, top p 0.9, seed 3" in drawn


def test_every_reply_is_kept_with_what_was_read_before_it(runs):
    first = say(empty(Who(run="one")), "Hello?")
    both = say(first, "And then?")
    for one, pane in zip(first.panes, both.panes, strict=True):
        assert pane.turns == [(one.prompt, one.reply.token_ids), (pane.prompt, pane.reply.token_ids)]
        assert both.until(1).panes[0].turns == first.panes[0].turns


def test_a_reply_without_a_word_says_so():
    for text, shown in (("", NOTHING), (" \n", NOTHING), (" a", " a")):
        assert bubbles([{"role": "assistant", "content": text}])[0]["content"][0]["text"] == shown


@pytest.mark.parametrize("template", ["none", "wrong"])
def test_the_same_question_in_another_template(template):
    right = say(empty(Who(run="one")), "Hello?")
    other = say(empty(Who(run="one"), template), "Hello?")
    assert replies(other) != replies(right)
    assert other.panes[0].prompt == other.panes[1].prompt != right.panes[0].prompt
    assert (other.panes[0].text == "Hello?") == (template == "none")
    assert {"none": "without any template", "wrong": "wrong template, llama3"}[template] in other.panes[1].note


def test_the_oldest_turns_are_dropped_and_it_is_said(tiny_model):
    long = "fox " * 200
    talk = replace(say(empty(Who(run="one")), long, long), system="Be brief.")
    talk = say(talk, long)
    contest = contest_of("local", talk.who)
    assert models.context_length(contest.folder) == 512
    for pane in talk.panes:
        assert len(pane.prompt) <= 512 - 8
        assert pane.text.count(long) < 3
        assert "Be brief." in pane.text
        assert "no longer fit" in pane.note
        assert len(pane.history) == 6  # still to be seen
    with pytest.raises(RunError, match="beside the reply there is room for 504"):
        say(talk, "fox " * 600)


def test_a_question_without_a_reply_is_not_part_of_the_talk():
    talk = say(empty(Who(run="one")), "Hello?")
    broken = replace(talk, who=Who(run="gone"))
    steps = send(broken, "local", "", "", "new", *GREEDY)
    first = next(steps)
    assert first[0].questions == ["Hello?"]
    assert first[0].asked == "new"
    assert first[1][-1]["content"] == [{"type": "text", "text": "new"}]
    back = next(steps)
    assert back[0].asked == ""
    assert back[1] == bubbles(talk.panes[0].history)
    assert next(steps)[-1] == "new"
    with pytest.raises(gr.Error, match="There is no run"):
        next(steps)


def test_an_error_in_the_middle_leaves_the_talk_as_it_was(monkeypatch):
    talk = say(empty(Who(run="one")), "Hello?")

    def breaks(contest, prompts, sampling):
        yield [chat.Reply([1], "hi")] * 2
        raise RuntimeError("no <memory>")

    monkeypatch.setattr(chat, "stream", breaks)
    seen = []
    with pytest.raises(gr.Error, match="RuntimeError: no &lt;memory&gt;") as told:
        seen.extend(replying("local", talk, "new", GREEDY, kept=talk))
    assert told.value.title == "The reply broke off"
    assert [values[0].questions for values in seen] == [["Hello?"], ["Hello?", "new"], ["Hello?"]]


def test_stop_says_so_and_gives_back_a_question_without_a_reply():
    steps = send(empty(Who(run="one")), "local", "", "", "Hello?", *GREEDY)
    waiting = next(steps)[0]
    assert stopped(waiting, "")[-1] == "Hello?"
    assert stopped(waiting, "a draft")[-1] == gr.skip()
    assert stopped(waiting, "")[0].questions == []
    begun = next(steps)[0]
    steps.close()
    kept_after, *_, prompt = stopped(begun, "")
    assert kept_after.questions == ["Hello?"]
    assert "1 token, stopped by you" in kept_after.panes[0].note
    assert prompt == gr.skip()


def test_retry_asks_the_last_question_as_if_it_had_not_been_answered():
    talk = say(empty(Who(run="one")), "Hello?", "And then?")
    right = talk.panes[1].history
    talk.panes[1].history = [*right[:-1], {"role": "assistant", "content": "something else"}]
    again = last(retry(talk, "local", "", "", *GREEDY))[0]
    assert again.panes[1].history == right
    assert last(retry(Talk(), "local", "", "", *GREEDY)) == (gr.skip(),) * asking.SHOWN


def test_a_training_on_the_same_machine_is_told(runs, tiny_model):
    import os

    busy = save_tiny_run(runs, "busy", tiny_model, seed=3)
    busy.set_status("training", step=1, max_steps=9, pid=os.getpid())
    assert next(answering.answer("local", empty(Who(run="one")), "Hello?", *GREEDY)).said == answering.TRAINING
    busy.set_status("finished")
    assert next(answering.answer("local", empty(Who(run="one")), "Hello?", *GREEDY)).said == ""
    busy.delete()


# ---- turning to somebody else ----


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


def test_a_base_model_told_more_begins_with_what_the_data_set_says(runs, tiny_model):
    run = save_tiny_run(runs, "share", tiny_model, seed=6)
    replace(run.config(), eval_share=0.1).save(run.folder / "config.yaml")
    for name, begins in (("share", "You file support tickets"), ("one", "None")):  # one held no rows back
        talk = turned(Talk(), {}, name)[0]
        system, told_more = boxes_after(talk, {}, name, third=PROMPTED, boxes=("Same.", "Same."))[0]
        assert system is None
        assert str(told_more).startswith(begins)
        assert boxes_after(talk, {}, name, third=PROMPTED, boxes=("Same.", "Own."))[0] == [None, None]
    run.delete()


def test_the_result_is_of_the_step_at_which_it_was_saved(runs, tiny_model):
    run = save_tiny_run(runs, "stopped", tiny_model, seed=6)
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


def test_a_run_that_cannot_be_read_keeps_no_other_from_being_chosen(runs, tiny_model):
    run = save_tiny_run(runs, "older", tiny_model, seed=6)
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


# ---- wrong states ----


def test_every_wrong_state_has_words(runs, tiny_model, tiny_base_model):
    assert "Tune a model first" in who.state("local", Who())[0]
    assert who.state("local", Who(base="embedded"))[0] == ""
    assert who.ALONE in who.state("nobody's", Who(base="embedded"))[0]
    run = save_tiny_run(runs, "wrong", tiny_model, seed=4)
    weights = run.adapter / "adapter_model.safetensors"
    weights.rename(run.adapter / "adapter_model.bin")
    assert "no adapter in safetensors" in who.state("local", Who(run="wrong"))[0]
    (run.adapter / "adapter_model.bin").rename(weights)
    run.append_event("start", step=0, base="of other weights")
    assert "its weights have changed" in who.state("local", Who(run="wrong"))[0]
    run.delete()
    assert "There is no run" in turn("local", "wrong", 1, "", False, "right", "", "", Talk(), {}, Floor())[-9]
    other = save_tiny_run(runs, "wrong", tiny_base_model, seed=4)
    html, mendable = who.state("local", Who(run="one", third="wrong"))
    assert "cannot answer beside it" in html
    assert not mendable
    other.delete()


def test_another_chat_format_is_refused_or_paired_under_a_warning(runs, tiny_model):
    run = save_tiny_run(runs, "odd", tiny_model, seed=5)
    template = run.folder / "chat_template.jinja"
    template.write_bytes(b"{{ 'ODD' }}" + template.read_bytes())
    for asked in (Who(run="odd"), Who(run="one", third="odd")):
        html, mendable = who.state("local", asked)
        assert "chat format" in html
        assert mendable
    html, mendable = who.state("local", Who(run="odd", other_format=True))
    assert who.PAIRED in html
    assert mendable  # it can be taken back
    assert "ODD" in say(empty(Who(run="odd", other_format=True)), "Hello?").panes[1].text
    run.delete()


# ---- keeping ----


def test_a_kept_conversation_is_opened_and_asked_again_alike():
    talk = say(empty(Who(run="one", step=5, third=PROMPTED, third_system="Know all.")), "Hello?", "And then?")
    talk = replace(talk, system="")
    source = kept.to_json(talk, models_of("local", talk.who))
    opened = kept.opened("local", source.encode())
    assert [pane.history for pane in opened.panes] == [pane.history for pane in talk.panes]
    assert (opened.who, opened.sampling, opened.template) == (talk.who, talk.sampling, "right")
    assert opened.key == talk.key
    again = last(ask_again(opened, "local", "", "Know all.", *GREEDY))[0]
    assert again.said == "Asked again: all 6 replies are what they were."
    again.panes[0].history[1]["content"] = "something else"
    changed = last(ask_again(again, "local", "", "Know all.", *GREEDY))[0]
    assert changed.said.startswith("Asked again: 1 of 6 replies are others now. Settings")
    again.panes[0].history[1]["content"] = replies(talk.until(1))[0][:3]
    stopped_before = last(ask_again(again, "local", "", "Know all.", *GREEDY))[0]
    assert "1 of 6 replies are others now. They go on where a reply was stopped" in stopped_before.said


def test_an_error_while_it_is_asked_again_leaves_it_as_it_was(monkeypatch):
    talk = say(empty(Who(run="one")), "Hello?", "And then?")
    stream = chat.stream

    def breaks(contest, prompts, sampling):
        if prompts[0] == talk.panes[0].prompt:
            raise RuntimeError("no memory")
        return stream(contest, prompts, sampling)

    monkeypatch.setattr(chat, "stream", breaks)
    steps, seen = ask_again(talk, "local", "", "", *GREEDY), []
    with pytest.raises(gr.Error):
        seen.extend(steps)
    assert seen[-1][0] == talk


def test_a_conversation_to_read_has_no_markup_of_what_was_said():
    talk = say(empty(Who(run="one")), "# Not a heading\n<img src=x>")
    text = kept.to_markdown(talk, models_of("local", talk.who))
    assert "\n    # Not a heading\n    <img src=x>\n" in text
    assert "- max_new_tokens: 8" in text
    assert "**Tuned model: the same with the adapter of one, adapter on**" in text


def changed_file(**about):
    talk = Talk(Who(run="one"), [Pane([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])] * 2)
    return json.dumps({**json.loads(kept.to_json(talk, ["", ""])), **about}).encode()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"no json", "is not a conversation"),
        (b"\xff\xfe", "is not a conversation"),
        (b"[" * 100_000, "is not a conversation"),
        (b"{}", "is not a conversation"),
        (changed_file(kind="other"), "is not a conversation"),
        (changed_file(template="../../etc"), "is not a conversation"),
        (changed_file(system=7), "is not a conversation"),
        (changed_file(who={"run": "one"}), "is not a conversation"),
        (changed_file(who={**vars(Who()), "step": "x"}), "is not a conversation"),
        (changed_file(sampling={"temperature": 9, "top_p": 1, "max_new_tokens": 8, "seed": 0}), "is not a conv"),
        (changed_file(panes=[{"messages": [{"role": "system", "content": "a"}]}] * 2), "is not a conversation"),
        (changed_file(panes=[]), "not one history for each"),
        (changed_file(who=vars(Who(run="gone"))), "There is no run 'gone'"),
        (changed_file(who=vars(Who(run="one", step=3))), "kept no snapshot of step 3"),
        (changed_file(who=vars(Who(base="../x", third=PROMPTED))), "none of the models that answer here"),
        (changed_file(who=vars(Who(run="one", third="one")), panes=[{"messages": []}] * 3), "cannot answer beside"),
        (b" " * (kept.LARGEST + 1), "at most 2,000,000"),
    ],
)
def test_a_file_that_cannot_be_gone_on_with_is_told_in_words(source, said):
    with pytest.raises(UserError, match=said):
        kept.opened("local", source)
    assert kept.opened("local", changed_file()).questions == ["a"]


def test_a_conversation_of_another_chat_format_is_not_gone_on_with():
    with pytest.raises(TemplateError, match="held in another chat format"):
        kept.opened("local", changed_file(chat_format="0" * 64))


def test_a_held_out_question_may_have_no_text(monkeypatch):
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    held_out = [SimpleNamespace(messages=messages) for messages in ([{"role": "user", "tool_calls": []}], asked)]
    monkeypatch.setattr(who, "load_split", lambda config: SimpleNamespace(held_out=held_out))
    for draft in (None, "", "q"):
        assert asking.held_out_prompt("local", "one", draft, "") == ("q", "Be brief.")
    assert asking.held_out_prompt("local", "one", "q", "My own.") == ("q", gr.skip())
    assert asking.held_out_prompt("local", "one", "a draft", "") == (gr.skip(),) * 2
    held_out.pop()
    with pytest.raises(gr.Error, match="no held-out rows"):
        asking.held_out_prompt("local", "one", "", "")


def test_a_conversation_that_was_cleared_does_not_come_back():
    drawer = {}
    talk = say(turned(Talk(), drawer, "one")[0], "Hello?")
    other, _ = turned(talk, drawer, "two", stage=1)
    back, _ = turned(other, drawer, "one")
    assert back.questions == ["Hello?"]
    cleared = asking.clear(back)[0]
    other, _ = turned(cleared, drawer, "two", stage=1)
    assert turned(other, drawer, "one")[0].questions == []


def test_a_file_is_opened_in_place_of_what_is_there():
    drawer = {}
    talk = say(empty(Who(run="two")), "Mine.")
    now, drawer, chosen, template, *_ = keeping.open_kept("local", changed_file(), talk, drawer)
    assert (now.questions, chosen["value"], template, now.controls) == (["a"], "one", "right", None)
    assert turned(now, drawer, "one")[0].panes == now.panes
    assert turned(now, drawer, "two", stage=1)[0].questions == ["Mine."]

"""A conversation becomes a file, and a file a conversation."""

import json
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from talks import GREEDY, last, replies, say, turned

from sft import chat
from sft.errors import TemplateError, UserError
from sft.ui import asking, keeping, kept, who
from sft.ui.asking import ask_again
from sft.ui.panes import models_of
from sft.ui.talk import PROMPTED, Pane, Talk, Who, empty

pytestmark = pytest.mark.usefixtures("two_runs")


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

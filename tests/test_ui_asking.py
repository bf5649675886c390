"""What is asked in the Chat tab, and how the reply joins the talk."""

from dataclasses import replace

import gradio as gr
import pytest
from talks import GREEDY, last, replies, say
from tiny_models import save_tiny_run

from sft import chat, models
from sft.errors import RunError
from sft.ui import answering, asking
from sft.ui.asking import replying, retry, send, stopped
from sft.ui.panes import NOTHING, bubbles
from sft.ui.talk import Talk, Who, contest_of, empty

pytestmark = pytest.mark.usefixtures("two_runs")


def test_a_reply_joins_the_talk_and_says_how_it_came_about(two_runs):
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


def test_every_reply_is_kept_with_what_was_read_before_it(two_runs):
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


def test_a_training_on_the_same_machine_is_told(two_runs, tiny_model):
    import os

    busy = save_tiny_run(two_runs, "busy", tiny_model, seed=3)
    busy.set_status("training", step=1, max_steps=9, pid=os.getpid())
    assert next(answering.answer("local", empty(Who(run="one")), "Hello?", *GREEDY)).said == answering.TRAINING
    busy.set_status("finished")
    assert next(answering.answer("local", empty(Who(run="one")), "Hello?", *GREEDY)).said == ""
    busy.delete()

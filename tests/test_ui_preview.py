"""The Preview tab without a browser: examples, templates and what is compared."""

import json
import re

import gradio as gr
import pytest
from tiny_models import tiny_tokenizer

from sft.chat_format import ChatFormat, preset
from sft.errors import ConfigError, DataError
from sft.ui import editor, inputs, preview


def test_the_examples_of_the_preview_are_conversations():
    from sft.messages import problems

    for name, messages in preview.EXAMPLES.items():
        assert not problems(messages), name
    assert json.loads(preview._dump(preview._example("One question", 1))) == preview.EXAMPLES["One question"]


EXACT = {
    "messages": [
        {"content": "Warm?", "name": "ann", "role": "user"},
        {"role": "assistant", "tool_calls": [{"arguments": {"t": 1.0, "id": 1234567890123456789, "10": 1, "2": 2}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"nan": float("inf")}]},
    ],
    "tools": [{"b": 1.0, "10": 20.5, "2": 2**70}],
}


def test_what_goes_to_the_page_comes_back_exactly():
    value = editor.to_page(EXACT)
    assert all(each.keys() == {"role", "content", "whole"} for each in value["messages"])  # and all of them are text
    assert json.dumps(editor.from_page(value)) == json.dumps(EXACT)
    value["messages"][0] |= {"role": "system", "content": "Warmer?"}
    value["messages"][1]["content"] = "I look."
    value["messages"].append({"role": "user", "content": ""})
    messages = editor.from_page(value)["messages"]
    assert list(messages[0].items()) == [("content", "Warmer?"), ("name", "ann"), ("role", "system")]
    assert messages[1] == {**EXACT["messages"][1], "content": "I look."}
    assert messages[3] == {"role": "user", "content": ""}


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"messages": None}, {"messages": [1], "tools": "null"}, {"messages": [], "tools": None},
     {"messages": [{"role": "user", "content": "", "whole": "[" * 9999}], "tools": "null"},
     {"messages": [{"role": "user", "content": "", "whole": "[]"}], "tools": "null"}],
)  # fmt: skip
def test_what_no_editor_would_send_is_told_in_words(shown, value):
    assert "Reload the page." in preview.show("any", None, "", "", None, None, value, False)[0]
    with pytest.raises(DataError, match="not a conversation"):
        preview.what_if("any", None, "", "", "own", None, value)


def test_tools_are_shown_as_they_are_trained_on(write_rows, tmp_path, monkeypatch):
    tools = [{"type": "function", "function": {"name": "weather"}}]
    row = {"messages": preview.EXAMPLES["One question"], "tools": tools}
    monkeypatch.setitem(inputs.DATA, "tooled", write_rows([row, {**row, "messages": []}]))
    conversation = preview._example("data: tooled", 1)
    assert conversation["tools"]
    assert json.loads(preview._dump(conversation)) == conversation
    telling = ChatFormat.of(tiny_tokenizer("{{ tools | tojson }}" + preset("chatml")))
    monkeypatch.setattr(preview, "changed_format", lambda *about: telling)
    assert "weather" in preview.show("any", None, "", "", None, None, editor.to_page(conversation), False)[0]
    with pytest.raises(DataError, match="line 2 cannot be used"):
        preview._example("data: tooled", 2)


def test_a_row_that_is_not_there_is_told(write_rows, monkeypatch):
    rows = [{"question": f"{n}?", "answer": "Yes."} for n in range(1, 4)]
    monkeypatch.setitem(inputs.DATA, "three", write_rows(rows))
    assert preview._example("data: three", 3)["messages"][0]["content"] == "3?"
    for number in (0, 4, 99_999):
        with pytest.raises(DataError, match=f"There is no row {number:,}") as told:
            preview._example("data: three", number)
        assert "from 1 to 3" in told.value.hint


@pytest.fixture
def shown(monkeypatch, tiny_model):
    """What the page shows of a conversation with these templates."""
    monkeypatch.setattr(inputs.READINESS, "ready", True)
    talk = editor.to_page({"messages": preview.EXAMPLES["With a system message"], "tools": None})

    def show(template=None, second=None, edited=None, prompted=False):
        return preview.show(str(tiny_model), template, "", "", second, edited, talk, prompted)

    return show


def test_a_second_template_that_fails_is_told_in_its_own_place(shown):
    alone, both = shown(), shown(second="preset:gemma")  # which has no system role
    assert both[:5] == alone[:5]
    assert "The second template does not render this" in both[5]
    assert "gemma has no system role" in both[5]
    unknown = shown(second="preset:../../etc/passwd")
    assert unknown[:5] == alone[:5]
    assert "There is no preset" in unknown[5]
    first_fails = shown(template=inputs.preset_of("preset:gemma"), second="own")
    assert "does not render" in first_fails[0]
    assert "The template above does not render this" in first_fails[5]


@pytest.mark.parametrize("name", ["preset:../chat_templates/plain", "preset:", "nothing", None, 7])
def test_only_presets_are_read_by_name(name):
    with pytest.raises(ConfigError, match="There is no preset"):
        inputs.preset_of(name)
    with pytest.raises(ConfigError, match="There is no preset"):
        preview.choose_template(name, "any", "", None, None)


def test_the_template_edited_on_the_page_is_compared_and_picked_again(shown):
    assert "No template is edited on this page yet" in shown(second="edited")[5]
    picked, edited, name = preview.edit("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert (picked, name) == (edited, "edited")
    compared = shown(second="edited", edited=edited)[5]
    assert "edited on this page" in compared
    assert "the model&#x27;s own" in compared
    assert preview.choose_template("edited", "any", "", edited, None)[:2] == (edited, edited.source)
    skipped = preview.choose_template("edited", "any", "", edited, edited)[:2]
    assert skipped == (gr.skip(), gr.skip())  # what is being written is never overwritten
    assert "In use: edited on this page." in shown(edited, "own", edited)[4]


def test_another_models_template_says_whose_it_is(shown, tiny_base_model):
    picked, source, _ = preview.choose_template("other", "any", f" {tiny_base_model} ", None, None)
    assert source == picked.source == preset("plain")
    assert f"In use: the template of {tiny_base_model}." in shown(picked)[4]


def test_compare_shows_the_generation_prompt_where_it_is_shown_above(shown):
    def text(compared):
        return re.sub("<[^>]*>", "", compared)

    assert text(shown(second="own", prompted=True)[5]).count("assistant↵") == 4
    assert text(shown(second="own")[5]).count("assistant↵") == 2

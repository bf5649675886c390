"""Columns of every known shape become the same messages; others say what to do, and can be mapped."""

import json

import pytest

from sft.data import conversations, usable
from sft.errors import ConfigError, DataError
from sft.shapes import shape_of
from sft.tables import read_table

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
PAIR = GOOD["messages"]


def messages_of(rows, write_rows, columns=None):
    found = list(conversations(read_table(str(write_rows(rows))), columns))
    assert not any(row.problems for row in found), found
    return [row.conversation.messages for row in found]


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {"prompt": "Hi", "completion": "Hello."},
        {"prompt": [PAIR[0]], "completion": [PAIR[1]]},
        {"instruction": "Hi", "input": "", "output": "Hello."},
        {"instruction": "Hi", "context": "", "response": "Hello.", "category": "x"},
        {"question": "Hi", "answer": "Hello."},
    ],
    ids=lambda row: "+".join(row),
)
def test_every_shape_gives_the_same_conversation(row, write_rows):
    assert messages_of([row], write_rows) == [PAIR]


def test_input_and_system_columns_are_kept(write_rows):
    row = {"instruction": "Translate", "input": "chat", "output": "cat", "system": "From French."}
    assert messages_of([row], write_rows)[0][:2] == [
        {"role": "system", "content": "From French."},
        {"role": "user", "content": "Translate\n\nchat"},
    ]


def test_columns_that_nothing_recognises(write_rows):
    with pytest.raises(DataError, match=r"no shape is known with the columns a, b") as caught:
        usable(read_table(str(write_rows([{"a": 1, "b": 2}]))))
    assert "question" in caught.value.hint
    with pytest.raises(DataError, match="plain text"):
        usable(read_table(str(write_rows([{"text": "Once upon a time"}]))))


@pytest.mark.parametrize(
    "text", ['[{"id": 1}]', "[{x} explain", "[]", "[1]", "{", f"[{'9' * 5000}]"], ids=lambda text: text[:15]
)
def test_prompts_and_completions_that_look_like_json_stay_text(write_rows, text):
    ((prompt, completion),) = messages_of([{"prompt": text, "completion": text}], write_rows)
    assert prompt["content"] == completion["content"] == text


def test_prompts_and_completions_may_be_json_text_of_messages(write_rows):
    row = {"prompt": json.dumps(PAIR[:1], indent=1), "completion": json.dumps(PAIR[1:])}
    assert messages_of([row], write_rows) == [PAIR]


PARTS = [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i", "image": None}]}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {"conversations": PAIR},
        {"conversations": json.dumps(PAIR)},
        {"conversation": PAIR, "model": "x", "turn": 1},
        {"prompt": "Hi", "prompt_id": "x", "messages": PAIR},
        {"prompt": "Hi", "chosen": PAIR, "rejected": PAIR, "messages": PAIR},
        {"messages": [*PARTS, PAIR[1]]},
        {"Question": "Hi", " ANSWER ": "Hello."},
        {"question": "Hi", "Question": "no", "answer": "Hello."},
        {"prompt": "Hi", "response": "Hello."},
        {"system_prompt": "", "question": "Hi", "response": "Hello."},
        {"query": "Hi", "response": "Hello.", "type": "x"},
        {"input": "Hi", "output": "Hello."},
        {"instruction": "Hi", "input": None, "output": "Hello.", "text": "### Hi ### Hello."},
        {"instruction": "", "input": "Hi", "output": "Hello."},
    ],
    ids=lambda row: "+".join(row),
)
def test_what_public_data_sets_look_like(row, write_rows):
    assert messages_of([row], write_rows) == [PAIR]


@pytest.mark.parametrize(
    "row",
    [
        {"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {"system": "Be kind.", "messages": PAIR},
        {"system": "another", "messages": [{"role": "system", "content": "Be kind."}, *PAIR]},
        {"system_prompt": "Be kind.", "question": "Hi", "response": "Hello."},
        {"System": "Be kind.", "prompt": "Hi", "completion": "Hello."},
    ],
    ids=lambda row: "+".join(row),
)
def test_a_system_column_goes_first_unless_the_conversation_has_its_own(row, write_rows):
    assert messages_of([row], write_rows) == [[{"role": "system", "content": "Be kind."}, *PAIR]]


def test_sharegpt_senders_are_mapped_to_roles(write_rows):
    turns = [
        ("system", "s"), ("human", "a"), ("function_call", '{"name": "f", "arguments": "{\\"x\\": 1}"}'),
        ("observation", "2"), ("gpt", "b"), ("function_call", "<call>f</call>"), ("tool", "3"), ("gpt", "c"),
    ]  # fmt: skip
    row = {"conversations": [{"from": sender, "value": value} for sender, value in turns]}
    (found,) = messages_of([row], write_rows)
    roles = ["system", "user", "assistant", "tool", "assistant", "assistant", "tool", "assistant"]
    assert [message["role"] for message in found] == roles
    assert found[2]["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    assert found[5] == {"role": "assistant", "content": "<call>f</call>"}  # the model's words, in no form known here


def test_most_of_the_first_rows_decide(write_rows):
    table = read_table(str(write_rows([{"text": "x"}, {"question": "a"}, *[{"question": "a", "answer": "b"}] * 3])))
    assert shape_of(table)[0] == "question + answer"
    kept, bad = usable(table, "skip")
    assert len(kept) == 3
    assert [problem.split(":")[0] for problem in bad] == ["line 1", "line 2"]


def test_one_bad_row_does_not_make_a_data_set_plain_text(write_rows):
    rows = [{"text": "x"}, *[{"text": "x", "question": "a", "answer": "b"}] * 3]
    assert shape_of(read_table(str(write_rows(rows))))[0] == "question + answer"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference tuning, a stage after SFT"),
        ({"question": "q", "answer": "a", "chosen": "b", "rejected": "c"}, "preference tuning, a stage after SFT"),
        ({"prompt": "a", "completion": "b", "label": True}, "the bad answers would be learnt too"),
        ({"role": "user", "content": "a"}, "one message in each row"),
        ({"message_id": "1", "text": "a", "role": "prompter"}, "one message in each row"),
        ({"text": "a", "meta": "b"}, "plain text"),
    ],
)
def test_data_for_other_stages_is_refused_with_the_reason(write_rows, row, said):
    with pytest.raises(DataError) as caught:
        shape_of(read_table(str(write_rows([row]))))
    assert said in caught.value.message
    assert f"(columns: {', '.join(row)})" in caught.value.message
    assert caught.value.hint


FRAGE = {"Frage": "Hi", "Antwort": "Hello.", "Rolle": "Be kind.", "Text": "there", "dialog": PAIR, "1+1": "Hi"}


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ("user=Frage, assistant=Antwort", PAIR),
        (" assistant = Antwort , user = Frage ", PAIR),
        ("user=1+1, assistant=Antwort", PAIR),
        ("messages=dialog", PAIR),
        ("messages=dialog, system=Rolle", [{"role": "system", "content": "Be kind."}, *PAIR]),
        ("system=Rolle,user=Frage,assistant=Antwort", [{"role": "system", "content": "Be kind."}, *PAIR]),
        ("user=Frage+Text,assistant=Antwort", [{"role": "user", "content": "Hi\n\nthere"}, PAIR[1]]),
    ],
)
def test_columns_are_read_as_the_setting_says(write_rows, columns, wanted):
    assert messages_of([FRAGE], write_rows, columns) == [wanted]


def test_a_mapping_goes_before_every_shape(write_rows):
    row = {"prompt": "Hi", "chosen": "Hello.", "rejected": "No.", "messages": []}
    assert messages_of([row], write_rows, "user=prompt, assistant=chosen") == [PAIR]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("user=frage, assistant=Antwort", "there is no column 'frage'; did you mean 'Frage'?"),
        ("user=Frage+nothing, assistant=Antwort", "there is no column 'nothing'"),
        ("user=Frage", "no assistant= is given"),
        ("system=Rolle", "no user= is given"),
        ("Frage, assistant=Antwort", "'Frage' is not system=COLUMN"),
        ("human=Frage, assistant=Antwort", "'human=Frage' is not"),
        ("user=, assistant=Antwort", "'user=' is not"),
        ("user=Frage, user=Text, assistant=Antwort", "user is given twice"),
        ("messages=dialog, user=Frage", "user cannot be given beside messages"),
        ("messages=dialog+Text", "messages takes one column"),
        ("", "'' is not"),
    ],
)
def test_a_mapping_that_does_not_fit_names_the_columns(write_rows, columns, said):
    with pytest.raises(ConfigError) as caught:
        shape_of(read_table(str(write_rows([FRAGE]))), columns)
    assert said in caught.value.message
    assert "Its columns are Frage, Antwort, Rolle, Text, dialog" in caught.value.hint


def test_all_that_is_wrong_with_a_mapping_is_told_at_once(write_rows):
    with pytest.raises(ConfigError) as caught:
        shape_of(read_table(str(write_rows([FRAGE]))), "user=x, assistant=y")
    assert "'x'" in caught.value.message
    assert "'y'" in caught.value.message


def test_a_row_without_a_mapped_column_is_a_bad_row(write_rows):
    table = read_table(str(write_rows([FRAGE, {"Frage": "Hi"}, {"Antwort": "Hello."}])))
    first, second, third = conversations(table, "user=Frage, assistant=Antwort")
    assert not first.problems
    assert "has no column 'Antwort'" in second.problems[0]
    assert "has no column 'Frage'" in third.problems[0]


@pytest.mark.parametrize("row", [{"id": 7, "Frage": "a", "Antwort": "b"}, {"id": 7, "dialog": PAIR, "name": "x"}])
def test_the_hint_for_unknown_columns_can_be_used_as_it_is(write_rows, row):
    table = read_table(str(write_rows([row])))
    with pytest.raises(DataError) as caught:
        shape_of(table)
    columns = caught.value.hint.split('"')[1]
    assert len(usable(table, columns=columns)[0]) == 1


def test_many_unknown_columns_are_not_all_listed(write_rows):
    with pytest.raises(DataError, match="and 980 more") as caught:
        shape_of(read_table(str(write_rows([{f"column {n}": "x" for n in range(1000)}]))))
    assert len(caught.value.message) < 500

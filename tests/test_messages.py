"""Every rule about messages: each broken one is reported, with its message index, and all together."""

import pytest

from sft.errors import MessagesError
from sft.messages import Conversation, parse_conversation, problems, tools_problems

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}


def test_a_good_conversation_has_no_problems():
    assert problems([{"role": "system", "content": ""}, USER, ANSWER], for_training=True) == []


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hi", "must be a list"),
        ([], "is empty"),
        ([USER, "Hello"], "message 1: must be an object with role and content, not text"),
        ([{"role": "human", "content": "Hi"}], "message 0: unknown role 'human'"),
        ([{"content": "Hi"}], "message 0: has no role"),
        ([{"role": "user"}], "message 0: has no content"),
        ([{"role": "user", "content": 3}], "content must be text, not a number"),
        ([{"role": "user", "content": ["Hi"]}], "content must be text, not a list"),
        ([{"role": "user", "content": None}], "content must be text, not null"),
        ([{"role": "user", "content": [{"type": "text"}, {"type": "image"}]}], "not a list with parts of type image"),
        ([{**USER, "tool_calls": "f"}], "message 0: tool_calls must be a list of objects"),
        ([{**USER, "tool_calls": [1]}], "message 0: tool_calls must be a list of objects"),
        ([USER, {"role": "system", "content": "x"}], "message 1: a system message must be the first"),
        ([{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER], "two system messages"),
        (
            [USER, {"role": "assistant", "content": "a\ud800"}],
            "message 1: 'content' holds '\\ud800', which is not valid",
        ),
        ([{**USER, "tool_calls": [{"a": ["\udfff"]}]}], "message 0: 'tool_calls' holds '\\udfff', which is not valid"),
        ([{**USER, "\ud800": 1}], "message 0: '\\ud800' holds '\\ud800', which is not valid"),
    ],
)
def test_each_broken_rule_is_named(messages, said):
    assert any(said in problem for problem in problems(messages)), problems(messages)


def test_training_needs_an_answer_that_says_something():
    assert problems([USER]) == []
    assert "no assistant message" in problems([USER], for_training=True)[0]
    assert "empty" in problems([USER, {"role": "assistant", "content": " \n"}], for_training=True)[0]


def test_a_call_of_a_tool_needs_no_content():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert problems([USER, call], for_training=True) == []


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("f", "must be a list of JSON schemas, not text"),
        ({"name": "f"}, "must be a list of JSON schemas, not an object"),
        ([1], "item 0 is a number"),
        ([{"name": "\ud800"}], "not valid Unicode"),
    ],
)
def test_tools_are_a_list_of_objects(tools, said):
    assert said in tools_problems(tools)[0]
    with pytest.raises(MessagesError, match="tools") as caught:
        parse_conversation({"messages": [USER], "tools": tools})
    assert said in caught.value.message
    assert tools_problems(None) == tools_problems([{"name": "f"}]) == []


def test_a_conversation_is_the_same_wherever_it_stands():
    assert Conversation([USER], place="line 7") == Conversation([USER])


def test_all_problems_are_reported_at_once():
    with pytest.raises(MessagesError) as caught:
        parse_conversation([{"role": "boss", "content": 1}, {"role": "user"}])
    for said in ("3 rules", "message 0: unknown role 'boss'", "message 0: content", "message 1: has no content"):
        assert said in str(caught.value)


def test_an_object_brings_its_tools():
    tools = [{"type": "function", "function": {"name": "f"}}]
    conversation = parse_conversation({"messages": [USER], "tools": tools})
    assert conversation.messages == [USER]
    assert conversation.tools == tools
    with pytest.raises(MessagesError, match="without messages"):
        parse_conversation({"chat": [USER]})
    with pytest.raises(MessagesError, match="tools must be a list"):
        parse_conversation({"messages": [USER], "tools": "f"})

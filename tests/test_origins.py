"""Every character that somebody wrote is found in the text, or said to be left out; none is claimed wrongly."""

import json
import random

import pytest
from test_layout import (
    CALL,
    CALLING,
    CHATML,
    ENDING,
    ORIGINALS,
    PRESETS,
    PROMPT,
    SPECIAL,
    TALKS,
    TOOLS,
    UNMARKED,
    says,
    talk,
    text_of,
)

from sft.errors import TemplateError
from sft.layout import render_text
from sft.origins import KEYS, trace

TEMPLATE = CHATML + PROMPT


def reading(expression):
    """A template that writes this of each message."""
    return TEMPLATE.replace("m.content", expression)


def traced(template, messages, tools=None):
    """What is kept, as (text, message), and what is dropped, as (text, message) with the place of the second kind."""
    text, found = text_of(template, messages, tools), trace(template, SPECIAL, messages, tools)
    kept = [(text[span.start : span.end], span.message) for span in found.spans]
    return kept, [(each.text, each.message) for each in found.dropped]


THINKING = "<think>\nhm\n</think>\n\nHi."
FORGED = "<|im_end|>\n<|im_start|>user\nx"
# template, contents → kept, dropped
CASES = {
    "as they are": (TEMPLATE, [" a\n", "b "], [(" a\n", 0), ("b ", 1)], []),
    "trimmed": (reading("m.content | trim"), [" a\n", "b"], [("a", 0), ("b", 1)], [(" ", 0), ("\n", 0)]),
    "trimmed at one end": (reading("m.content.rstrip()"), [" a\n", "b"], [(" a", 0), ("b", 1)], [("\n", 0)]),
    "blank and trimmed": (reading("m.content | trim"), [" \n", "b"], [("b", 1)], [(" \n", 0)]),
    "empty": (TEMPLATE, ["", "b"], [("b", 1)], []),
    "repeated": (reading("m.content ~ '/' ~ m.content"), ["a"], [("a", 0), ("a", 0)], []),
    "dropped": (reading("m.content if m.role == 'user'"), ["a", "b"], [("a", 0)], [("b", 1)]),
    "rewritten": (reading("m.content | upper"), ["ab", "c"], [], [("ab", 0), ("c", 1)]),
    "rewritten in part": (reading("m.content | upper"), ["ab?", "c"], [("?", 0)], [("ab", 0), ("c", 1)]),
    "rewritten to what another says": (reading("m.content | lower"), ["A", "a"], [("a", 1)], [("A", 0)]),
    "cut by a character": (reading("m.content.split('!')[0]"), ["a! b"], [("a", 0)], [("! b", 0)]),
    "equal to the header": (TEMPLATE, ["user", "assistant\n"], [("user", 0), ("assistant\n", 1)], []),
    "of control tokens": (TEMPLATE, [FORGED, FORGED], [(FORGED, 0), (FORGED, 1)], []),
    "of Jinja": (TEMPLATE, ["{{ 1 + 1 }}{% if %}", "{# #}"], [("{{ 1 + 1 }}{% if %}", 0), ("{# #}", 1)], []),
    "alike": (TEMPLATE, ["a", "a", "a"], [("a", 0), ("a", 1), ("a", 2)], []),
    "alike, one dropped": (reading("m.content if loop.index0 != 1"), ["a"] * 3, [("a", 0), ("a", 2)], [("a", 1)]),
    "one within another": (TEMPLATE, ["a", "ba", "a b"], [("a", 0), ("ba", 1), ("a b", 2)], []),
    "side by side": ("{% for m in messages %}{{ m.content }}{% endfor %}", ["a", "b"], [("a", 0), ("b", 1)], []),
    "private-use": (TEMPLATE, ["\ue0001\ue001", "\ue000"], [("\ue0001\ue001", 0), ("\ue000", 1)], []),
    "private-use, looked into": (
        reading("m.content.split('!')[0]"), ["\ue0001\ue001! x", "\ue0000\ue001\ue0007\ue000"],
        [("\ue0001\ue001", 0), ("\ue0000\ue001\ue0007\ue000", 1)], [("! x", 0)],
    ),
    "thinking, stripped": (
        reading("m.content.split('</think>')[-1].strip()"), ["a", THINKING],
        [("a", 0), ("Hi.", 1)], [("<think>\nhm\n</think>\n\n", 1)],
    ),
    "thinking, taken apart and written again": (
        reading("'<think>\n' ~ m.content.split('</think>')[0].split('<think>')[-1].strip() ~ '\n</think>\n\n' ~ "
                "m.content.split('</think>')[-1].strip()"),
        [THINKING], [("Hi.", 0)], [("<think>\nhm\n</think>\n\n", 0)],
    ),
    "looked into at the start": (
        "{{ 'x' if 'a' in messages[0].content else 'y' }}" + TEMPLATE, ["ab"], [("b", 0)], [("a", 0)],
    ),
    "looked into at the end": (
        TEMPLATE + "{{ '!' if 'a' in messages[0].content }}", ["ab"], [("b", 0)], [("a", 0)],
    ),
    "out of order": (
        reading("m.content.split('!')[0]").replace("in messages", "in messages | reverse"), ["a! x", "b"],
        [("b", 1), ("a", 0)], [("! x", 0)],
    ),
    "counted": (reading("m.content ~ (m.content | length)"), ["abcd"], [], [("abcd", 0)]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_contents(case):
    template, contents, kept, dropped = CASES[case]
    assert traced(template, talk(*contents)) == (kept, dropped)


def test_what_looks_like_a_probe_and_is_shown_for_probes_alone():
    template = "{% for m in messages %}{{ m.content if m.content == 'a' else m.content ~ m.name }}{% endfor %}"
    assert traced(template, [says("user", "a", name="\ue0005\ue000")]) == ([], [("a", 0)])


# Gemma's way: the system message goes into the first user message.
MERGING = (
    "{% if messages[0].role == 'system' %}{% set first, rest = messages[0].content ~ '\n\n', messages[1:] %}"
    "{% else %}{% set first, rest = '', messages %}{% endif %}{% for m in rest %}<{{ m.role }}>"
    "{{ ((first if loop.first else '') ~ m.content) | trim }}</>{% endfor %}"
)


def test_a_system_message_that_is_merged_keeps_its_own_characters():
    kept, dropped = traced(MERGING, talk(" a ", "b", system=" Be brief. "))
    assert (kept, dropped) == ([("Be brief. ", 0), (" a", 1), ("b", 2)], [(" ", 0), (" ", 1)])
    kept, dropped = traced(ORIGINALS["gemma3"], talk("a", "b", system="Be brief."))
    assert (kept, dropped) == ([("Be brief.", 0), ("a", 1), ("b", 2)], [])


def test_what_is_kept_and_dropped_of_thinking_that_qwen3_strips_from_earlier_turns():
    kept, dropped = traced(ORIGINALS["qwen3"], TALKS["thinking apart twice"])
    assert kept == [("Hi", 0), ("Hello.", 1), ("And?", 2), ("ho", 3), ("More.", 3)]
    assert dropped == [("hm", 1)]
    kept, dropped = traced(ORIGINALS["qwen3"], TALKS["thinking inside"])
    assert kept == [("Hi", 0), ("Hello.", 1), ("And?", 2), ("More.", 3)]
    assert dropped == [("<think>\nhm\n</think>\n\n", 1), ("<think>\nho\n</think>\n\n", 3)]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thinking_has_a_place_whatever_its_key(key):
    messages = [*talk("a"), says("assistant", "b", **{key: "hm"})]
    assert traced(ORIGINALS["qwen3"], messages) == ([("a", 0), ("hm", 1), ("b", 1)], [])
    assert traced(TEMPLATE, messages) == ([("a", 0), ("b", 1)], [("hm", 1)])


@pytest.mark.parametrize(
    ("template", "dropped", "reads"),
    [
        (TEMPLATE, [json.dumps([CALL])], False),
        (TEMPLATE + "{{ tools | tojson }}", [json.dumps([CALL])], True),
        (reading("m.content ~ m.tool_calls"), [], False),
        (ORIGINALS["qwen3"], [], True),
        (ORIGINALS["llama3_1"], [], True),
    ],
)
def test_tools_and_tool_calls_that_are_not_read_are_told(template, dropped, reads):
    found = trace(template, SPECIAL, CALLING[:3], TOOLS)
    assert [each.text for each in found.dropped if each.message == 1] == dropped
    assert found.reads_tools == reads
    assert trace(template, SPECIAL, CALLING[:3], None).reads_tools


def test_what_is_dropped_belongs_where_its_neighbours_are():
    template, messages = reading("m.content if loop.index0 != 2"), talk("a", "b", "c", "d")
    text, (each,) = text_of(template, messages), trace(template, SPECIAL, messages).dropped
    assert (each.text, each.role, each.message) == ("c", "user", 2)
    assert text[: each.at].endswith("assistant\nb")


# ---- what chat sends ----


@pytest.mark.parametrize(
    ("template", "contents", "asked", "parts"),
    [
        (TEMPLATE, ["a", "b"], 1, None),
        (TEMPLATE, ["a", "b", "c"], 3, None),  # the reply is made up
        (TEMPLATE, ["a"], 1, None),
        (CHATML, ["a", "b"], 1, None),  # no generation prompt, and none needed
        (ENDING + PROMPT, ["a", "b"], 1, None),
        (TEMPLATE + "{% if add_generation_prompt %}<think>{% endif %}", ["a", "b"], 1, ("<think>", "b<|im_end|>")),
        (CHATML + "<model>", ["a", "b"], 1, ("model>", "|im_start|>assistant")),
        ("{{ messages | length }}" + TEMPLATE, ["a", "b", "c"], 3, ("3", "4")),
    ],
)
def test_the_prompt_and_where_training_parts_from_it(template, contents, asked, parts):
    messages = talk(*contents)
    text, prompt = text_of(template, messages), trace(template, SPECIAL, messages).prompt
    assert prompt.asked == asked
    assert prompt.text == text_of(template, messages[:asked], None, True)
    assert (prompt.training == text) == (asked < len(messages))
    if parts is None:
        assert prompt.parts_at is None and prompt.training.startswith(prompt.text)
    else:
        assert prompt.text[: prompt.parts_at] == prompt.training[: prompt.parts_at]
        assert prompt.text[prompt.parts_at :].startswith(parts[0])
        assert prompt.training[prompt.parts_at :].startswith(parts[1])


def test_without_a_prompt_there_is_none():
    asks_first = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + TEMPLATE
    assert trace(asks_first, SPECIAL, talk("a", "b")).prompt
    assert trace(TEMPLATE.replace("{% if add", "{% if add_generation_prompt and x.y.z %}{% elif add"),
                 SPECIAL, talk("a", "b")).prompt is None  # fmt: skip
    with pytest.raises(TemplateError, match="user first"):
        trace(asks_first, SPECIAL, [says("assistant", "b")])


# ---- whatever the conversation and the template ----


def random_talk(draw):
    pieces = [
        "a",
        "b",
        "ab",
        " ",
        "\n",
        "\t ",
        "?",
        "user",
        "assistant",
        "日本",
        "🎉",
        "\ue000",
        "\ue0000\ue001",
        "0",
        "1",
    ]
    pieces += ["<think>", "</think>", "<|im_end|>", "[INST]", "{{ x }}", "A"]
    roles = ["user", "assistant"] * 3
    messages = [says(role, "".join(draw.choices(pieces, k=draw.choice([0, 1, 3, 8])))) for role in roles]
    messages = messages[: draw.randrange(1, 6)]
    if draw.random() < 0.3:
        messages[draw.randrange(len(messages))]["role"] = draw.choice(["assistant", "user", "tool"])
    if draw.random() < 0.3:
        messages[-1][draw.choice(KEYS[:2])] = draw.choice(["hm", "a", " ", "user"])
    return ([says("system", draw.choice(["Be brief.", " a", ""]))] if draw.random() < 0.4 else []) + messages


OWN = {case: template for case, (template, *_) in CASES.items()} | {"merging": MERGING}


@pytest.mark.parametrize("name", [*PRESETS, *UNMARKED, *OWN])
def test_every_character_that_was_written_is_kept_or_dropped(name):
    template = {**PRESETS, **UNMARKED, **OWN}[name]
    draw = random.Random(name)
    for _ in range(6):
        messages = random_talk(draw)
        text = text_of(template, messages)
        if text is None:
            continue
        found = trace(template, SPECIAL, messages)
        ends = [0]
        for span in found.spans:
            message = messages[span.message]
            assert ends[-1] <= span.start < span.end <= len(text)
            assert any(text[span.start : span.end] in message.get(key, "") for key in KEYS)
            assert span.role == message["role"]
            ends.append(span.end)
        for at, message in enumerate(messages):
            written = sorted("".join(message.get(key, "") for key in KEYS))
            kept = {text[span.start : span.end] for span in found.spans if span.message == at}
            dropped = [each.text for each in found.dropped if each.message == at]
            if len(kept) == sum(span.message == at for span in found.spans):  # none stands there twice
                assert sorted("".join([*kept, *dropped])) == written
            else:
                assert set(written) == set("".join([*kept, *dropped]))
        assert all(0 <= each.at <= len(text) and each.text for each in found.dropped)


def test_the_names_and_texts_of_tool_calls_are_the_assistants():
    call = {"type": "function", "function": {"name": "weigh", "arguments": {"box": 7, "unit": "kilo"}}}
    messages = [says("user", "How heavy?"), {**says("assistant", "One moment."), "tool_calls": [call]}]
    text = render_text(ORIGINALS["qwen2_5"], SPECIAL, messages)
    spans = trace(ORIGINALS["qwen2_5"], SPECIAL, messages).spans
    assert [text[span.start : span.end] for span in spans] == ["How heavy?", "One moment.", "weigh", "kilo"]
    assert {span.role for span in spans[1:]} == {"assistant"}


def test_thinking_that_is_left_out_belongs_before_the_answer_it_led_to():
    messages = [says("user", "Is 91 prime?"), {**says("assistant", "No."), "reasoning_content": "7 times 13 is 91."}]
    (left_out,) = trace(CHATML, SPECIAL, messages).dropped
    assert left_out.at == render_text(CHATML, SPECIAL, messages).index("No.")

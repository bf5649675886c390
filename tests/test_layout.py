"""Text equal to transformers' own; what is trained on, told by rendering alone, equal to what TRL marks by hand."""

import importlib.util
import random
import re
import threading
import time
from datetime import date, datetime
from pathlib import Path

import pytest
from test_chat_templates import NAMES, conversations
from tiny_models import tiny_tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from sft.chat_format import preset
from sft.errors import TemplateError
from sft.layout import frozen, generation_prompt, has_marks, lay_out, render_text

TRL = (
    Path(next(iter(importlib.util.find_spec("trl").submodule_search_locations))) / "chat_templates"
)  # not importing it
ORIGINALS = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TRL.glob("*.jinja"))}
UNMARKED = {name: source for name, source in ORIGINALS.items() if not has_marks(source)}
PRESETS = {name: preset(name) for name in NAMES}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def says(role, content, **more):
    return {"role": role, "content": content, **more}


def talk(*contents, system=None):
    """User and assistant in turn."""
    turns = [says(("user", "assistant")[at % 2], content) for at, content in enumerate(contents)]
    return ([says("system", system)] if system is not None else []) + turns


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds one.",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
        },
    }
]
CALL = {"type": "function", "id": "call00001", "function": {"name": "add", "arguments": {"x": 1}}}
CALLING = [
    says("user", "1+1?"),
    says("assistant", "", tool_calls=[CALL]),
    says("tool", "2", name="add", tool_call_id="call00001"),
    says("assistant", "It is 2."),
]
TALKS = {
    "one": talk("Hi", "Hello."),
    "one with system": talk("Hi", "Hello.", system="Be brief."),
    "words of the template": talk("user", "assistant", "And 12?\n", "  Thirteen – 日本 🎉", system="Be brief."),
    "three alike": talk("a", "b", "a", "b", "a", "b"),
    "last from the user": talk("Hi", "Hello.", "More?"),
    "nothing said": talk("", "", "Hi\n", "\n"),
    "thinking inside": talk("Hi", "<think>\nhm\n</think>\n\nHello.", "And?", "<think>\nho\n</think>\n\nMore."),
    "thinking apart": [*talk("Hi"), says("assistant", "Hello.", reasoning_content="hm")],
    "thinking apart twice": [
        says("user", "Hi"),
        says("assistant", "Hello.", thinking="hm"),
        says("user", "And?"),
        says("assistant", "More.", thinking="ho"),
    ],
    "tools": CALLING,
    "thanks for tools": [*CALLING, *talk("Thanks", "Welcome")],
    "two replies": [*talk("Hi", "A"), says("assistant", "B")],
    "assistant first": [says("assistant", "Ask."), *talk("Hi", "Hello.")],
}


def text_of(source, messages, tools=None, add_generation_prompt=False, variables=SPECIAL):
    """The text, or None where the template raises."""
    try:
        return render_text(source, variables, messages, tools, add_generation_prompt)
    except TemplateError:
        return None


# ---- the text ----


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(None)


@pytest.mark.parametrize("name", [*PRESETS, *(name for name in ORIGINALS if not name.endswith("_training"))])
def test_text_is_that_of_apply_chat_template(tokenizer, name):
    source = {**PRESETS, **ORIGINALS}[name]
    empty_keys = [{**message, "tool_calls": None, "name": None} for message in TALKS["one with system"]]
    given = [(messages, None) for messages in (empty_keys, *TALKS.values())]
    given += [(TALKS["one with system"], TOOLS), (TALKS["tools"], TOOLS)]
    rendered = 0
    for messages, tools in given:
        for prompted in (False, True):
            arguments = {"chat_template": source, "tools": tools, "add_generation_prompt": prompted}
            try:
                expected = tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
            except Exception:  # whatever it is, render_text has to say so in its own way
                expected = None
            assert text_of(source, messages, tools, prompted, tokenizer.special_tokens_map) == expected
            rendered += expected is not None
    assert rendered or name.startswith("llava_next")  # which reads contents as lists of parts alone


# ---- what is trained on, without marks ----

# What TRL marks of a turn besides what our spans hold: before it (the prompt holds that already) and after it.
BESIDES = {
    "glm4moe": ("", "<|user|>"),
    "gptoss": ("<|start|>assistant", ""),
    "muse_glimmer": ("<|start|>assistant", ""),
    "nemotron_3_5_lightning": ("<think>\n", ""),
    "nemotron_3_nano": ("<think>\n", ""),
    "nemotron_3_super": ("<think>\n", ""),
    "nemotron_3_ultra": ("<think>\n", ""),
    "qwen2_5": ("\n", ""),
    "qwen3_5_nothink": ("<think>\n\n</think>\n\n", ""),
    "qwen3_5_think": ("<think>\n", ""),
    "qwen3_6": ("<think>\n", ""),
    "qwen3_8": ("<think>\n", ""),
}
# Their prompt ends in <think>, or they join turns, so that turns are left out or begin elsewhere.
APART = ["deepseek_r1_distill", "deepseekv3", "diffusion_gemma", "llava_next"]
PAIRS = sorted(name for name in ORIGINALS if f"{name}_training" in ORIGINALS)
EXACT = [name for name in PAIRS if name not in BESIDES and name not in APART]


def marked(source, messages):
    """The text and the marks of the training variant, and marks that touch as one; None where it raises."""
    arguments = {"chat_template": source, "return_assistant_tokens_mask": True, **SPECIAL}
    try:
        texts, spans = render_jinja_template([messages], **arguments)
    except Exception:
        return None, [], []
    joined = []
    for start, end in spans[0]:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return texts[0], [tuple(span) for span in spans[0]], joined


def compared(name):
    """Every conversation that TRL's two variants render alike: our layout of the one, the marks of the other."""
    for label, messages in TALKS.items():
        text, marks, joined = marked(ORIGINALS[f"{name}_training"], messages)
        if text is not None and text == text_of(ORIGINALS[name], messages):
            yield label, lay_out(ORIGINALS[name], SPECIAL, messages), marks, joined


@pytest.mark.parametrize("name", EXACT)
def test_spans_without_marks_are_the_marks_of_trl(name):
    seen = 0
    for label, layout, _, joined in compared(name):
        seen += 1
        if label == "assistant first" and layout.unsure == [0]:
            joined = joined[1:]  # the template raises on the empty conversation before it
        else:
            assert layout.unsure == [], label
        assert layout.assistant_spans == joined, label
    assert seen >= 3


@pytest.mark.parametrize("name", [*BESIDES, *APART])
def test_spans_without_marks_lie_in_those_of_trl_and_end_with_them(name):
    before, after = BESIDES.get(name, ("", ""))
    certain = 0
    for label, layout, marks, joined in compared(name):
        if name in APART and "tools" in label:
            continue  # no header, or a header after the prompt, follows a tool's result
        replies = sum(message["role"] == "assistant" for message in TALKS[label])
        assert len(layout.assistant_spans) + len(layout.unsure) == replies
        for start, end in layout.assistant_spans:
            certain += 1
            assert layout.text[:start].endswith(before) and layout.text.startswith(after, end)
            assert any(at == start - len(before) and to == end + len(after) for at, to in [*marks, *joined]), label
    assert certain or name in ("deepseek_r1_distill", "deepseekv3", "llava_next")


def test_every_pair_of_trl_is_compared():
    assert set(PAIRS) == {*EXACT, *BESIDES, *APART}
    assert len(EXACT) >= 15


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_without_its_marks_has_the_same_spans(name):
    after = {"chatml": "\n", "plain": "\n\n", "zephyr": "\n"}.get(name, "")
    bare = re.sub(r"\{%- (end)?generation %\}", "", PRESETS[name])
    for messages in conversations(40, 5, alternating=True, system=False if name in ("gemma", "mistral") else None):
        told, shown = lay_out(bare, SPECIAL, messages), lay_out(PRESETS[name], SPECIAL, messages)
        assert (told.text, told.unsure) == (shown.text, [])
        assert told.assistant_spans == [(start, end + len(after)) for start, end in shown.assistant_spans if end]


WORDS = [f"{a}{b}{c}" for a in "bdfkm" for b in "aeiou" for c in "pqtz"]


@pytest.mark.parametrize("name", UNMARKED)
def test_no_span_is_wrong(name):
    """It starts where the prompt ends, and holds its reply and no word of another message."""
    draw, source, spans = random.Random(11), UNMARKED[name], 0
    for number in range(12):
        words = draw.sample(WORDS, 8)
        says_ = ["  ".join(words[at : at + 2]) + draw.choice(["", " ", "\n"]) for at in range(0, 8, 2)]
        messages = talk(*says_[: draw.randrange(2, 5)], system=draw.choice(["quiet", None]))
        if number % 4 == 3:
            messages[draw.randrange(len(messages))]["role"] = draw.choice(["assistant", "user"])
        text = text_of(source, messages)
        if text is None:
            continue
        layout = lay_out(source, SPECIAL, messages)
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        certain = [at for at in turns if at not in layout.unsure]
        assert layout.text == text
        for at, (start, end) in zip(certain, layout.assistant_spans, strict=True):
            assert text_of(source, messages[:at], None, True) == text[:start]
            own = set(messages[at]["content"].split())
            held = {word for word in [*WORDS, "quiet"] if word in text[start:end]}
            assert held == {word for word in own if word in text}
            spans += 1
    assert spans or name.startswith(("deepseek", "nemotron", "llava_next"))


ENDING = CHATML.replace(
    "<|im_end|>\n", "<|im_end|>\n{% if loop.last and not add_generation_prompt %}{{ eos_token }}{% endif %}"
)
ALWAYS = CHATML + "{{ '<|im_start|>assistant\n' }}"
SHORTENING = CHATML.replace("m.content", "m.content if loop.last else 'cut'")
STRIPPING = CHATML.replace("m.content", "m.content if loop.last or m.role == 'user' else 'cut'")
# template, roles in their first letters → what is trained on, and the messages whose turn cannot be told
ODD = [
    (CHATML + PROMPT, "uaua", ["1<|im_end|>\n", "3<|im_end|>\n"], []),
    (CHATML + PROMPT, "uaa", ["1<|im_end|>\n", "2<|im_end|>\n"], []),
    (CHATML + PROMPT, "au", ["0<|im_end|>\n"], []),
    (CHATML + PROMPT, "a", ["0<|im_end|>\n"], []),
    (CHATML + PROMPT, "su", [], []),
    # no generation prompt: the header is the model's to write
    (CHATML, "ua", ["<|im_start|>assistant\n1<|im_end|>\n"], []),
    # the end of a conversation is not that of a turn
    (ENDING + PROMPT, "uaua", ["1<|im_end|>\n", "3<|im_end|>\n</s>"], []),
    (ENDING + PROMPT, "uau", ["1<|im_end|>\n"], []),
    (ENDING.replace("{{ eos_token }}", "</s>") + PROMPT, "uau", [], [1]),
    # a generation prompt after every conversation, asked for or not, belongs to no turn
    (ALWAYS, "uaua", ["1<|im_end|>\n", "3<|im_end|>\n"], []),
    (ALWAYS, "uaau", ["1<|im_end|>\n", "2<|im_end|>\n"], []),
    (ALWAYS, "a", ["0<|im_end|>\n"], []),
    (ALWAYS.replace("assistant", "model"), "ua", [], [1]),
    # a header after every conversation, and more of it where a prompt is asked for
    (ALWAYS + "{% if add_generation_prompt %}<think>{% endif %}", "uaua", [], [1, 3]),
    # the template raises on the empty conversation, or on one that the assistant begins
    ("{% if not messages %}{{ raise_exception('empty') }}{% endif %}" + CHATML + PROMPT, "aua", ["2<|im_end|>\n"], [0]),
    # what comes before the turn is written otherwise once it is there
    (SHORTENING + PROMPT, "uaua", [], [1, 3]),
    (STRIPPING + PROMPT, "uaua", ["3<|im_end|>\n"], [1]),
    ("{{ messages | length }}" + CHATML + PROMPT, "ua", [], [1]),
    # nothing is written of the reply
    ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "uau", [], [1]),
]  # fmt: skip


@pytest.mark.parametrize(("template", "roles", "trained", "unsure"), ODD)
def test_odd_templates(template, roles, trained, unsure):
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages = [says(names[role], str(at)) for at, role in enumerate(roles)]
    for prompted in (False, True):
        layout = lay_out(template, SPECIAL, messages, None, prompted)
        told = [layout.text[start:end] for start, end in layout.assistant_spans]
        expected = [span.removesuffix("</s>") for span in trained] if prompted else trained  # asked on, it has no end
        assert (told, layout.unsure) == (expected, unsure)


def test_a_generation_prompt_that_changes_with_the_last_role_is_in_no_span():
    prompt = "{% if add_generation_prompt %}<|im_start|>{{ 'more' if messages[-1].role == 'assistant' }}{% endif %}"
    layout = lay_out(ENDING + prompt, SPECIAL, talk("a", "b"), None, True)
    assert (layout.assistant_spans, layout.unsure) == ([], [1])


def test_thinking_that_later_turns_lose_leaves_only_the_last_turn():
    layout = lay_out(ORIGINALS["qwen3"], SPECIAL, TALKS["thinking inside"])
    assert layout.unsure == [1]
    assert [layout.text[a:b] for a, b in layout.assistant_spans] == ["<think>\nho\n</think>\n\nMore.<|im_end|>\n"]


MARKED = "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "marks"),
    [
        (MARKED, True), (MARKED.replace("{% g", "{%- g"), True), (MARKED.replace("{% g", "{%g"), True),
        (CHATML, False), ("{% set generation = 1 %}" + CHATML, False),
        ("{#- wrapped in {% generation %} / {% endgeneration %} -#}\n" + CHATML, False),
    ],
)  # fmt: skip
def test_marks_are_seen(template, marks):
    assert has_marks(template) == marks
    layout = lay_out(template, {}, talk("a", "b"))
    told = [layout.text[start:end] for start, end in layout.assistant_spans]
    assert told == (["a", "b"] if marks else ["<|im_start|>assistant\nb<|im_end|>\n"])


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (CHATML + PROMPT, "<|im_start|>assistant\n"), (CHATML, ""), (ALWAYS, ""),
        (ENDING + PROMPT, "<|im_start|>assistant\n"),
        (CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}" + PROMPT, "<|im_start|>assistant\n"),
        ("{{ raise_exception('never') }}", None), ("{{ 'yes' if add_generation_prompt else 'no' }}", None),
    ],
)  # fmt: skip
def test_generation_prompt(template, prompt):
    assert generation_prompt(template, SPECIAL) == prompt


def test_threads_that_render_one_marked_template_do_not_disturb_each_other():
    turns = [talk(*(f"{at} {'x' * size}" for at in range(40))) for size in (1, 7, 30, 90)]
    template = MARKED.replace("{{ m.role }}", "{% for i in range(40) %}{{ m.role[0] }}{% endfor %}")
    expected = [lay_out(template, {}, messages) for messages in turns]
    assert all(len(layout.assistant_spans) == 40 for layout in expected)
    wrong, start = [], threading.Barrier(len(turns))

    def work(number):
        start.wait()
        for _ in range(6):
            try:
                same = lay_out(template, {}, turns[number]) == expected[number]
                same &= render_text(template, {}, turns[number]) == expected[number].text
            except Exception as error:
                same = False
                wrong.append(error)
            wrong.extend([] if same else [number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(turns))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []


# ---- what goes wrong ----


@pytest.mark.parametrize(
    ("template", "line", "reason"),
    [
        ("a\nb\n{% for x in", 3, "unexpected 'end of template'"),
        ("a\n{{ x | nothing }}", 2, "No filter named 'nothing'"),
        ("{% if true %}\n\n{{ raise_exception('no system role') }}{% endif %}", 3, "^no system role$"),
        ("a\n\n\n{{ messages[0]['x']['y'] }}", 4, "has no attribute 'x'"),
        ("\n{{ 1 / 0 }}", 2, "division by zero"),  # ArithmeticError
        ("\n{{ 10.0 ** 1000 }}", 2, "out of range"),
        ("\n{{ 'a' + 1 }}", 2, "concatenate"),  # TypeError
        ("\n{{ 'a'.index('b') }}", 2, "substring not found"),  # ValueError
        ("\n{{ '{}'.format() }}", 2, "out of range"),  # LookupError
        ("\n{{ 'a'.encode('x') }}", 2, "unknown encoding"),
        ("\n{{ '\\ud800'.encode() }}", 2, "surrogates not allowed"),
        ("\n{{ 'x' * 10 ** 15 }}", 2, "it needs too much memory"),  # MemoryError
        ("\n{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", 2, "recursion"),  # RecursionError
        ("\n{{ cycler() }}", 2, "at least one item"),  # RuntimeError
        ("\n{{ 'abc' | truncate(1) }}", 2, "expected length"),  # AssertionError
        ("\n{{ ''.__class__.__bases__ }}", 2, "__class__"),  # SecurityError
        ("\n{{ range(10 ** 9) }}", 2, "Range too big"),
        ("\n{% include 'x' %}", 2, "no loader"),
        ("\n{% break %}", None, "outside loop"),  # Python's own SyntaxError, about code that nobody wrote
        ("{{ '\\ud800' }}", None, "surrogates not allowed"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", None, "recursion"),
    ],
)  # fmt: skip
def test_what_a_template_raises_is_one_error_with_its_line(template, line, reason):
    for function in (lay_out, render_text):
        with pytest.raises(TemplateError) as caught:
            function(template, {}, talk("a", "b"))
        assert caught.value.line == line
        assert re.search(reason, caught.value.reason)
        assert caught.value.message.startswith("The chat template does not render")
        assert (f"line {line}: " in caught.value.message) == (line is not None)
        assert caught.value.hint


def test_a_variable_that_the_template_lacks_is_to_be_given():
    with pytest.raises(TemplateError) as caught:
        render_text("{{ 'a' + eos_token }}", {}, talk("a", "b"))
    assert caught.value.hint.startswith("Give eos_token a value in the template arguments")


# ---- the date ----

DAY = date(2026, 3, 5)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "05 Mar 2026"),
        ('{{ strftime_now( "%Y-%m-%d" ) }}', "2026-03-05"),
        ("{%- set day = strftime_now('%A') -%}{{ day }}, {{ strftime_now('%-d.') }}", "Thursday, 5."),
        ("{{ strftime_now('“%Y” 📅 \"é\"') }}", '“2026” 📅 "é"'),
        ("{{ strftime_now('%Y') if strftime_now is defined else 'then' }}", "2026"),
        ("{{ 'no date' }}", "no date"),
        ("{% set form = '%d %B' %}{{ strftime_now(form) }}", "05 March"),
        ("\n  {% if true %}\n  a{{ strftime_now('%y') }}\n  {% endif %}", "\n  a26\n"),
    ],
)
def test_a_frozen_template_writes_that_day(template, text):
    assert render_text(frozen(template, DAY), {}, talk("a")) == text


@pytest.mark.parametrize("name", [name for name in ORIGINALS if "strftime_now" in ORIGINALS[name]])
def test_a_frozen_original_writes_that_day_and_else_the_same(name):
    today, then = (
        render_text(source, SPECIAL, TALKS["one"]) for source in (ORIGINALS[name], frozen(ORIGINALS[name], DAY))
    )
    here = datetime.now()
    forms = [form for form in ("%d %b %Y", "%Y-%m-%d", "%B %d, %Y", "%d %B %Y") if here.strftime(form) in today]
    if not forms:  # it writes no date of its own in this conversation
        assert today == then
    for form in forms:
        today = today.replace(here.strftime(form), DAY.strftime(form))
    assert today == then


def test_a_frozen_template_keeps_the_lines_of_its_errors():
    with pytest.raises(TemplateError, match="line 2") as caught:
        render_text(frozen("{{ strftime_now('%Y') }}\n{{ raise_exception('no') }}", DAY), {}, talk("a"))
    assert caught.value.line == 2


def test_freezing_takes_no_time_whatever_the_template():
    began = time.monotonic()
    frozen("{#" + "strftime_now('" * 30_000 + "#}x", DAY)
    assert time.monotonic() - began < 1

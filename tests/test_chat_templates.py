"""Our own chat templates: byte-equal to the originals that they stand for, and marked exactly where a reply is."""

import importlib.util
import itertools
import random
import re
from pathlib import Path

import jinja2
import pytest
from jinja2 import meta
from transformers.utils.chat_template_utils import render_jinja_template

from sft.chat_format import PRESETS, preset

BOS, EOS = "<s>", "</s>"
NAMES = sorted(path.stem for path in PRESETS.glob("*.jinja"))
REFUSED = object()

# What is marked of a reply: what the template makes of its content, and that with what stands around it.
MARKS = {
    "alpaca": (str, "{}</s>"),
    "chatml": (str, "{}<|im_end|>"),
    "gemma": (str.strip, "{}<end_of_turn>\n"),
    "llama3": (str.strip, "{}<|eot_id|>"),
    "mistral": (str.strip, " {}</s>"),
    "phi": (str, "{}<|end|>\n"),
    "plain": (str, "{}</s>"),
    "vicuna": (str, " {}</s>"),
    "zephyr": (str, "{}</s>"),
}
ORIGINALS = {"llama3": "llama3", "gemma": "gemma", "phi": "phi3", "chatml": "qwen2_5"}  # as TRL packages them
TRAINING = {"llama3": "llama3_training", "gemma": "gemma_training", "phi": "phi3_training"}
STRICT = ("gemma", "mistral", "vicuna")  # user and assistant must take turns

SYSTEM = {"role": "system", "content": "Be brief."}
HELLO, HI = {"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}
HOW, FINE = {"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Fine."}


def source_of(name, trl=False):
    if not trl:
        return preset(name)
    folder = Path(next(iter(importlib.util.find_spec("trl").submodule_search_locations)))  # without importing trl
    return (folder / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def render(source, messages, add_generation_prompt=False):
    """The text, or REFUSED."""
    arguments = {"chat_template": source, "add_generation_prompt": add_generation_prompt}
    try:
        return render_jinja_template([messages], bos_token=BOS, eos_token=EOS, **arguments)[0][0]
    except jinja2.TemplateError:
        return REFUSED


def marked(source, messages, add_generation_prompt=False):
    """The text and the marked `[start, end)` in it; marks that touch are one."""
    arguments = {"chat_template": source, "add_generation_prompt": add_generation_prompt}
    arguments |= {"bos_token": BOS, "eos_token": EOS, "return_assistant_tokens_mask": True}
    texts, spans = render_jinja_template([messages], **arguments)
    merged = []
    for start, end in spans[0]:
        if merged and merged[-1][1] == start:
            start = merged.pop()[0]
        merged.append((start, end))
    return texts[0], merged


def conversations(count, seed, alternating=False, system=None, others=()):
    """Conversations with odd contents: white space at the ends, nothing at all, other scripts, markers, Jinja."""
    draw = random.Random(seed)
    pieces = [*"ab .,\n\t ", "\r\n", "  ", "\u00a0", "日本", "é", "🎉", "{{ x }}", "{% if %}", "{#", "'", '"', "\\n"]
    pieces += ["<|im_end|>", "<|end|>", "<|eot_id|>", "<end_of_turn>", "[/INST]", EOS, "ASSISTANT: ", "### Response:\n"]

    def content():
        return "".join(draw.choices(pieces, k=draw.choice([0, 1, 2, 5, 12])))

    for _ in range(count):
        length = draw.randrange(1, 7)
        if alternating:
            roles = [("user", "assistant")[at % 2] for at in range(length)]
        else:
            roles = draw.choices(["user", "assistant", *others], k=length)
        if draw.random() < 0.5 if system is None else system:
            roles = ["system", *roles]
        yield [{"role": role, "content": content()} for role in roles]


def test_every_preset_is_covered():
    assert set(NAMES) == set(MARKS) == set(PUBLISHED) | set(TRAINING)


# ---- the text ----


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("alternating", [True, False])
def test_text_is_that_of_the_original(name, alternating):
    original, ours = source_of(ORIGINALS[name], trl=True), source_of(name)
    system = True if name == "chatml" else None  # Qwen puts one in where there is none
    others = {"llama3": ["system", "tool"], "phi": ["system"], "chatml": ["system"]}.get(name, [])
    accepted = 0
    for messages in conversations(150, 1, alternating, system, others):
        for add_generation_prompt in (False, True):
            expected = render(original, messages, add_generation_prompt)
            assert render(ours, messages, add_generation_prompt) == expected, messages
            accepted += expected is not REFUSED
    assert accepted > 5


CHAT = [HELLO, HI, HOW]
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. "
)
# preset → [(messages, add_generation_prompt, text)], written out from what the makers of each layout published
PUBLISHED = {
    "alpaca": [
        ([HELLO], True, BOS + ALPACA + "Hello!\n\n### Response:\n"),
        ([HELLO], False, BOS + ALPACA + "Hello!"),
        ([HELLO, HI], False, BOS + ALPACA + "Hello!\n\n### Response:\nHi.</s>"),
        (CHAT, True, BOS + ALPACA + "Hello!\n\n### Response:\nHi.</s>\n\n### Instruction:\nHow are you?"
         "\n\n### Response:\n"),
        ([SYSTEM, HELLO, HI], False, "<s>Be brief.\n\n### Instruction:\nHello!\n\n### Response:\nHi.</s>"),
    ],
    "chatml": [
        ([HELLO], True, "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"),
        ([SYSTEM, HELLO, HI], False, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n"
         "<|im_start|>assistant\nHi.<|im_end|>\n"),
        ([HELLO, {"role": "tool", "content": " 12 "}], False,
         "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>tool\n 12 <|im_end|>\n"),
    ],
    "mistral": [
        ([HELLO], True, "<s>[INST] Hello![/INST]"),
        ([HELLO], False, "<s>[INST] Hello![/INST]"),
        ([HELLO, HI], False, "<s>[INST] Hello![/INST] Hi.</s>"),
        (CHAT, True, "<s>[INST] Hello![/INST] Hi.</s>[INST] How are you?[/INST]"),
        ([*CHAT, FINE], False, "<s>[INST] Hello![/INST] Hi.</s>[INST] How are you?[/INST] Fine.</s>"),
        ([SYSTEM, HELLO], True, "<s>[INST] Be brief.\n\nHello![/INST]"),
        ([SYSTEM, HELLO, HI], False, "<s>[INST] Be brief.\n\nHello![/INST] Hi.</s>"),
        ([SYSTEM, *CHAT], True, "<s>[INST] Hello![/INST] Hi.</s>[INST] Be brief.\n\nHow are you?[/INST]"),
        ([SYSTEM, *CHAT, FINE], False,
         "<s>[INST] Hello![/INST] Hi.</s>[INST] Be brief.\n\nHow are you?[/INST] Fine.</s>"),
        ([{"role": "user", "content": " a\n"}, {"role": "assistant", "content": " b\n"}], False,
         "<s>[INST]  a\n[/INST] b</s>"),
        ([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}], False, "<s>[INST] [/INST] </s>"),
    ],
    "plain": [
        ([HELLO], True, "### User:\nHello!\n\n### Assistant:\n"),
        ([SYSTEM, HELLO, HI], False, "Be brief.\n\n### User:\nHello!\n\n### Assistant:\nHi.</s>\n\n"),
        ([HELLO, {"role": "tool", "content": " 12 "}], False, "### User:\nHello!\n\n### Tool:\n 12 \n\n"),
    ],
    "vicuna": [
        ([HELLO], True, BOS + VICUNA + "USER: Hello! ASSISTANT:"),
        ([HELLO, HI], False, BOS + VICUNA + "USER: Hello! ASSISTANT: Hi.</s>"),
        (CHAT, True, BOS + VICUNA + "USER: Hello! ASSISTANT: Hi.</s>USER: How are you? ASSISTANT:"),
        ([*CHAT, FINE], False, BOS + VICUNA + "USER: Hello! ASSISTANT: Hi.</s>USER: How are you? ASSISTANT: Fine.</s>"),
        ([SYSTEM, HELLO, HI], False, "<s>Be brief. USER: Hello! ASSISTANT: Hi.</s>"),
        ([{"role": "user", "content": " a\n"}, {"role": "assistant", "content": "\nb "}], False,
         BOS + VICUNA + "USER:  a\n ASSISTANT: \nb </s>"),
    ],
    "zephyr": [
        ([HELLO], True, "<|user|>\nHello!</s>\n<|assistant|>\n"),
        ([HELLO], False, "<|user|>\nHello!</s>\n"),
        ([SYSTEM, *CHAT], True, "<|system|>\nBe brief.</s>\n<|user|>\nHello!</s>\n<|assistant|>\nHi.</s>\n"
         "<|user|>\nHow are you?</s>\n<|assistant|>\n"),
        ([HELLO, HI], False, "<|user|>\nHello!</s>\n<|assistant|>\nHi.</s>\n"),
        ([{"role": "user", "content": " a\n"}, {"role": "assistant", "content": ""}], False,
         "<|user|>\n a\n</s>\n<|assistant|>\n</s>\n"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_text_is_what_was_published(name):
    for messages, add_generation_prompt, text in PUBLISHED[name]:
        assert render(source_of(name), messages, add_generation_prompt) == text


# ---- the marks ----


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_marked_is_the_reply_and_its_stop_token(name, add_generation_prompt):
    source, (as_rendered, mark) = source_of(name), MARKS[name]
    for messages in conversations(100, 2, alternating=True, system=False if name == "gemma" else None):
        text, spans = marked(source, messages, add_generation_prompt)
        replies = [message["content"] for message in messages if message["role"] == "assistant"]
        expected = [mark.format(as_rendered(reply)) for reply in replies]
        if name == "phi" and messages[-1]["role"] == "assistant" and not add_generation_prompt:
            expected[-1] += EOS
        assert [text[start:end] for start, end in spans] == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_mark_begins_where_the_prompt_for_that_reply_ends(name):
    source = source_of(name)
    for messages in conversations(60, 3, alternating=True, system=False if name == "gemma" else None):
        text, spans = marked(source, messages)
        turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        if name == "mistral" and messages[0]["role"] == "system":
            turns, spans = turns[-1:], spans[-1:]  # the system text moves on with the last user message
            if messages[-1]["role"] == "user":
                continue
        for at, (start, _) in zip(turns, spans, strict=True):
            assert render(source, messages[:at], add_generation_prompt=True) == text[:start]


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_marks_are_those_of_trl(name, add_generation_prompt):
    theirs, ours = source_of(TRAINING[name], trl=True), source_of(name)
    for messages in conversations(100, 4, alternating=True, system=False if name == "gemma" else None):
        assert marked(ours, messages, add_generation_prompt) == marked(theirs, messages, add_generation_prompt)


# ---- the headers ----


@pytest.mark.parametrize("name", NAMES)
def test_the_header_names_the_preset_and_its_variables(name):
    header, body = re.fullmatch(r"\{#- (.*?) #\}\n(.*)", source_of(name), re.DOTALL).groups()
    assert header.startswith(f"{name}: ")
    said = re.search(r"\n    Variables: (.*)\.$", header)[1]
    named = set(re.findall(r"\w+_token", said))
    assert named or said == "none"
    unmarked = re.sub(r"\{%- (end)?generation %\}", "", body)
    used = meta.find_undeclared_variables(jinja2.Environment().parse(unmarked))
    assert used - {"messages", "add_generation_prompt", "raise_exception"} == named


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_bos_token_is_left_out_and_a_missing_eos_token_is_an_error(name):
    source, arguments = source_of(name), {"add_generation_prompt": False}
    text = render(source, [HELLO, HI])
    without = render_jinja_template([[HELLO, HI]], chat_template=source, eos_token=EOS, **arguments)[0][0]
    assert without == text.removeprefix(BOS)
    assert ("bos_token" in source) == text.startswith(BOS)
    if "eos_token" in source:
        with pytest.raises(jinja2.UndefinedError, match="eos_token"):
            render_jinja_template([[HELLO, HI]], chat_template=source, bos_token=BOS, **arguments)


# ---- what is refused ----


def refusal(name, messages):
    with pytest.raises(jinja2.TemplateError) as caught:
        render_jinja_template([messages], chat_template=source_of(name), bos_token=BOS, eos_token=EOS)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_message_is_rendered_or_refused_by_name_never_dropped(name):
    source, rendered = source_of(name), 0
    for length in (1, 2, 3, 4):
        for roles in itertools.product(("system", "user", "assistant", "tool"), repeat=length):
            messages = [{"role": role, "content": f"content{at}"} for at, role in enumerate(roles)]
            text = render(source, messages)
            if text is REFUSED:
                assert re.match(rf"{name} (has no|needs) .*\.$", refusal(name, messages))
                continue
            rendered += 1
            assert all(text.count(message["content"]) == 1 for message in messages), roles
            if name in STRICT:
                turns = roles[roles[0] == "system" :]
                assert list(turns) == [("user", "assistant")[at % 2] for at in range(len(turns))]
    assert rendered >= 4


@pytest.mark.parametrize("name", NAMES)
def test_tool_calls_are_refused(name):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}
    assert refusal(name, [HELLO, call]) == f"{name} has no place for tool calls (message 1)."
    assert render(source_of(name), [HELLO, {**HI, "tool_calls": None}]) == render(source_of(name), [HELLO, HI])


@pytest.mark.parametrize(
    ("name", "messages", "reason"),
    [
        ("gemma", [SYSTEM, HELLO], "gemma has no system role (message 0): put that text into a user message."),
        ("gemma", [HELLO, HELLO], "gemma needs user and assistant to take turns, the user first; message 1 from user"),
        ("gemma", [HI], "message 0 from assistant is out of turn."),
        ("mistral", [SYSTEM, HI], "mistral needs user and assistant to take turns, the user first; message 1"),
        ("mistral", [HELLO, HI, SYSTEM], "mistral has no place for a system message here (message 2)"),
        ("mistral", [SYSTEM], "mistral has no system role: its text needs a user message to go in front of."),
        ("vicuna", [SYSTEM, HELLO, HOW], "the user first; message 2 from user is out of turn."),
        ("vicuna", [HELLO, SYSTEM], "vicuna has no place for a system message here (message 1)"),
        ("alpaca", [HELLO, SYSTEM], "alpaca has no place for a system message here (message 1)"),
        ("alpaca", [HELLO, {"role": "tool", "content": ""}], "alpaca has no place for a tool message here (message 1)"),
        ("phi", [HELLO, {"role": "tool", "content": ""}], "phi has no tool role (message 1)."),
        ("zephyr", [{"role": "tool", "content": ""}], "zephyr has no tool role (message 0)."),
    ],
)
def test_a_refusal_says_which_message_and_why(name, messages, reason):
    assert reason in refusal(name, messages)

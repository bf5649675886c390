"""What templates do with each kind of message, against what is known of them."""

import pytest
from test_layout import CHATML, ORIGINALS, PRESETS, PROMPT, SPECIAL

from sft.traits import traits

ABILITIES = [
    "system message", "several turns", "assistant first", "same role twice", "tool descriptions", "tool calls",
    "tool results", "thinking",
]  # fmt: skip
TEMPLATE = CHATML + PROMPT
JSON_TEXT = "{% if m.tool_calls %}{{ '{' ~ m.tool_calls[0].function.arguments.strip() ~ '}' }}{% endif %}"
KNOWN = {
    # y(es), p(art), n(o), r(efused), in the order above
    "ours": (TEMPLATE, "yyyynnyn"),
    "presets/chatml": (PRESETS["chatml"], "yyyynryn"),
    "presets/gemma": (PRESETS["gemma"], "ryrrnrrn"),
    "presets/mistral": (PRESETS["mistral"], "yyrrnrrn"),
    "presets/plain": (PRESETS["plain"], "yyyynryn"),
    "presets/phi": (PRESETS["phi"], "yyyynrrn"),
    "presets/zephyr": (PRESETS["zephyr"], "yyyynrrn"),
    "trl/cohere": (ORIGINALS["cohere"], "yyrrnnrn"),
    "trl/gemma3": (ORIGINALS["gemma3"], "yyrrnnrn"),
    "trl/gptoss": (ORIGINALS["gptoss"], "yyyyyyyp"),
    "trl/llama3": (ORIGINALS["llama3"], "yyyynnyn"),
    "trl/llama3_1": (ORIGINALS["llama3_1"], "yyyyyyyn"),
    "trl/phi3": (ORIGINALS["phi3"], "yyyynnnn"),
    "trl/qwen2_5": (ORIGINALS["qwen2_5"], "yyyyyyyn"),
    "trl/qwen3": (ORIGINALS["qwen3"], "yyyyyyyp"),
    "trl/qwen3_8": (ORIGINALS["qwen3_8"], "yyyyyyyy"),
    "upper case": (TEMPLATE.replace("m.content", "m.content | upper"), "ppppnnnn"),
    "only the first message": (TEMPLATE.replace("in messages", "in messages[:1]"), "ypppnnnn"),
    "calls as JSON text": (TEMPLATE.replace("{{ m.content", JSON_TEXT + "{{ m.content"), "yyyynyyn"),
    "refuses everything": ("{{ raise_exception('never') }}", "rrrrrrrn"),
    "says nothing": ("x", "nnnnnnnn"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_role_matrix(name):
    template, verdicts = KNOWN[name]
    abilities = traits(template, SPECIAL).abilities
    assert [ability.name for ability in abilities] == ABILITIES
    names = {"y": "yes", "p": "in part", "n": "no", "r": "refused"}
    assert {ability.name: ability.verdict for ability in abilities} == {
        ability: names[letter] for ability, letter in zip(ABILITIES, verdicts, strict=True)
    }


@pytest.mark.parametrize(
    ("template", "ability", "about"),
    [
        (PRESETS["mistral"], "system message", "joined to the first user message"),
        (ORIGINALS["gemma3"], "system message", "joined to the first user message"),
        (TEMPLATE, "system message", ""),
        (ORIGINALS["gemma"], "system message", "System role not supported"),
        (PRESETS["phi"], "tool results", "phi has no tool role (message 2)."),
        (KNOWN["calls as JSON text"][0], "tool calls", "arguments have to be JSON text, not an object"),
        (ORIGINALS["qwen3"], "thinking", "kept in the last answer only"),
        (TEMPLATE, "thinking", "left out"),
    ],
)
def test_what_is_said_about_it(template, ability, about):
    assert traits(template, SPECIAL).ability(ability).about == about


DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}"
DATED = (
    "{{ bos_token }}<|im_start|>system\nKnowledge until 2023, and this is 2026.\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}<|im_end|>\n" + TEMPLATE.replace("in messages", "in rest")
)


@pytest.mark.parametrize(
    ("template", "injected", "replaceable"),
    [
        (TEMPLATE, "", False),
        ("{{ bos_token }}" + TEMPLATE, "", False),
        (DEFAULT + TEMPLATE, "<|im_start|>system\nYou are Tiny.<|im_end|>", True),
        ("{{ bos_token }}" + DEFAULT + TEMPLATE, "<|im_start|>system\nYou are Tiny.<|im_end|>", True),
        ("Always here.\n" + TEMPLATE, "Always here.", False),
        ("{{ messages[0].content if messages[0].role == 'system' }}Always here.\n" + TEMPLATE, "Always here.", False),
        (DATED, "<|im_start|>system\nKnowledge until 2023, and this is 2026.\n<|im_end|>", False),
        (PRESETS["alpaca"], "Below is an instruction that describes a task. Write a response that appropriately "
         "completes the request.", True),
        (PRESETS["gemma"], "", False),
        (ORIGINALS["qwen2_5"], "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
         "assistant.<|im_end|>", True),
        ("{{ raise_exception('never') }}", "", False),
    ],
)  # fmt: skip
def test_injected_text(template, injected, replaceable):
    found = traits(template, SPECIAL)
    assert (found.injected, found.replaceable) == (injected, replaceable)


def test_a_date_that_stays_beside_a_system_message_is_not_replaceable():
    found = traits(ORIGINALS["llama3_1"], SPECIAL)
    assert "Cutting Knowledge Date" in found.injected
    assert not found.replaceable


@pytest.mark.parametrize(
    ("template", "prompt"),
    [(TEMPLATE, "<|im_start|>assistant\n"), (CHATML, ""), ("{{ raise_exception('never') }}", None)],
)
def test_generation_prompt(template, prompt):
    assert traits(template, SPECIAL).generation_prompt == prompt

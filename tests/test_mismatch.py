"""Tuned with one template, chatted with another."""

import pytest
from tiny_models import tiny_tokenizer

from sft.chat_format import ChatFormat, preset, presets
from sft.mismatch import mismatch, to_json

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
UNANSWERED = TALK[:1]


def both(tuned: str, chatted: str, talk=TALK):
    tokenizer = tiny_tokenizer(preset(tuned))
    return mismatch(ChatFormat.of(tokenizer), ChatFormat(tokenizer, preset(chatted)), talk)


@pytest.mark.parametrize("name", presets())
@pytest.mark.parametrize("talk", [TALK, UNANSWERED], ids=["answered", "unanswered"])
def test_a_format_fits_itself_where_its_turns_end_in_a_token_of_the_tokenizer(name, talk):
    found = both(name, name, talk)
    assert found.parts_at is None
    foreign = name in ("gemma", "llama3", "phi")  # the tiny tokenizer knows ChatML's markers and its end token
    assert found.stops is (not foreign or name == "phi")  # phi ends a conversation in the end token
    assert found.harmless is found.stops


def test_another_header_is_a_prompt_that_was_never_seen():
    found = both("chatml", "zephyr")
    assert not found.harmless
    assert found.training[: found.parts_at] == found.prompt[: found.parts_at]
    assert found.training[found.parts_at] != found.prompt[found.parts_at]
    assert "in a way that it never saw" in found.said()[0]
    assert "<|user|>" in found.prompt
    assert "<|im_start|>user" in found.training


def test_a_stop_token_that_chat_does_not_wait_for_never_ends_the_reply():
    found = both("chatml", "plain")
    assert (found.writes, found.awaits, found.stops) == ("<|im_end|>", ["<|endoftext|>"], False)
    assert found.said()[1] == (
        "The reply does not end: the model learned to end with <|im_end|>, and chat waits for <|endoftext|>."
    )
    # the other way round chat waits for both, for the tokenizer's own end token always ends a reply
    assert both("plain", "chatml").stops


def test_what_learned_no_end_never_ends():
    endless = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    form = ChatFormat.of(tiny_tokenizer(endless))
    found = mismatch(form, form, TALK)
    assert (found.parts_at, found.writes, found.stops) == (None, None, False)
    assert "the model learned no end" in found.said()[1]


def test_the_end_of_an_inner_turn_decides():
    """phi ends a turn in <|end|>, and a conversation in the end-of-text token besides."""
    tokenizer = tiny_tokenizer(preset("phi"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tuned, chatted = ChatFormat.of(tokenizer), ChatFormat(tokenizer, preset("zephyr"))
    found = mismatch(tuned, chatted, TALK)
    assert (found.writes, found.awaits, found.stops) == ("<|end|>", ["<|endoftext|>"], False)
    assert "the model learned to end with <|end|>, and chat waits for <|endoftext|>" in found.said()[1]
    assert mismatch(tuned, tuned, TALK).stops


def test_without_a_tokenizer_only_the_texts_are_judged():
    chatml, zephyr = (ChatFormat(None, preset(name), {"eos_token": "</s>"}) for name in ("chatml", "zephyr"))
    same, other = mismatch(chatml, chatml, TALK), mismatch(chatml, zephyr, TALK)
    assert (same.stops, same.harmless, other.stops, other.harmless) == (None, True, None, False)
    for found in (same, other):
        assert "cannot be told without a tokenizer" in found.said()[1]
        assert "does not end" not in found.said()[1]
    assert to_json(other)["fits"] is False and to_json(other)["stops"] is None
    assert to_json(same)["said"] == same.said()

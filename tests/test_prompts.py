"""What a model is asked with: as much as fits, in the right template, in none and in a wrong one."""

import pytest
from tiny_models import tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from sft.chat_format import ChatFormat, preset
from sft.errors import RunError
from sft.prompts import fitting, opening, prompt_ids, wrong_family

SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [
    {"role": "user", "content": "The first question, a long one."}, {"role": "assistant", "content": "One."},
    {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "2."},
    {"role": "user", "content": "Three?"},
]  # fmt: skip


def text(chat_format, ids):
    return chat_format.tokenizer.decode(ids)


def test_a_question_in_each_template(chatml):
    assert prompt_ids(chatml, TALK) == chatml.prompt_ids(TALK)
    plain = text(chatml, prompt_ids(chatml, [SYSTEM, *TALK], "none"))
    assert plain == "\n\n".join(message["content"] for message in [SYSTEM, *TALK])
    wrong = text(chatml, prompt_ids(chatml, TALK, "wrong"))
    assert wrong.startswith("<|endoftext|><|start_header_id|>user<|end_header_id|>\n\nThe first")
    assert wrong.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")


def test_without_a_template_a_text_begins_as_the_tokenizer_begins_it():
    tokenizer = tiny_tokenizer(preset("chatml"))
    bare = prompt_ids(ChatFormat.of(tokenizer), TALK, "none")
    special = [("<|im_start|>", 1)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=special)
    tokenizer.bos_token = "<|im_start|>"
    assert prompt_ids(ChatFormat.of(tokenizer), TALK, "none") == [1, *bare]
    tokenizer.bos_token = "<|im_end|>"  # what it begins with is no beginning of text
    assert prompt_ids(ChatFormat.of(tokenizer), TALK, "none") == bare


@pytest.mark.parametrize(
    ("template", "wrong"),
    [(preset("chatml"), "llama3"), (preset("llama3"), "chatml"), (None, "chatml"), (preset("zephyr"), "chatml")],
)
def test_the_wrong_template_is_of_another_family(template, wrong):
    assert wrong_family(ChatFormat.of(tiny_tokenizer(template))) == wrong


@pytest.mark.parametrize("template", ["right", "none", "wrong"])
def test_the_oldest_turns_go_first_and_the_system_message_stays(chatml, template):
    talk = [SYSTEM, *TALK]
    whole = prompt_ids(chatml, talk, template)
    assert fitting(chatml, talk, len(whole), template) == (whole, 0)
    assert fitting(chatml, talk, None, template) == (whole, 0)
    later = prompt_ids(chatml, [SYSTEM, *TALK[2:]], template)
    assert fitting(chatml, talk, len(whole) - 1, template) == (later, 1)
    assert fitting(chatml, talk, len(later), template) == (later, 1)
    last = prompt_ids(chatml, [SYSTEM, TALK[4]], template)
    assert fitting(chatml, talk, len(later) - 1, template) == (last, 2)
    assert fitting(chatml, TALK, len(prompt_ids(chatml, TALK[4:], template)), template)[1] == 2


def test_what_a_template_writes_before_every_answer_is_found(chatml):
    """As Qwen 3's does: the prompt ends after the header, the training text goes on with an empty block of thoughts."""
    thinks = "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    thinks += "{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    form = ChatFormat(chatml.tokenizer, thinks)
    assert text(form, opening(form, TALK)) == "<think>\n\n</think>\n\n"
    assert opening(chatml, TALK) == []


def test_a_question_too_long_is_told_in_words(chatml):
    count = len(prompt_ids(chatml, [SYSTEM, TALK[4]]))
    with pytest.raises(RunError, match=rf"have {count} tokens; beside the reply there is room for {count - 1}"):
        fitting(chatml, [SYSTEM, *TALK], count - 1)
    with pytest.raises(RunError, match="room for 0"):
        fitting(chatml, TALK[4:], -88)

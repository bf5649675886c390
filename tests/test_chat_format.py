"""Rendering: equal to apply_chat_template, with exact spans, for marked and unmarked templates."""

import json
import random

import pytest
from tiny_models import tiny_tokenizer

from sft.chat_format import IGNORED, ChatFormat, preset
from sft.errors import TemplateError
from sft.messages import Conversation

CHATML_UNMARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INJECTING = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant named Tiny.<|im_end|>\n{% endif %}" + CHATML_UNMARKED
)
TRIMMING = CHATML_UNMARKED.replace("message['content']", "message['content'] | trim")
# Gemma's way: no system role; the system text goes into the first user message.
MERGING = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<start>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n"
    "{{ (system if loop.first else '') + message['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
TEMPLATES = {
    "chatml": preset("chatml"), "plain": preset("plain"), "unmarked": CHATML_UNMARKED, "injecting": INJECTING,
    "trimming": TRIMMING, "merging": MERGING,
}  # fmt: skip
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "assistant"},
    {"role": "user", "content": "And 12?\n"},
    {"role": "assistant", "content": "  Thirteen – 日本 🎉"},
]


def chat_format(name):
    return ChatFormat.of(tiny_tokenizer(TEMPLATES[name]))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("generation_prompt", [False, True])
def test_text_and_ids_are_those_of_apply_chat_template(name, generation_prompt):
    form = chat_format(name)
    for messages in (TALK, TALK[1:], TALK[:2], TALK[1:3]):
        rendered = form.render(messages, add_generation_prompt=generation_prompt)
        arguments = {"add_generation_prompt": generation_prompt}
        assert rendered.text == form.tokenizer.apply_chat_template(messages, tokenize=False, **arguments)
        ids = form.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **arguments)
        assert rendered.token_ids == ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_trained_text_is_the_answer_and_what_ends_it(name):
    form = chat_format(name)
    rendered = form.render(TALK)
    trained = [rendered.text[start:end] for start, end in rendered.assistant_spans]
    answers = [TALK[2]["content"], TALK[4]["content"]]
    if name in ("trimming", "merging"):
        answers = [answer.strip() for answer in answers]
    end = {"plain": "<|endoftext|>", "chatml": "<|im_end|>", "merging": "<end>\n"}.get(name, "<|im_end|>\n")
    assert trained == [answer + end for answer in answers]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_mask_marks_exactly_the_trained_text(name):
    form = chat_format(name)
    rendered = form.render(TALK)
    pieces = [
        rendered.text[start:end]
        for (start, end), trained in zip(rendered.offsets, rendered.assistant_mask, strict=True)
        if trained
    ]
    kept = form.tokenizer.decode(
        [i for i, trained in zip(rendered.token_ids, rendered.assistant_mask, strict=True) if trained]
    )
    assert kept == "".join(rendered.text[start:end] for start, end in rendered.assistant_spans)
    assert pieces
    assert len(rendered.tokens) == len(rendered.roles) == len(rendered.token_ids)


@pytest.mark.parametrize("name", TEMPLATES)
def test_spans_are_the_contents_even_where_a_content_repeats_the_header(name):
    rendered = chat_format(name).render(TALK)
    strip = str.strip if name in ("trimming", "merging") else str
    for span in rendered.spans:
        assert rendered.text[span.start : span.end] == strip(TALK[span.message]["content"])
        assert span.role == TALK[span.message]["role"]
    assert [span.message for span in rendered.spans] == [0, 1, 2, 3, 4]
    roles = dict(zip([start for start, _ in rendered.offsets], rendered.roles, strict=True))
    assert roles[rendered.spans[1].start] == "user"
    assert "template" in rendered.roles


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_begins_the_training_text_and_ids(name):
    form = chat_format(name)
    full = form.render(TALK)
    prompt = form.prompt_ids(TALK[:4])
    assert full.token_ids[: len(prompt)] == prompt
    assert full.assistant_mask[len(prompt)] == 1
    assert prompt == form.render(TALK[:4], add_generation_prompt=True).token_ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_preview_training_and_chat_have_the_same_ids_for_random_conversations(name):
    form, draw = chat_format(name), random.Random(7)
    alphabet = [*"abc 012\n\t.é日🎉{}<>", "<|im_end|>", "<|endoftext|>", "### User:"]
    for _ in range(60):
        contents = ["".join(draw.choices(alphabet, k=draw.randrange(12))) for _ in range(draw.choice([2, 4]))]
        messages = [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]
        rendered, encoded = form.render(messages), form.encode(Conversation(messages))
        assert encoded.input_ids == rendered.token_ids
        assert encoded.labels == [
            token if trained else IGNORED
            for token, trained in zip(rendered.token_ids, rendered.assistant_mask, strict=True)
        ]
        assert form.prompt_ids(messages) == form.render(messages, add_generation_prompt=True).token_ids


def test_a_turn_that_the_template_rewrites_is_not_trained_on_and_that_is_said():
    # Text of every turn but the last is shortened, as templates do that strip thinking.
    template = CHATML_UNMARKED.replace("message['content']", "(message['content'] if loop.last else 'shorter')")
    rendered = ChatFormat.of(tiny_tokenizer(template)).render(TALK[1:])
    assert [rendered.text[a:b] for a, b in rendered.assistant_spans] == []
    assert [item.code for item in rendered.findings].count("turn_not_isolated") == 2


def test_findings_tell_of_injected_and_dropped_text():
    injected = chat_format("injecting").render(TALK[1:3])
    assert "helpful assistant named Tiny" in next(f.message for f in injected.findings if f.code == "default_system")
    assert not chat_format("injecting").render(TALK).findings
    assert not chat_format("unmarked").render(TALK[1:3]).findings
    dropping = CHATML_UNMARKED.replace("{% for message in messages %}", "{% for message in messages[1:] %}")
    dropped = ChatFormat.of(tiny_tokenizer(dropping)).render(TALK)
    assert [f.message for f in dropped.findings if f.code == "content_dropped"]


def test_a_turn_without_stop_token_is_an_error():
    template = CHATML_UNMARKED.replace("<|im_end|>\n", "\n")
    rendered = ChatFormat.of(tiny_tokenizer(template)).render(TALK)
    assert [(item.level, item.code) for item in rendered.findings] == [("error", "no_stop_token")]


def test_a_control_token_in_the_answer_does_not_hide_a_missing_stop_token():
    template = CHATML_UNMARKED.replace("<|im_end|>\n", "\n")
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "see <|im_start|> there"}]
    rendered = ChatFormat.of(tiny_tokenizer(template)).render(talk)
    assert [item.code for item in rendered.findings] == ["no_stop_token"]


def test_stop_tokens_are_the_end_token_and_the_one_that_ends_a_turn():
    form = chat_format("unmarked")
    assert form.tokenizer.convert_ids_to_tokens(form.stop_token_ids) == ["<|endoftext|>", "<|im_end|>"]
    plain = ChatFormat.of(tiny_tokenizer(None))
    assert plain.origin.startswith("plain")
    assert plain.tokenizer.convert_ids_to_tokens(plain.stop_token_ids) == ["<|endoftext|>"]
    assert plain.render(TALK).assistant_spans


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system role') }}", "{% for x in", "{{ 1 / 0 }}", "{{ messages.x.y.z }}",
        "{{ 'a' + 1 }}", "{{ ''.__class__ }}{{ ().__class__.__bases__ }}",
    ],
)  # fmt: skip
def test_a_template_that_raises_gives_one_clear_error(template):
    with pytest.raises(TemplateError) as caught:
        ChatFormat(None, template).render(TALK)
    assert "does not render" in caught.value.message
    assert caught.value.hint


def test_the_line_of_a_broken_template_is_named():
    with pytest.raises(TemplateError, match="line 3"):
        ChatFormat(None, "a\nb\n{% for x in").render(TALK)


def test_a_template_alone_gives_text_and_spans_without_tokens():
    rendered = ChatFormat(None, preset("plain"), {"eos_token": "</s>"}).render(TALK)
    assert rendered.text.endswith("</s>\n\n")
    assert rendered.token_ids is None
    assert len(rendered.assistant_spans) == 2


def test_rows_are_cut_at_max_length_and_judged():
    form = chat_format("chatml")
    conversation = Conversation(TALK)
    whole = form.encode(conversation)
    assert whole.verdict == "kept"
    cut = form.encode(conversation, len(whole.input_ids) - 1)
    assert (cut.verdict, cut.input_ids) == ("cut", whole.input_ids[:-1])
    assert form.encode(conversation, 10).verdict == "dropped"


def test_saving_and_loading_keeps_the_format_and_notices_another(tmp_path):
    form = ChatFormat(tiny_tokenizer(None), "a\r\n{{ messages[0]['content'] }}\n\n", {"x": 1}, "given")
    form.save(tmp_path)
    form.tokenizer.save_pretrained(tmp_path / "tokenizer")
    from transformers import AutoTokenizer

    again = ChatFormat.load(tmp_path, AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
    assert (again.chat_template, again.template_kwargs, again.hash) == (form.chat_template, {"x": 1}, form.hash)
    about = json.loads((tmp_path / "chat_format.json").read_text())
    assert about["sha256"] == form.hash
    (tmp_path / "chat_template.jinja").write_text("other")
    with pytest.raises(TemplateError, match="is not the one that the adapter was trained with"):
        ChatFormat.load(tmp_path, form.tokenizer)


def test_padding_set_by_a_trainer_does_not_change_the_hash_or_the_ids():
    form = chat_format("chatml")
    before, ids = form.hash, form.render(TALK).token_ids
    form.tokenizer.pad_token = form.tokenizer.eos_token
    form.tokenizer(["a", "abc"], padding=True, truncation=True, max_length=4)
    fresh = ChatFormat.of(form.tokenizer)
    assert fresh.render(TALK).token_ids == ids
    assert fresh.hash == before

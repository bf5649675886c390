"""Rendering: equal to apply_chat_template, with exact spans, for marked and unmarked templates."""

import json
import random

import pytest
from tiny_models import tiny_tokenizer

from sft.chat_format import IGNORED, PRESETS, TOGETHER, ChatFormat, preset
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


PRESET_NAMES = sorted(path.stem for path in PRESETS.glob("*.jinja"))


def special_tokenizer(chat_template):
    """The tiny tokenizer, which knows the control tokens of all presets."""
    tokenizer = tiny_tokenizer(chat_template)
    markers = [f"<|{name}|>" for name in ("end", "eot_id", "start_header_id", "end_header_id", "user", "assistant")]
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", *markers]}
    )
    return tokenizer


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


def random_conversation(draw):
    pieces = [*"abc 012\n\t.é日🎉{}<>", "\r\n", "\u00a0", "user", "assistant", "e\u0301", "👩‍👩‍👧", "<|im_end|>"]
    pieces += ["<|end|>", "<|endoftext|>", "### User:", "[/INST]", "<end_of_turn>", "{{ x }}", "{% if %}", "2024"]
    roles = ["user", "assistant"] * 3
    messages = [
        {"role": role, "content": "".join(draw.choices(pieces, k=draw.choice([0, 1, 4, 12]))) + draw.choice(["", "\n"])}
        for role in roles[: draw.randrange(1, 7)]
    ]
    system = [{"role": "system", "content": draw.choice(["", "Be brief.\n"])}] if draw.random() < 0.4 else []
    return Conversation(system + messages, draw.choice([None, [{"type": "function", "function": {"name": "add"}}]]))


@pytest.mark.parametrize("name", [*PRESET_NAMES, "unmarked", "injecting", "trimming", "merging"])
def test_preview_training_and_chat_have_the_same_ids_for_random_conversations(name):
    source = TEMPLATES[name] if name in TEMPLATES else preset(name)
    form, draw, refused = ChatFormat.of(special_tokenizer(source)), random.Random(7), 0
    for _ in range(40):
        given = random_conversation(draw)
        try:
            rendered = form.render(given.messages, given.tools)
        except TemplateError:
            refused += 1
            with pytest.raises(TemplateError):
                form.encode(given)
            continue
        encoded = form.encode(given)
        assert encoded.input_ids == rendered.token_ids
        assert encoded.labels == [
            token if trained else IGNORED
            for token, trained in zip(rendered.token_ids, rendered.assistant_mask, strict=True)
        ]
        assert encoded.full_length == len(rendered.token_ids)
        assert rendered.assistant_mask == [
            int(any(start <= at < end for start, end in rendered.assistant_spans)) for at, _ in rendered.offsets
        ]
        assert form.tokenizer.decode(rendered.token_ids) == rendered.text
        asked = form.render(given.messages, given.tools, add_generation_prompt=True)
        assert form.prompt_ids(given.messages, given.tools) == asked.token_ids
        if given.messages[-1]["role"] == "assistant" and rendered.prompt.parts_at is None:
            # chat asks with the very ids before the first that is learned, where no token reaches over that place
            prompt = form.prompt_ids(given.messages[:-1], given.tools)
            if len(rendered.prompt.text) in {start for start, _ in rendered.offsets}:
                assert rendered.token_ids[: len(prompt)] == prompt
    assert refused < 30


def alone(form, conversation, max_length):
    try:
        return form.encode(conversation, max_length)
    except TemplateError as error:
        return str(error)


@pytest.mark.parametrize("name", ["plain", "chatml", "unmarked", "merging"])
def test_many_encoded_together_are_what_each_is_alone(name):
    source = TEMPLATES[name] if name in TEMPLATES else preset(name)
    form, draw = ChatFormat.of(special_tokenizer(source)), random.Random(8)
    given = [random_conversation(draw) for _ in range(2 * TOGETHER + 5)]
    for count in (0, 1, TOGETHER, len(given)):
        together = [
            str(found) if isinstance(found, TemplateError) else found for found in form.encode_all(given[:count], 30)
        ]
        assert together == [alone(form, each, 30) for each in given[:count]]


def test_a_template_that_refuses_all_says_so_for_each():
    form = ChatFormat.of(tiny_tokenizer("{{ raise_exception('never') }}"))
    assert [error.reason for error in form.encode_all([Conversation(TALK)] * 3)] == ["never"] * 3


def test_a_turn_that_the_template_rewrites_is_not_trained_on_and_that_is_said():
    # Text of every turn but the last is shortened, as templates do that strip thinking.
    template = CHATML_UNMARKED.replace("message['content']", "(message['content'] if loop.last else 'shorter')")
    rendered = ChatFormat.of(tiny_tokenizer(template)).render(TALK[1:])
    assert [rendered.text[a:b] for a, b in rendered.assistant_spans] == []
    assert rendered.unsure == [1, 3]


def test_stop_tokens_of_the_presets():
    ends = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>", "phi": "<|end|>"}
    for name in PRESET_NAMES:
        form = ChatFormat.of(special_tokenizer(preset(name)))
        stops = form.tokenizer.convert_ids_to_tokens(form.stop_token_ids)
        assert stops == ["<|endoftext|>", *([ends[name]] if name in ends else [])]


def test_a_stop_token_is_the_last_control_token_of_a_turn():
    tokenizer = special_tokenizer(
        "{% for m in messages %}{{ m.role }}<|user|>{% if m.role == 'assistant' %}{% generation %}<|assistant|>"
        "{{ m.content }}{{ '<|end|>' if loop.last else '<|eot_id|>' }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    form = ChatFormat.of(tokenizer)
    assert tokenizer.convert_ids_to_tokens(form.stop_token_ids) == ["<|endoftext|>", "<|eot_id|>", "<|end|>"]


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


def test_a_line_break_that_is_a_token_of_its_own_ends_no_turn():
    tokenizer = tiny_tokenizer(preset("gemma"))
    tokenizer.add_tokens(["\n"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    form = ChatFormat.of(tokenizer)
    assert tokenizer.convert_ids_to_tokens(form.stop_token_ids) == ["<|endoftext|>", "<end_of_turn>"]


def test_an_empty_reply_at_the_very_start_hides_no_other():
    marked = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    talk = [{"role": "assistant", "content": ""}, {"role": "assistant", "content": "Hello."}]
    assert all(ChatFormat.of(tiny_tokenizer(marked)).render(talk).assistant_mask)

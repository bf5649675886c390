"""Each finding is made where it should be, at its place, and nowhere else."""

import inspect
import json
import re
from dataclasses import replace

import pytest
from test_layout import CALL, CALLING, CHATML, ENDING, ORIGINALS, PROMPT, TALKS, TOOLS, says, talk
from tiny_models import tiny_tokenizer

from sft import doctor, token_findings
from sft.chat_format import ChatFormat, preset
from sft.doctor import examine, to_json
from sft.finding import LEVELS

TEMPLATE = CHATML + PROMPT
BRIEF = talk("Hi", "Hello.", system="Be brief.")
NOBODY_ELSE = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Tiny.<|im_end|>\n{% endif %}"
BETWEEN = (  # as Qwen1.5 does: the stop token is written where something follows
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if add_generation_prompt or not loop.last %}<|im_end|>\n{% endif %}{% endfor %}"
)
TAKES_TURNS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('take turns') }}{% endif %}{% endfor %}" + TEMPLATE
)
WORDS_ONLY = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
WORDS_PROMPT = "{% if add_generation_prompt %}assistant:{% endif %}"
SPACE_PROMPT = "{% if add_generation_prompt %}assistant: {% endif %}"
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + PROMPT
)


@pytest.fixture(scope="module")
def tokenizer():
    made = tiny_tokenizer(None)
    made.add_special_tokens({"pad_token": "<|pad|>"})
    made.add_tokens(["  ", "<table>", "<call>"])
    return made


def found(tokenizer, template, messages=BRIEF, tools=None, max_length=None, prompted=False, **more):
    form = ChatFormat(tokenizer, template, **more)
    rendered = form.render(messages, tools, prompted)
    return rendered, examine(form, messages, tools, rendered, max_length)


# code → template, messages, what its place holds (None: no place; ""; or text), the message it is about, and the rest
CASES = {
    "no_template": [(TEMPLATE, BRIEF, None, None, {"origin": "plain (the model has none)"})],
    "turn_not_isolated": [
        (TEMPLATE.replace("m.content", "m.content if loop.last else 'x'"), BRIEF, None, 2, {}),
        ("{{ messages | length }}" + TEMPLATE, BRIEF, None, 2, {}),
    ],
    "nothing_to_learn": [(MARKED, talk("Hi", " \n"), " \n", None, {})],
    "stop_outside_mask": [
        (MARKED, BRIEF, "<|im_end|>", None, {}),
        (BETWEEN + PROMPT, talk("Hi", "Hello.", "And?"), "<|im_end|>", None, {}),
        (MARKED.replace("<|im_end|>", "{{ eos_token }}"), BRIEF, "<|endoftext|>", None, {}),
        (MARKED.replace("<|im_end|>", "STOP"), BRIEF, "STOP", None, {"template_kwargs": {"eos_token": "STOP"}}),
        (NOBODY_ELSE + BETWEEN + PROMPT, talk("Hi", "Hello.", "And?"), "<|im_end|>", None, {}),
    ],
    "no_stop_token": [
        (TEMPLATE.replace("<|im_end|>", ""), BRIEF, "Hello.\n", None, {}),
        (TEMPLATE.replace("<|im_end|>", ""), talk("Hi", "<|im_end|> b"), "<|im_end|> b\n", None, {}),
        (TEMPLATE.replace("<|im_end|>", "</s>"), BRIEF, "Hello.</s>\n", None, {}),
        (MARKED.replace("<|im_end|>", "."), BRIEF, "Hello.", None, {}),
    ],
    "stop_cut": [(TEMPLATE, talk("Hi", "Hello"), "<|im_end|>\n", None, {"max_length": -2})],
    "prompt_not_prefix": [
        (TEMPLATE + "{% if add_generation_prompt %}<think>{% endif %}", BRIEF, "H", None, {}),
        (TEMPLATE + "{% if add_generation_prompt %}<think>{% endif %}", talk("Hi"), None, None, {}),
        (TEMPLATE.replace("<|im_start|>assistant\n", "{{ messages[-1].content }}"), BRIEF, "<", None, {}),
        ("{% if add_generation_prompt %}!{% endif %}", BRIEF, None, None, {}),
    ],
    "prompt_tokens_differ": [
        (WORDS_ONLY + SPACE_PROMPT, talk("Hi", "fox"), " ", None, {}),
        (WORDS_ONLY + SPACE_PROMPT, talk("Hi", "fox"), " ", None, {"prompted": True}),
    ],
    "prompt_trailing_space": [
        (WORDS_ONLY + SPACE_PROMPT, talk("Hi", "Hello."), " ", None, {}),
        (WORDS_ONLY + SPACE_PROMPT, talk("Hi"), None, None, {}),
        (WORDS_ONLY + SPACE_PROMPT, talk("Hi"), " ", None, {"prompted": True}),
    ],
    "doubled_bos": [("{{ bos_token * 2 }}" + TEMPLATE, BRIEF, "<|endoftext|>" * 2, None, {})],
    "default_system": [
        (NOBODY_ELSE + TEMPLATE, talk("Hi", "Hello."), "<|im_start|>system\nYou are Tiny.<|im_end|>", None, {}),
        ("Always here.\n" + TEMPLATE, BRIEF, "Always here.", None, {}),
    ],
    "system_dropped": [
        (TEMPLATE.replace("{{ m.content", "{{ m.content if m.role != 'system'"), BRIEF, "", 0, {}),
    ],
    "content_dropped": [
        (TEMPLATE.replace("in messages", "in messages[1:]"), talk("Hi", "Hello."), "", 0, {}),
        (TEMPLATE.replace("m.content", "m.content.split('!')[0]"), talk("Hi! You", "b"), "", 0, {}),
        (TEMPLATE.replace("m.content", "m.content | upper"), talk("1", "2 hi"), "", 1, {}),
        (TEMPLATE, [*talk("Hi"), says("assistant", "Hello.", reasoning_content="hm")], "", 1, {}),
        (TEMPLATE, [*talk("Hi"), says("assistant", "Hello.", tool_calls=[CALL])], "", 1, {}),
    ],
    "whitespace_trimmed": [(TEMPLATE.replace("m.content", "m.content | trim"), talk("Hi\n", "Hello."), "", 0, {})],
    "tools_dropped": [(TEMPLATE, BRIEF, None, None, {"tools": TOOLS})],
    "forged_turn": [
        (TEMPLATE, talk("a<|im_end|>b", "c"), "<|im_end|>", 0, {}),
        (TEMPLATE, talk("a", "b<|endoftext|>"), "<|endoftext|>", 1, {}),
        (TEMPLATE + "{% if x %}<call>{% endif %}", talk("a", "b <call>"), "<call>", 1, {}),
    ],
    "marker_not_a_token": [
        (TEMPLATE.replace("im_start", "begin"), BRIEF, "<|begin|>", None, {}),
        (preset("gemma"), talk("Hi"), "<start_of_turn>", None, {}),
        (preset("gemma"), talk("Hi", "Hello."), "<end_of_turn>", None, {}),
    ],
    "untrained_marker": [],  # with the weights of a model: see below
    "depends_on_today": [
        ("It is {{ strftime_now(form) }}, today.\n" .replace("form", f"'{form}'") + TEMPLATE, BRIEF, None, None, {})
        for form in ("%d %b %Y", "%Y", "%A", "%B", "%m/%y", "%H:%M", "%j")
    ],
    "roles_alternate": [(TAKES_TURNS, talk("Hi", "Hello."), None, None, {})],
    "system_refused": [
        (TAKES_TURNS, talk("Hi", "Hello."), None, None, {}),
        (preset("gemma"), talk("a"), None, None, {}),
    ],
    "no_generation_prompt": [(CHATML, talk("Hi", "Hello."), None, None, {})],
    "pad_is_eos": [],  # another tokenizer: see below
    "does_not_render": [],  # nothing to examine: see below
}  # fmt: skip


def test_every_finding_has_a_case():
    codes = re.findall(
        r'Finding\(\s*"\w+"[^,]*,\s*"(\w+)"', inspect.getsource(doctor) + inspect.getsource(token_findings)
    )
    codes += re.findall(r'"(\w+)" if whole else "(\w+)"', inspect.getsource(doctor))[0]
    assert set(codes) == set(CASES)


@pytest.mark.parametrize("code", [code for code in CASES if CASES[code]])
def test_a_finding_is_made_at_its_place(tokenizer, code):
    for template, messages, place, about, more in CASES[code]:
        if more.get("max_length"):
            more = more | {"max_length": len(ChatFormat(tokenizer, template).render(messages).token_ids) - 2}
        rendered, findings = found(tokenizer, template, messages, **more)
        here = [each for each in findings if each.code == code]
        assert here, [each.code for each in findings]
        each = here[0]
        assert each.message and each.remedy and each.level in LEVELS
        assert each.message_index == about
        if code == "depends_on_today":
            assert rendered.text[: each.start] == "It is "
            assert rendered.text[each.start : each.end].endswith(", today.")
        elif place is None:
            assert (each.start, each.end) == (None, None)
        else:
            assert 0 <= each.start <= each.end <= len(rendered.text)
            assert rendered.text[each.start : each.end] == place


# template, conversation, and every finding that they get
WELL = [
    (TEMPLATE, BRIEF, {}, []),
    (TEMPLATE, talk("Hi", "Hello.", "And?", "More."), {}, []),
    (TEMPLATE, talk("Hi"), {}, []),
    (TEMPLATE, talk("Hi"), {"prompted": True}, []),
    (TEMPLATE, BRIEF, {"max_length": 1000}, []),
    (ENDING + PROMPT, talk("Hi", "Hello.", "And?", "More."), {}, []),
    (preset("chatml"), BRIEF, {}, []),
    (preset("plain"), BRIEF, {}, []),
    (preset("zephyr"), BRIEF, {}, ["marker_not_a_token"]),
    (preset("zephyr"), BRIEF, {"origin": ChatFormat.of(tiny_tokenizer(TEMPLATE)).origin}, []),
    (preset("plain"), BRIEF, {"origin": "plainish.jinja"}, []),
    (preset("plain"), BRIEF, {"origin": ChatFormat.of(tiny_tokenizer(None)).origin}, ["no_template"]),
    (NOBODY_ELSE + TEMPLATE, BRIEF, {}, []),
    (NOBODY_ELSE + TEMPLATE, talk("Hi", "Hello.", system="You are Tiny."), {}, []),
    (MARKED.replace("{% endgeneration %}", "<|im_end|>{% endgeneration %}"), BRIEF, {}, []),
    (TEMPLATE, talk("a  b <table>", "</s> [INST] <call>"), {}, []),
    (TEMPLATE, talk("Hi", ""), {}, []),
    (TEMPLATE.replace("m.content", "m.content | trim"), BRIEF, {}, []),
    ("{{ tools | tojson if tools }}" + TEMPLATE, talk("Hi"), {"tools": TOOLS}, []),
    (TEMPLATE.replace("{{ m.content", "{{ m.tool_calls }}{{ m.content"), CALLING, {}, []),
    ("{% set day = strftime_now('%Y') %}" + TEMPLATE, BRIEF, {}, []),
    (WORDS_ONLY + WORDS_PROMPT, talk("Hi", "Hello."), {}, []),
    (ORIGINALS["qwen3"], TALKS["thinking inside"][2:], {}, []),
]


@pytest.mark.parametrize(("template", "messages", "more", "codes"), WELL)
def test_nothing_is_found_where_nothing_is_wrong(tokenizer, template, messages, more, codes):
    assert [each.code for each in found(tokenizer, template, messages, **more)[1]] == codes


def test_all_places_lie_in_the_text_and_the_worst_comes_first(tokenizer):
    names = ("deepseek_r1_distill", "gemma3", "gptoss", "llama3_1", "phi3", "qwen2_5", "qwen3")
    for template in (*(ORIGINALS[name] for name in names), MARKED, WORDS_ONLY + SPACE_PROMPT):
        form = ChatFormat(tokenizer, template)
        for messages in (BRIEF[1:], talk("Hi "), talk("a<|im_end|>", "", "\n")):
            for prompted in (False, True):
                rendered = form.render(messages, None, prompted)
                findings = examine(form, messages, None, rendered, 10)
                assert [each.level for each in findings] == sorted((each.level for each in findings), key=LEVELS.index)
                for each in findings:
                    assert (each.start is None) == (each.end is None)
                    assert each.start is None or 0 <= each.start <= each.end <= len(rendered.text)
                json.dumps(to_json(rendered, findings))


def test_without_a_tokenizer_an_end_is_told_by_how_it_looks():
    for end, codes in (("<|im_end|>", []), ("</s>", []), ("<end_of_turn>", []), ("STOP", ["no_stop_token"])):
        _, findings = found(None, TEMPLATE.replace("<|im_end|>", end), talk("Hi", "Hello."))
        assert [each.code for each in findings] == codes
    _, findings = found(None, TEMPLATE.replace("<|im_end|>", "STOP"), talk("Hi", "Hello."),
                        template_kwargs={"eos_token": "STOP"})  # fmt: skip
    assert findings == []
    _, findings = found(None, TEMPLATE, talk("a <|im_end|>", "[INST] </s>"))
    assert [(each.code, each.message_index) for each in findings] == [("forged_turn", 0)]


def test_what_is_cut_off_is_counted(tokenizer):
    messages = talk("Hi", "Hello.", "And?", "More.")
    length = len(ChatFormat(tokenizer, TEMPLATE).render(messages).token_ids)
    for max_length, lost in ((length - 1, 0), (length - 2, 1), (5, 2)):
        rendered, findings = found(tokenizer, TEMPLATE, messages, max_length=max_length)
        (each,) = [each for each in findings if each.code == "stop_cut"]
        assert ("stop token" in each.message) == bool(lost)
        assert not lost or f"stop token of {lost} assistant" in each.message
        assert each.start == rendered.offsets[max_length][0] and each.end == len(rendered.text)


def test_a_padding_token_that_is_the_end_token_is_told():
    tokenizer = tiny_tokenizer(None)
    assert found(tokenizer, TEMPLATE)[1] == []
    tokenizer.pad_token = tokenizer.eos_token
    assert [each.code for each in found(tokenizer, TEMPLATE)[1]] == ["pad_is_eos"]


def test_a_marker_without_training_is_told_at_its_first_place(tokenizer, tmp_path, monkeypatch):
    asked = []
    ids = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])

    def untrained(folder, token_ids, control_ids):
        asked.append((folder, sorted(token_ids)))
        assert set(control_ids) == set(tokenizer.added_tokens_decoder)
        return [ids[1]]

    monkeypatch.setattr(token_findings, "untrained", untrained)
    assert found(tokenizer, TEMPLATE)[1] == [] and asked == []  # made here, from no folder
    monkeypatch.setattr(tokenizer, "name_or_path", str(tmp_path))
    (each,) = found(tokenizer, TEMPLATE)[1]
    assert asked[-1] == (tmp_path, sorted(ids))
    assert each.code == "untrained_marker"
    assert "<|im_end|>" in each.message and "<|im_start|>" not in each.message
    rendered = found(tokenizer, TEMPLATE)[0]
    assert rendered.text[each.start : each.end] == "<|im_end|>"
    assert rendered.text.index("<|im_end|>") == each.start
    found(tokenizer, TEMPLATE, talk("<|pad|>", "b"))
    assert asked[-1][1] == sorted(ids)  # not of what somebody typed


def test_a_template_that_raises_is_a_finding(tokenizer):
    with pytest.raises(doctor.TemplateError) as caught:
        found(tokenizer, "{{ raise_exception('never') }}")
    each = doctor.not_rendered(caught.value)
    assert (each.level, each.code, each.start, each.end) == ("error", "does_not_render", None, None)
    assert each.message.endswith("never") and each.remedy


def test_findings_as_json(tokenizer):
    rendered, findings = found(tokenizer, "Always here.\n" + TEMPLATE)
    said = json.loads(json.dumps(to_json(rendered, findings)))
    assert said["text"] == rendered.text and said["token_ids"] == rendered.token_ids
    assert said["assistant_spans"] == [list(span) for span in rendered.assistant_spans]
    assert set(said["findings"][0]) == {"level", "code", "message", "remedy", "start", "end", "message_index"}
    assert to_json(replace(rendered, token_ids=None), [])["token_ids"] is None


BRACKETS = [
    "<｜end▁of▁sentence｜>",
    "<turn|>",
    "[|endofturn|]",
    "<seed:eos>",
    "<SPECIAL_12>",
    "<eos>",
    "</assistant>",
    "[e~[",
]


@pytest.mark.parametrize("end", BRACKETS)
def test_without_a_tokenizer_brackets_that_the_template_writes_after_the_words_are_a_stop(end):
    for messages in (talk("Hi", "Hello."), talk("Hi", "Hello.", "And?", "")):
        _, findings = found(None, TEMPLATE.replace("<|im_end|>", end), messages)
        assert [each.code for each in findings] == []


@pytest.mark.parametrize("end", ["", "\n\n", " Over.", "[1]", '["a"]', "< b >"])
def test_without_a_tokenizer_words_and_white_space_are_no_stop(end):
    for words in ("Hello.", "Hello <eos>", "</assistant>"):  # not even words that look like one
        rendered, findings = found(None, TEMPLATE.replace("<|im_end|>", end), talk("Hi", words))
        (each,) = [each for each in findings if each.code == "no_stop_token"]
        assert rendered.text[each.start : each.end].startswith(words)


def test_an_end_token_that_is_not_given_is_named():
    (each,) = found(None, WORDS_ONLY, talk("Hi", "Hello."))[1][:1]
    assert each.code == "no_stop_token" and '{"eos_token": "</s>"}' in each.remedy
    marked = MARKED.replace("<|im_end|>", "{% generation %}{{ eos_token }}{% endgeneration %}")
    codes = [each.code for each in found(None, marked, talk("Hi", "Hello."))[1]]
    assert codes.count("no_stop_token") == 1  # of the words, not of the marks that are around nothing


ENDLESS = [
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}",
    "<s>{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}{% endfor %}",
    "<|system|>Be kind.{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}",
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}<|assistant|>\n",
]  # fmt: skip


@pytest.mark.parametrize("template", ENDLESS)
def test_the_header_of_the_next_turn_is_no_stop_token(template):
    header = template.partition("%}")[2].partition("{{ m.content")[0].replace("{{ m.role }}", "assistant")
    if "INST" not in template and not template.endswith("\n"):
        template += "{% if add_generation_prompt %}" + header + "{% endif %}"
    findings = found(None, template, talk("Hi", "Hello.", "And?", "More."))[1]
    assert {each.code for each in findings if each.level == "error"} == {"no_stop_token"}


def test_a_stop_token_between_turns_is_told_apart_from_a_missing_one(tokenizer):
    for known in (tokenizer, None):
        rendered, findings = found(known, BETWEEN + PROMPT, talk("Hi", "Hello.", "And?", "More."))
        between, last = [each for each in findings if each.level == "error"]
        assert (between.code, last.code) == ("stop_outside_mask", "no_stop_token")
        assert rendered.text[: between.start].endswith("Hello.") and rendered.text[last.start : last.end] == "More."
        assert "only where something follows" in between.message and "ends each turn by itself" in between.remedy


def test_many_turns_are_examined_fast(tokenizer):
    class Counted(list):
        seen = 0

        def __iter__(self):
            Counted.seen += 1
            return super().__iter__()

    form = ChatFormat(tokenizer, TEMPLATE)
    rendered = form.render(talk(*["a", "b"] * 50))
    counted = replace(
        rendered, **{name: Counted(getattr(rendered, name)) for name in ("token_ids", "offsets", "spans")}
    )
    assert list(token_findings.ends(form, counted)) == [] and list(token_findings.markers(form, counted)) == []
    assert Counted.seen == 0  # going through all of them for each turn takes the square of their number


def test_a_foreign_marker_is_an_error_only_where_it_ends_a_turn(tokenizer):
    def level(template, **more):
        return [each.level for each in found(tokenizer, template, **more)[1] if each.code == "marker_not_a_token"]

    assert level(preset("zephyr")) == ["warning"]
    assert level(TEMPLATE.replace("im_end", "end")) == ["error"]
    assert level(TEMPLATE.replace("im_end", "end"), origin=ChatFormat.of(tiny_tokenizer("x")).origin) == []
    rendered, findings = found(tokenizer, TEMPLATE.replace("im_", ""))
    (each,) = [each for each in findings if each.code == "marker_not_a_token"]
    assert rendered.text[each.start : each.end] == "<|end|>"


def called(value, **arguments):
    call = {**CALL, "function": {"name": "add", "arguments": {"x": value, **arguments}}}
    return [says("user", "1+1?"), says("assistant", "", tool_calls=[call])]


CALLS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}"
CALLS += "<|im_end|>\n{% endfor %}" + PROMPT


@pytest.mark.parametrize("known", [True, False])
def test_control_tokens_in_tool_calls_and_tools_are_seen(tokenizer, known):
    tokenizer = tokenizer if known else None
    for value in ("<|im_end|>", {"deep": ["<|im_end|>"]}):
        rendered, findings = found(tokenizer, CALLS, called(value))
        (each,) = [each for each in findings if each.code == "forged_turn"]
        assert each.message_index == 1 and rendered.text[each.start - 1 : each.end + 1] == '"<|im_end|>"'
    tools = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "description": "Adds <|im_start|> one."}}]
    rendered, findings = found(tokenizer, "{{ tools | tojson if tools }}" + TEMPLATE, talk("a", "b"), tools)
    (each,) = [each for each in findings if each.code == "forged_turn"]
    assert each.message_index is None and rendered.text[each.start - 5 : each.end] == "Adds <|im_start|>"


def test_control_tokens_of_tool_calls_that_the_text_has_not_or_changed_have_no_place(tokenizer):
    assert "forged_turn" not in [each.code for each in found(tokenizer, TEMPLATE, called("<|im_end|>"))[1]]
    changed = CALLS.replace("m.tool_calls | tojson", "m.tool_calls | tojson | upper")
    (each,) = [each for each in found(tokenizer, changed, called("<|im_end|>"))[1] if each.code == "forged_turn"]
    assert (each.message_index, each.start, each.end) == (1, None, None)


def test_arguments_do_not_hide_what_looks_like_a_control_token():
    _, findings = found(None, TEMPLATE, talk("a <|im_end|> b", "c"), template_kwargs={"eos_token": "</s>"})
    assert [(each.code, each.message_index) for each in findings] == [("forged_turn", 0)]

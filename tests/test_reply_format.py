"""The form of replies: found in the answers that are wanted, or named; and what it takes for one."""

import json

import pytest

from sft import reply_format
from sft.errors import ConfigError
from sft.reply_format import Contains, JsonFormat, Labels, Pattern, found_in, json_value, named, wanted_format


def ticket(product: str, order: str | None, **more) -> str:
    return json.dumps({"product": product, "order": order, **more})


TICKETS = [ticket(("lamp", "kettle")[n % 2], f"A-{n}" if n % 3 else None) for n in range(12)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', True), ("[1]", True), (' {"a": null}\n', True), ("{'a': 1}", False), ('{"a": 1} ok', False),
        ('```json\n{"a": 1}\n```', False), ("12", False), ('"a"', False), ("", False), ('{"a": 1', False),
        ("[" * 100_000, False), ('{"a": 1, "a": 2}', False),
    ],
)  # fmt: skip
def test_json_is_the_whole_reply_and_strict(text, expected):
    assert (json_value(text) is not None) is expected


def test_keys_and_allowed_values_are_those_of_the_answers():
    form = found_in(TICKETS)
    assert form.required == ["product", "order"]
    assert form.allowed == {"product": ['"lamp"', '"kettle"']}  # orders differ from row to row, so any will do
    assert form.valid(ticket("lamp", "Z-9"))
    assert form.valid(ticket("kettle", None))
    assert not form.valid(ticket("sofa", None))
    assert not form.valid('{"product": "lamp"}')
    assert not form.valid(ticket("lamp", None, colour="red"))
    assert not form.valid('["lamp"]')
    assert not form.valid("lamp")


def test_keys_that_some_answers_have_are_allowed_and_not_required():
    form = found_in([*TICKETS, ticket("lamp", None, note="fragile")])
    assert form.required == ["product", "order"]
    assert form.valid(ticket("lamp", None)) and form.valid(ticket("lamp", None, note="x"))


def test_lists_are_json_without_keys():
    form = found_in(["[1]", '{"a": 1}', "[]"])
    assert form == JsonFormat()
    assert form.valid("[2]") and form.valid('{"b": 0}') and not form.valid("2")


def test_true_and_one_are_different_values():
    form = found_in(['{"a": true}'] * 8)
    assert form.valid('{"a": true}') and not form.valid('{"a": 1}')


def test_few_answers_that_come_again_and_again_are_labels():
    form = found_in(["yes", "no ", "yes", "no", "yes", "yes", "no", "yes"])
    assert form == Labels(["yes", "no"])
    assert form.valid(" no\n") and not form.valid("No") and not form.valid("yes.")


@pytest.mark.parametrize("answers", [["Paris", "Rome", "Lima"], [f"{n}" for n in range(99)], ["{}", "x"], []])
def test_answers_of_no_common_form_have_none(answers):
    assert found_in(answers) is None


def test_a_data_set_can_name_a_pattern_or_a_text():
    pattern = named("regex: [A-Z]{2}-[0-9]{4}")
    assert pattern == Pattern("[A-Z]{2}-[0-9]{4}")
    assert pattern.valid("AB-1234\n") and not pattern.valid("It is AB-1234.")
    contains = named("contains: Kind regards")
    assert contains == Contains("Kind regards")
    assert contains.valid("Yes. Kind regards, Anna") and not contains.valid("Yes.")


def test_a_pattern_that_takes_too_long_is_told_in_words(monkeypatch):
    pattern = named("regex: (.*?,){11}P")
    monkeypatch.setattr(reply_format, "PATIENCE", 0.001)
    with pytest.raises(ConfigError, match=r"takes more than 0\.001 s"):
        pattern.valid(",".join(map(str, range(20))))


def test_what_replies_are_to_have_is_what_is_named_else_what_answers_have():
    assert wanted_format("contains: x", TICKETS) == Contains("x")
    assert wanted_format(None, TICKETS) == found_in(TICKETS)


def test_allowed_values_are_the_same_in_any_order():
    form = found_in(['{"size": {"w": 1, "h": 2}}'] * 8)
    assert form.valid('{"size": {"h": 2, "w": 1}}') and not form.valid('{"size": {"h": 1, "w": 2}}')


@pytest.mark.parametrize(
    ("text", "said"),
    [("json", "must be 'regex: PATTERN'"), ("regex:", "must be"), ("glob: *", "must be"), ("regex: (", "no regular")],
)
def test_what_names_no_form_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        named(text)


def test_the_instruction_says_what_is_valid():
    said = found_in(TICKETS).instruction
    assert said == (
        'Answer with one JSON object and nothing else. Its keys are "product", "order". '
        '"product" is one of "lamp", "kettle".'
    )
    assert Labels(["yes", "no"]).instruction == "Answer with one of: yes, no. Write nothing else."
    assert Labels(["yes, please", "no"]).description == "one of: “yes, please”, “no”"
    assert "Kind regards" in Contains("Kind regards").instruction
    assert Pattern("x").instruction == ""


def test_each_form_can_be_named_in_a_line():
    forms = [found_in(TICKETS), JsonFormat(), Labels(["yes", "no"]), Pattern("x+"), Contains("y")]
    assert [form.description for form in forms] == [
        "JSON with the keys product, order; allowed values of product", "JSON", "one of: yes, no", "regex: x+",
        "contains: y",
    ]  # fmt: skip


def test_half_a_character_stays_escaped():
    form = found_in([r'{"kind\ud83d": "\ud800"}'] * 8)
    assert form.instruction.endswith(r'"kind\ud83d" is one of "\ud800".')
    (form.instruction + form.description).encode()
    assert form.valid(r'{"kind\ud83d": "\ud800"}') and not form.valid(r'{"kind\ud83d": "\ud801"}')

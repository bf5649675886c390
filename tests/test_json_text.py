"""What is wrong with a text of JSON, and in which of its lines."""

import pytest

from sft.json_text import JsonProblem, loads


def test_values_are_those_of_json():
    assert loads('{"a": [1, "é", null, {"a": true}], "b": {"a": 2}}') == {
        "a": [1, "é", None, {"a": True}],
        "b": {"a": 2},
    }


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('{"a": 1,\n "b"}', 2, "Expecting ':' delimiter at column 5"),
        ('["]",\n' + "[" * 5000, 2, "nested too deeply"),
        (f'["{"8" * 6000}",\n{"9" * 5000}]', 2, "a number has too many digits"),
        ('{"a": "\\"a\\": 1",\n"b": {"a": 1},\n"c": [{"a": 1}, {"a": 1}],\n"a": 2}', 4, "the key 'a' is given twice"),
        ('[{"x": {"y": 1,\n"\\u0079": 2}}]', 2, "the key 'y' is given twice"),
    ],
    ids=["syntax", "depth", "digits", "twice", "escaped"],
)
def test_the_line_of_a_problem(text, line, said):
    with pytest.raises(JsonProblem) as caught:
        loads(text)
    assert said in caught.value.said
    assert caught.value.line == line

"""JSON text → values; where it is broken, what is wrong and in which line.

Stricter than `json.loads` in one thing: a key that an object gives twice is a mistake, not a matter of which came last.
"""

import json
import re

STRING = r'"(?:[^"\\]|\\.)*"'  # matched as a whole, because what is inside is text


class JsonProblem(ValueError):
    """What is wrong with a text of JSON (`said`), and in which of its lines (from 1)."""

    def __init__(self, said: str, line: int):
        super().__init__(said)
        self.said = said
        self.line = line


class _TwiceGiven(ValueError):
    pass


def loads(text: str):
    """`json.loads` that raises JsonProblem only, also where Python itself gives up."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise JsonProblem(f"{error.msg} at column {error.colno}", error.lineno) from None
    except _TwiceGiven:
        key, line = _second_key(text)
        raise JsonProblem(f"the key {key!r} is given twice in one object", line) from None
    except RecursionError:
        raise JsonProblem("lists and objects are nested too deeply", _deepest_line(text)) from None
    except ValueError:
        raise JsonProblem("a number has too many digits", _longest_number_line(text)) from None


def _object(pairs: list[tuple]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _TwiceGiven
    return value


def _second_key(text: str) -> tuple[str, int]:
    """The first key that its object has already, and its line."""
    opened: list[set] = []
    for part in re.finditer(rf"({STRING})(\s*:)?|[\[\]{{}}]", text):
        if part[0] in "[{":
            opened.append(set())
        elif part[0] in "]}":
            opened.pop()
        elif part[2]:
            key = json.loads(part[1])
            if key in opened[-1]:
                return key, _line(text, part.start())
            opened[-1].add(key)
    raise AssertionError("only called where a key is given twice")


def _longest_number_line(text: str) -> int:
    numbers = re.finditer(rf"{STRING}|\d+", text)
    longest = max(numbers, key=lambda part: 0 if part[0].startswith('"') else len(part[0]))
    return _line(text, longest.start())


def _deepest_line(text: str) -> int:
    depth = deepest = position = 0
    for part in re.finditer(rf"{STRING}|[\[\]{{}}]", text):
        depth += (part[0] in "[{") - (part[0] in "]}")
        if depth > deepest:
            deepest, position = depth, part.start()
    return _line(text, position)


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1

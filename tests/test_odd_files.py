"""Malformed and oddly shaped data files: each gets its verdict, with the line or row where it breaks.

A case is a file name, its bytes, and what is expected: words of the DataError, or the verdict of every row by its
place, "" for a row that is good.
"""

import gzip
import io
import json

import pytest

from sft.data import conversations
from sft.errors import DataError
from sft.tables import read_table

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello."}
QA = {"question": "Hi", "answer": "Hello."}
GOOD = json.dumps(QA)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def lines(*rows) -> bytes:
    """JSONL of rows; what is text already is a line as it stands."""
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def talk(*messages) -> dict:
    return {"messages": list(messages)}


def parquet(columns: dict, schema=None) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), file)
    return file.getvalue()


def no_rows() -> bytes:
    import pyarrow

    return parquet({"question": [], "answer": []}, pyarrow.schema({"question": "string", "answer": "string"}))


def row_of(*messages, **columns) -> bytes:
    return lines(GOOD_TALK, {**talk(*messages), **columns})


GOOD_TALK = json.dumps(talk(USER, ANSWER))

BROKEN_TEXT = {
    "cut off": ("a.jsonl", lines(GOOD, GOOD, '{"question": "Hi", "ans'), "line 3: Unterminated string"),
    "cut off list": (
        "a.json",
        b'[{"question": "Hi",\n "answer": "Hello."},\n {"question":',
        "line 3 is not valid JSON",
    ),
    "byte order mark": ("a.jsonl", b"\xef\xbb\xbf" + lines(GOOD, GOOD), {"line 1": "", "line 2": ""}),
    "byte order mark alone": ("a.jsonl", b"\xef\xbb\xbf", "holds no rows"),
    "byte order mark of a CSV": ("a.csv", b"\xef\xbb\xbfquestion,answer\nHi,Hello.\n", {"line 2": ""}),
    "UTF-16": ("a.jsonl", GOOD.encode("utf-16"), "is UTF-16 text"),
    "UTF-16 without a mark": ("a.csv", "question,answer\n".encode("utf-16-le"), "line 1 holds binary data"),
    "Windows line ends": ("a.jsonl", lines(GOOD, "", GOOD).replace(b"\n", b"\r\n"), {"line 1": "", "line 3": ""}),
    "line ends of old": ("a.jsonl", lines(GOOD, GOOD).replace(b"\n", b"\r"), {"line 1": "", "line 2": ""}),
    "Windows CSV": ("a.csv", b'question,answer\r\n"a\r\nb",c\r\nd,\r\n', {"line 2": "", "line 4": "content is empty"}),
    "Latin-1": ("a.jsonl", lines(GOOD) + '\n{"question": "café"'.encode("latin-1"), "line 2 has the byte 0xe9"),
    "empty lines": ("a.jsonl", lines("", GOOD, "", "  ", GOOD, ""), {"line 2": "", "line 5": ""}),
    "trailing comma": ("a.jsonl", lines(GOOD, GOOD[:-1] + ",}"), "line 2: "),
    "trailing comma of a list": ("a.json", f"[{GOOD},\n{GOOD},\n]".encode(), "line 3 is not valid JSON"),
    "comma after each line": ("a.jsonl", lines(GOOD + ",", GOOD), "line 1: Extra data"),
    "single quotes": ("a.jsonl", b"{'question': 'Hi'}", "line 1: Expecting property name"),
    "not a number": (
        "a.jsonl",
        lines(GOOD, '{"question": NaN, "answer": "x"}'),
        {
            "line 1": "",
            "line 2": "content must be text, not a number",
        },
    ),
    "not a number beside": ("a.jsonl", lines('{"question": "a", "answer": "b", "score": NaN}'), {"line 1": ""}),
    "a row a line as .json": ("a.json", lines(GOOD, GOOD), "one object a line must end in .jsonl"),
    "a list as .jsonl": ("a.jsonl", json.dumps([QA]).encode(), "must end in .json"),
    "a list over lines as .jsonl": ("a.jsonl", json.dumps([QA], indent=1).encode(), "line 1: "),
    "nested data": ("a.json", json.dumps({"version": 1, "data": [QA, QA]}).encode(), {"row 1": "", "row 2": ""}),
    "one row with tags": ("a.json", json.dumps({**QA, "tags": ["x"]}).encode(), "is not a list of objects"),
    "nested with a null": ("a.json", json.dumps({"rows": [QA, None]}).encode(), "row 2 is not an object"),
    "nested twice": ("a.json", json.dumps({"data": {"train": [QA]}}).encode(), "is not a list of objects"),
    "one conversation": ("a.json", GOOD_TALK.encode(), "is not a list of objects"),
    "a conversation's messages": ("a.json", json.dumps([USER, ANSWER]).encode(), "has one message in each row"),
    "a number of many digits": (
        "a.jsonl",
        lines(GOOD, f'{{"n": {"9" * 5000}}}'),
        "line 2: a number has too many digits",
    ),
    "a long number": ("a.jsonl", lines({**QA, "id": 10**400}), {"line 1": ""}),
    "deep nesting": ("a.jsonl", lines(GOOD, '{"a":' * 20000), "line 2: lists and objects are nested too deeply"),
    "a key twice": (
        "a.jsonl",
        lines(GOOD, '{"question": "a", "question": "b", "answer": "c"}'),
        "line 2: the key 'que",
    ),
    "a key twice in a list": (
        "a.json",
        b'[{"a": "b, c: d"},\n{"a": {"x": 1, "y": [],\n"x": 2}}]',
        "line 3 is not valid JSON: the key 'x'",
    ),
    "a row that is text": ("a.jsonl", lines(GOOD, '"Hi"'), "line 2: must be a JSON object"),
    "a row that is null": ("a.json", json.dumps([QA, None]).encode(), "row 2 is not an object"),
    "NUL bytes": ("a.jsonl", lines(GOOD) + b"\n\0\0\0", "line 2 holds binary data"),
    "an escaped NUL": ("a.jsonl", lines({**QA, "question": "a\0b"}), {"line 1": ""}),
    "half a character": (
        "a.jsonl",
        lines(GOOD, {**QA, "answer": "\ud800"}),
        {"line 1": "", "line 2": "not valid Unicode"},
    ),
    "a line of 10 MB": ("a.jsonl", lines(GOOD, {**QA, "answer": "word " * 2_000_000}), {"line 1": "", "line 2": ""}),
    "packed": ("a.jsonl.gz", gzip.compress(lines(GOOD)), "Unpack it"),
    "a zip": ("a.zip", b"PK\x03\x04", "Unpack it"),
    "a workbook": ("a.xlsx", b"PK\x03\x04", "Save the sheet as CSV"),
    "a web page": ("a.jsonl", b"<!DOCTYPE html>\n<html>", "line 1: Expecting value"),
    "nothing": ("a.json", b"", "is empty"),
}
BROKEN_COLUMNS = {
    "too many cells": ("a.csv", b"question,answer\na,b\nc,d,e\n", "line 3 has not the 2 columns of line 1, but 3"),
    "too many cells below a long one": ("a.csv", b'question,answer\n"a\n\nb",c\nd\n', "line 5 has not the 2 columns"),
    "a quote that is not closed": ("a.csv", b'question,answer\na,b\n"c,d\ne,f\n', "begins in line 3"),
    "semicolons": ("a.csv", b"question;answer\na, b;c\n", {"line 2": ""}),
    "semicolons that are too many": ("a.csv", b"question;answer\na;b;c\n", "Quote cells that contain semicolons"),
    "tabs": ("a.csv", b"question\tanswer\na; b\tc, d\n", {"line 2": ""}),
    "a TSV": ("a.tsv", b"question\tanswer\na\tb\n", "Rename it so that it ends in .csv"),
    "an empty header": ("a.csv", b"\nquestion,answer\na,b\n", "line 1 is empty"),
    "a column twice": ("a.csv", b"question,answer,answer\na,b,c\n", "line 1 names the column 'answer' twice"),
    "a column without a name": ("a.csv", b",question,answer\n0,a,b\n", {"line 2": ""}),
    "a header alone": ("a.csv", b"question,answer\n", "holds no rows"),
    "no header": ("a.csv", b"How are you?,Fine.\nAnd you?,Fine too.\n", "the columns How are you?, Fine."),
    "nulls": (
        "a.parquet",
        lambda: parquet({"question": ["a", None, "c"], "answer": ["b", "b", None]}),
        {
            "row 1": "",
            "row 2": "message 0: content must be text, not null",
            "row 3": "message 1: content must be text",
        },
    ),
    "structs": (
        "a.parquet",
        lambda: parquet({"messages": [[USER, {**ANSWER, "tool_calls": [CALL]}], [USER]]}),
        {
            "row 1": "",
            "row 2": "no assistant message",
        },
    ),
    "no row": ("a.parquet", no_rows, "holds no rows"),
    "cut off Parquet": ("a.parquet", lambda: parquet({"a": ["b"]})[:-9], "is not a Parquet file"),
    "other magic": ("a.parquet", b"PAR2" + b"\0" * 50, "is not a Parquet file"),
    "text that is no UTF-8": ("a.parquet", lambda: latin_1(), "is not a Parquet file that can be read"),
    "other columns": (
        "a.jsonl",
        lines({"Frage": "Wie?", "Antwort": "So."}),
        'columns: "user=Frage, assistant=Antwort"',
    ),
    "an unknown dialog": ("a.jsonl", lines({"id": 1, "dialog": [USER, ANSWER]}), 'columns: "messages=dialog"'),
    "no column": ("a.jsonl", b"{}", "no shape is known with the columns"),
    "more columns": ("a.jsonl", lines({"id": 3, **QA, "source": None, "tags": ["x"]}), {"line 1": ""}),
    "columns in other case": ("a.csv", b"Question, ANSWER\na,b\n", {"line 2": ""}),
    "mixed shapes": (
        "a.jsonl",
        lines(GOOD_TALK, GOOD, GOOD_TALK),
        {"line 1": "", "line 2": "no column 'messages'", "line 3": ""},
    ),
    "a first row that lacks a column": (
        "a.jsonl",
        lines({"question": "a"}, GOOD, GOOD),
        {"line 1": "no column 'answer'", "line 2": "", "line 3": ""},
    ),
    "preferences": ("a.jsonl", lines({"prompt": "a", "chosen": "b", "rejected": "c"}), "a stage after SFT"),
    "judged answers": ("a.jsonl", lines({"prompt": "a", "completion": "b", "label": False}), "a stage after SFT"),
    "raw text": ("a.jsonl", lines({"text": "Once upon a time."}), "Raw text is for pretraining"),
    "a tree of messages": (
        "a.jsonl",
        lines({"message_id": "x", "role": "prompter", "text": "Hi"}),
        "one message in each row",
    ),
}
BROKEN_MESSAGES = {
    "messages is null": ("a.jsonl", lines(GOOD_TALK, {"messages": None}), {"line 1": "", "line 2": "must be a list"}),
    "messages is empty": ("a.jsonl", row_of(), {"line 1": "", "line 2": "messages is empty"}),
    "a message is null": ("a.jsonl", row_of(None, ANSWER), {"line 1": "", "line 2": "message 0: must be an object"}),
    "text in parts": (
        "a.jsonl",
        row_of({"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ANSWER),
        {"line 1": "", "line 2": ""},
    ),
    "an image in parts": (
        "a.jsonl",
        row_of(
            {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": "x"}]},
            ANSWER,
        ),
        {"line 1": "", "line 2": "message 0: content must be text, not a list with parts of type image_url"},
    ),
    "content is a number": (
        "a.jsonl",
        row_of(USER, {"role": "assistant", "content": 42}),
        {"line 1": "", "line 2": "message 1: content must be text, not a number"},
    ),
    "no role": ("a.jsonl", row_of({"content": "Hi"}, ANSWER), {"line 1": "", "line 2": "message 0: has no role"}),
    "an unknown role": (
        "a.jsonl",
        row_of({"role": "narrator", "content": "Hi"}, ANSWER),
        {"line 1": "", "line 2": "unknown role 'narrator'"},
    ),
    "two systems": (
        "a.jsonl",
        row_of({"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER, ANSWER),
        {"line 1": "", "line 2": "two system messages"},
    ),
    "a system in the middle": (
        "a.jsonl",
        row_of(USER, {"role": "system", "content": "a"}, ANSWER),
        {"line 1": "", "line 2": "message 1: a system message must be the first"},
    ),
    "the assistant first": ("a.jsonl", row_of(ANSWER, USER, ANSWER), {"line 1": "", "line 2": ""}),
    "no assistant": ("a.jsonl", row_of(USER), {"line 1": "", "line 2": "no assistant message"}),
    "an empty assistant": (
        "a.jsonl",
        row_of(USER, {"role": "assistant", "content": ""}),
        {"line 1": "", "line 2": "message 1: the assistant's content is empty"},
    ),
    "only white space": (
        "a.jsonl",
        row_of(USER, {"role": "assistant", "content": " \n\t"}),
        {"line 1": "", "line 2": "the assistant's content is empty"},
    ),
    "tools that are an object": (
        "a.jsonl",
        row_of(USER, ANSWER, tools={"name": "f"}),
        {"line 1": "", "line 2": "tools must be a list"},
    ),
    "a call of a tool": (
        "a.jsonl",
        row_of(
            USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "2"}, ANSWER
        ),
        {"line 1": "", "line 2": ""},
    ),
    "calls that are text": (
        "a.jsonl",
        row_of(USER, {"role": "assistant", "content": "", "tool_calls": "add"}),
        {"line 1": "", "line 2": "tool_calls must be a list of objects"},
    ),
    "an unknown sender": (
        "a.jsonl",
        lines({"conversations": [{"from": "narrator", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}),
        {"line 1": "message 0: unknown role 'narrator'"},
    ),
    "a sender without words": (
        "a.jsonl",
        lines({"conversations": [{"from": "human"}, {"from": "gpt", "value": "a"}]}),
        {"line 1": "message 0: content must be text, not null"},
    ),
    "a dialog of texts": (
        "a.jsonl",
        lines({"conversations": ["Hi", "Hello."]}),
        {"line 1": "message 0: must be an object"},
    ),
    "messages as text in a CSV": (
        "a.csv",
        b'messages\n"[{""role"": ""user"""\n',
        {"line 2": "messages is not valid JSON"},
    ),
    "deep nesting in a message": (
        "a.jsonl",
        row_of({**USER, "note": json.loads("[" * 300 + "]" * 300)}, ANSWER),
        {"line 1": "", "line 2": ""},
    ),
}
CASES = {**BROKEN_TEXT, **BROKEN_COLUMNS, **BROKEN_MESSAGES}


def latin_1() -> bytes:
    import pyarrow

    text = pyarrow.array([b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    return parquet({"question": text, "answer": text})


@pytest.mark.parametrize("case", CASES)
def test_an_odd_file_gets_its_verdict(case, tmp_path):
    name, content, expected = CASES[case]
    (tmp_path / name).write_bytes(content() if callable(content) else content)
    if isinstance(expected, str):
        with pytest.raises(DataError) as caught:
            list(conversations(read_table(str(tmp_path / name))))
        assert expected in str(caught.value)
        assert name in caught.value.message
        assert caught.value.hint
        return
    found = {row.place: "; ".join(row.problems) for row in conversations(read_table(str(tmp_path / name)))}
    assert list(found) == list(expected)
    for place, said in expected.items():
        assert said in found[place] if said else not found[place], found


def test_there_are_enough_of_them():
    assert len(CASES) == sum(map(len, (BROKEN_TEXT, BROKEN_COLUMNS, BROKEN_MESSAGES))) >= 60

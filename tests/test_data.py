"""Files in every shape become conversations; files and rows that are wrong say where and why."""

import json
from pathlib import Path

import pytest

from sft.config import TrainConfig
from sft.data import conversations, load_split, read_table, usable
from sft.errors import DataError

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
PAIR = GOOD["messages"]
EXAMPLES = sorted(
    path.name.removesuffix(".jsonl") for path in Path("examples").glob("*.jsonl") if ".eval" not in path.name
)


def messages_of(rows, write_rows):
    found = list(conversations(read_table(str(write_rows(rows)))))
    assert not any(row.problems for row in found), found
    return [row.conversation.messages for row in found]


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {"prompt": "Hi", "completion": "Hello."},
        {"prompt": [PAIR[0]], "completion": [PAIR[1]]},
        {"instruction": "Hi", "input": "", "output": "Hello."},
        {"instruction": "Hi", "context": "", "response": "Hello.", "category": "x"},
        {"question": "Hi", "answer": "Hello."},
    ],
    ids=lambda row: "+".join(row),
)
def test_every_shape_gives_the_same_conversation(row, write_rows):
    assert messages_of([row], write_rows) == [PAIR]


def test_input_and_system_columns_are_kept(write_rows):
    row = {"instruction": "Translate", "input": "chat", "output": "cat", "system": "From French."}
    assert messages_of([row], write_rows)[0][:2] == [
        {"role": "system", "content": "From French."},
        {"role": "user", "content": "Translate\n\nchat"},
    ]


def test_every_format_reads_the_same(tmp_path):
    import pandas as pd

    rows = [{"question": "Why, “so”?", "answer": "Because\nit is."}, {"question": "é", "answer": "日本"}]
    frame = pd.DataFrame(rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps({"data": rows}))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    for name in ("a.json", "b.json", "a.jsonl", "a.csv", "a.parquet"):
        assert list(read_table(str(tmp_path / name)).rows) == rows, name


def test_parquet_pads_messages_with_nulls_that_a_template_must_not_see(tmp_path):
    import pandas as pd

    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    pd.DataFrame({"messages": [[PAIR[0], call], PAIR]}).to_parquet(tmp_path / "a.parquet")
    first, second = conversations(read_table(str(tmp_path / "a.parquet")))
    assert second.conversation.messages == PAIR
    assert first.conversation.messages[1]["tool_calls"]


def test_a_folder_with_one_file_for_the_split(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD))
    (tmp_path / "test.jsonl").write_text(json.dumps(GOOD))
    assert len(read_table(str(tmp_path)).rows) == 1
    (tmp_path / "train.json").write_text("[]")
    with pytest.raises(DataError, match="not clear which file"):
        read_table(str(tmp_path))


def test_a_folder_is_read_by_the_names_of_its_files(tmp_path):
    def rows(*split):
        return len(read_table(str(tmp_path), None, *split).rows)

    (tmp_path / "Test-00.jsonl").write_text(json.dumps(GOOD))
    assert rows("test") == 1
    with pytest.raises(DataError, match=r"holds Test-00.jsonl, so it is not clear which file to read as 'train'"):
        rows()
    (tmp_path / "Test-00.jsonl").rename(tmp_path / "rows.jsonl")
    assert rows() == rows("train") == 1
    with pytest.raises(DataError, match="as 'test'"):
        rows("test")
    for split in ("train[:5]", "train+test", ""):
        with pytest.raises(DataError, match="cannot be read from the folder"):
            rows(split)


@pytest.mark.parametrize("splits", [{"train_split": "train[:5]"}, {"eval_split": "test"}])
def test_a_file_has_no_splits(write_rows, splits):
    with pytest.raises(DataError, match="a file has no splits") as caught:
        load_split(config(write_rows(numbered(9)), **splits))
    assert "eval_dataset" in caught.value.hint
    assert "eval_share" in caught.value.hint


def wrong_files():
    line = json.dumps(GOOD)
    yield "empty.jsonl", b"", "empty.jsonl is empty"
    yield "blank.jsonl", b"\n\n", "holds no rows"
    yield "list.json", b"[]", "holds no rows"
    yield "line7.jsonl", "\n".join([line] * 6 + [line[:-5]] + [line] * 2).encode(), "line 7: "
    yield "number.jsonl", b"3\n", "line 1: must be a JSON object"
    yield "binary.jsonl", b"PAR1\xff\xfe\x00", "not UTF-8 text"
    yield "binary.csv", b"a,b\n\x00,1\n", "binary data"
    yield "text.parquet", line.encode(), "is not a Parquet file"
    yield "digits.jsonl", f"{line}\n{{'a': {'9' * 5000}}}".replace("'", '"').encode(), "line 2: a number has too many"
    yield (
        "digits.json",
        f'[{{"a": "{"8" * 6000}"}},\n{{"a": {"9" * 5000}}}]'.encode(),
        "line 2 is not valid JSON: a num",
    )
    yield "deep.jsonl", f"{line}\n{'[' * 5000}".encode(), "line 2: lists and objects are nested too deeply"
    yield "deep.json", f'["{"]" * 9000}",\n{"[" * 5000}'.encode(), "line 2 is not valid JSON: lists and objects are"
    yield "lines.json", f"{line}\n{line}".encode(), "line 2 is not valid JSON"
    yield "object.json", line.encode()[:-1] + b', "more": 1}', "not a list of objects"
    yield "ragged.csv", b"question,answer\na,b\nc,d,e\n", "line 3 has not the 2 columns"
    yield "short.csv", b"question,answer\na,b\nc\n", "line 3 has not the 2 columns"
    yield "rows.xlsx", b"PK", "not a data format known here"


@pytest.mark.parametrize(("name", "content", "said"), list(wrong_files()), ids=lambda value: str(value)[:20])
def test_files_that_cannot_be_read(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(str(tmp_path / name))
    assert said in caught.value.message
    assert caught.value.hint


def test_a_path_that_leads_nowhere():
    with pytest.raises(DataError, match=r"There is no file nowhere\.jsonl"):
        read_table("nowhere.jsonl")
    with pytest.raises(DataError, match="neither a file here nor a possible name"):
        read_table("not a name")


def test_columns_that_nothing_recognises(write_rows):
    with pytest.raises(DataError, match=r"no shape is known with the columns a, b") as caught:
        usable(read_table(str(write_rows([{"a": 1, "b": 2}]))))
    assert "question" in caught.value.hint
    with pytest.raises(DataError, match="plain text"):
        usable(read_table(str(write_rows([{"text": "Once upon a time"}]))))


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([PAIR[0]], "no assistant message"),
        ([{"role": "human", "content": "Hi"}, PAIR[1]], "unknown role 'human'"),
        ([{"role": "user", "content": ["Hi"]}, PAIR[1]], "content must be text"),
        ([{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, *PAIR], "two system messages"),
        ("broken", "must be a list"),
        ('[{"role": broken', "messages is not valid JSON"),
        ([PAIR[0], {"role": "assistant", "content": "\ud800"}], "message 1: 'content' holds '\\ud800', which is not"),
    ],
)
def test_a_bad_row_names_its_line_and_stops_the_data_set(write_rows, messages, said):
    table = read_table(str(write_rows([GOOD, {"messages": messages}, GOOD])))
    with pytest.raises(DataError) as caught:
        usable(table)
    assert "1 of 3 rows" in caught.value.message
    assert "line 2: " in caught.value.message
    assert said in caught.value.message
    kept, bad = usable(table, "skip")
    assert len(kept) == 2
    assert bad and all("line 2: " in problem for problem in bad)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**GOOD, "tools": "[{bad"}, "tools is not valid JSON"),
        ({**GOOD, "tools": f"[{'9' * 5000}]"}, "tools is not valid JSON: a number has too many digits"),
        ({**GOOD, "tools": "[" * 5000}, "tools is not valid JSON: lists and objects are nested"),
        ({**GOOD, "tools": [1]}, "tools must be a list of JSON schemas, but item 0 is a number"),
        ({**GOOD, "tools": 0}, "tools must be a list of JSON schemas, not a number"),
        ({"conversations": [{"from": ["x"], "value": "Hi"}]}, "message 0: unknown role ['x']"),
    ],
)
def test_a_cell_of_any_kind_is_a_problem_of_its_row(write_rows, row, said):
    (found,) = conversations(read_table(str(write_rows([row]))))
    assert said in found.problems[0]


def test_tools_of_a_csv_are_json_or_nothing(tmp_path):
    import pandas as pd

    cells = {"messages": [json.dumps(PAIR)] * 3, "tools": ['[{"name": "f"}]', "", "[]"]}
    pd.DataFrame(cells).to_csv(tmp_path / "a.csv", index=False)
    rows = usable(read_table(str(tmp_path / "a.csv")))[0]
    assert [row.tools for row in rows] == [[{"name": "f"}], None, None]


@pytest.mark.parametrize(
    "text", ['[{"id": 1}]', "[{x} explain", "[]", "[1]", "{", f"[{'9' * 5000}]"], ids=lambda text: text[:15]
)
def test_prompts_and_completions_that_look_like_json_stay_text(write_rows, text):
    ((prompt, completion),) = messages_of([{"prompt": text, "completion": text}], write_rows)
    assert prompt["content"] == completion["content"] == text


def test_prompts_and_completions_may_be_json_text_of_messages(write_rows):
    row = {"prompt": json.dumps(PAIR[:1], indent=1), "completion": json.dumps(PAIR[1:])}
    assert messages_of([row], write_rows) == [PAIR]


def test_dates_in_a_parquet_message_do_not_stop_the_split(tmp_path):
    import datetime

    import pandas as pd

    rows = [[{**PAIR[0], "sent": datetime.datetime(2024, 1, day)}, PAIR[1]] for day in (1, 2, 3)]
    pd.DataFrame({"messages": rows}).to_parquet(tmp_path / "a.parquet")
    split = load_split(config(tmp_path / "a.parquet", eval_share=0.3))
    assert (len(split.train), len(split.held_out)) == (2, 1)


def test_a_conversation_knows_its_place_and_is_compared_without(write_rows):
    train, held_out = write_rows(numbered(2), "a.jsonl"), write_rows(numbered(3)[::-1], "b.jsonl")
    assert [row.place for row in usable(read_table(str(train)))[0]] == ["line 1", "line 2"]
    assert [row.place for row in load_split(config(train, eval_dataset=str(held_out))).held_out] == ["line 1"]


def test_rows_that_lack_the_first_rows_columns(write_rows):
    table = read_table(str(write_rows([{"question": "a", "answer": "b"}, {"question": "c"}])))
    with pytest.raises(DataError, match="line 2: has no column 'answer'"):
        usable(table)


def config(path, **settings):
    return TrainConfig.from_dict({"dataset": str(path), **settings})


def numbered(count):
    return [{"question": f"What is {n}?", "answer": str(n)} for n in range(count)]


def test_a_held_out_share_is_drawn_by_the_seed_and_overlaps_nothing(write_rows):
    path = write_rows(numbered(50))
    first, again = (load_split(config(path, eval_share=0.2, seed=1)) for _ in range(2))
    other = load_split(config(path, eval_share=0.2, seed=2))
    assert first == again
    assert first.held_out != other.held_out
    assert (len(first.train), len(first.held_out)) == (40, 10)
    assert not [row for row in first.held_out if row in first.train]


@pytest.mark.parametrize(("count", "share"), [(2, 0.1), (2, 0.5), (3, 0.1)])
def test_a_share_of_few_rows_holds_out_one(write_rows, count, share):
    split = load_split(config(write_rows(numbered(count)), eval_share=share))
    assert (len(split.train), len(split.held_out)) == (count - 1, 1)


def test_one_row_cannot_be_shared(write_rows):
    with pytest.raises(DataError, match="leaves no row to hold out"):
        load_split(config(write_rows(numbered(1)), eval_share=0.5))


def test_held_out_rows_that_are_trained_on_are_left_out_aloud(write_rows):
    train, held_out = write_rows(numbered(5), "a.jsonl"), write_rows(numbered(8), "b.jsonl")
    split = load_split(config(train, eval_dataset=str(held_out)))
    assert len(split.held_out) == 3
    assert "5 held-out rows also occur in training" in split.warnings[0]


def test_skipped_rows_are_told(write_rows):
    train = write_rows([*numbered(2), {"question": 1, "answer": 2}, {"question": "x", "answer": ""}], "a.jsonl")
    held_out = write_rows([{"question": "y", "answer": ""}, {"question": "x", "answer": "x"}], "b.jsonl")
    split = load_split(config(train, eval_dataset=str(held_out), on_bad_rows="skip"))
    assert (len(split.train), len(split.held_out)) == (2, 1)
    of_train, of_held_out = split.warnings
    assert of_train.startswith("2 of 4 rows left out because they break a rule (a.jsonl):\n")
    assert "line 4: message 1: the assistant's content is empty" in of_train
    assert of_held_out.startswith("1 of 2 rows left out because they break a rule (b.jsonl):\n")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_clean_and_share_no_row(name):
    train, _ = usable(read_table(f"examples/{name}.jsonl"))
    held_out, _ = usable(read_table(f"examples/{name}.eval.jsonl"))
    sizes = {"support-json": (150, 40), "assistant": (200, 30), "domain": (150, 40)}
    assert len(train) >= sizes[name][0]
    assert len(held_out) >= sizes[name][1]

    def question(row):
        return next(message["content"] for message in row.messages if message["role"] == "user").lower().strip()

    questions = [question(row) for row in train + held_out]
    assert len(set(questions)) == len(questions)


def test_support_json_answers_follow_the_rules_of_their_desk():
    import re

    words = r"\b(urgent|urgently|emergency|dangerous|danger|unsafe|asap|immediately)\b"
    for part in ("", ".eval"):
        for row in usable(read_table(f"examples/support-json{part}.jsonl"))[0]:
            ticket, answer = row.messages[1]["content"], json.loads(row.messages[2]["content"])
            assert list(answer) == ["product", "category", "priority", "order"]
            found = re.findall(r"[A-Z]{2}-\d{4}", ticket)
            assert ([answer["order"]] if answer["order"] else []) == found, ticket
            urgent = bool(re.search(words, ticket.lower()))
            wanted = "high" if urgent else "low" if answer["category"] == "question" else "normal"
            assert answer["priority"] == wanted, ticket

"""Rows become conversations or say which rule they break and where; a run's held-out rows are no training rows."""

import json
from pathlib import Path

import pytest

from sft.config import TrainConfig
from sft.data import conversations, identity, load_split, usable
from sft.errors import ConfigError, DataError
from sft.tables import read_table

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
PAIR = GOOD["messages"]
EXAMPLES = sorted(
    path.name.removesuffix(".jsonl") for path in Path("examples").glob("*.jsonl") if ".eval" not in path.name
)


def test_parquet_pads_messages_with_nulls_that_a_template_must_not_see(tmp_path):
    import pandas as pd

    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    pd.DataFrame({"messages": [[PAIR[0], call], PAIR]}).to_parquet(tmp_path / "a.parquet")
    first, second = conversations(read_table(str(tmp_path / "a.parquet")))
    assert second.conversation.messages == PAIR
    assert first.conversation.messages[1]["tool_calls"]


@pytest.mark.parametrize("splits", [{"train_split": "train[:5]"}, {"eval_split": "test"}])
def test_a_file_has_no_splits(write_rows, splits):
    with pytest.raises(DataError, match="a file has no splits") as caught:
        load_split(config(write_rows(numbered(9)), **splits))
    assert "eval_dataset" in caught.value.hint
    assert "eval_share" in caught.value.hint


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
    assert (list(first.train), list(first.held_out)) == (list(again.train), list(again.held_out))
    assert list(first.held_out) != list(other.held_out)
    assert (len(first.train), len(first.held_out)) == (40, 10)
    assert not [row for row in first.held_out if row in first.train]


def test_equal_rows_stay_on_one_side(write_rows):
    rows = numbered(10) + numbered(5) * 3
    split = load_split(config(write_rows(rows), eval_share=0.3, seed=3))
    asked = [{row.messages[0]["content"] for row in part} for part in (split.train, split.held_out)]
    assert len(split.train) + len(split.held_out) == len(rows)
    assert [len(part) for part in asked] == [7, 3]
    assert not asked[0] & asked[1]
    with pytest.raises(DataError, match="3 equal rows leaves no row to hold out"):
        load_split(config(write_rows(numbered(1) * 3), eval_share=0.5))


def test_a_folders_own_test_split_is_held_out_unless_the_config_says_otherwise(write_rows, tmp_path):
    write_rows(numbered(5), "train.jsonl"), write_rows(numbered(9), "test.jsonl")
    assert len(load_split(config(tmp_path)).held_out) == 4
    assert len(load_split(config(tmp_path, eval_share=0.2)).held_out) == 1
    assert len(load_split(config(tmp_path / "train.jsonl")).held_out) == 0


def test_rows_are_known_again_by_their_content(write_rows, tmp_path):
    settings = config(write_rows(numbered(5)), eval_dataset=str(write_rows(numbered(9), "b.jsonl")))
    before = identity(settings)
    write_rows(numbered(5))
    assert identity(settings) == before
    write_rows(numbered(8), "b.jsonl")
    assert identity(settings) != before


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


def test_columns_are_said_for_training_and_held_out_rows(write_rows):
    rows = [{"Frage": f"{n}?", "Antwort": str(n)} for n in range(6)]
    train, held_out = write_rows(rows[:4], "a.jsonl"), write_rows(rows[3:], "b.jsonl")
    split = load_split(config(train, eval_dataset=str(held_out), columns="user=Frage, assistant=Antwort"))
    assert [row.messages[1]["content"] for row in split.train] == ["0", "1", "2", "3"]
    assert [row.messages[1]["content"] for row in split.held_out] == ["4", "5"]
    with pytest.raises(ConfigError, match="there is no column 'Fragen'; did you mean 'Frage'"):
        load_split(config(train, columns="user=Fragen, assistant=Antwort"))
    with pytest.raises(DataError, match="no shape is known") as caught:
        load_split(config(train))
    assert 'columns: "user=Frage, assistant=Antwort"' in caught.value.hint


def test_a_config_belongs_to_the_hub_and_not_to_a_file(write_rows, monkeypatch):
    train, held_out = write_rows(numbered(3), "a.jsonl"), write_rows(numbered(5), "b.jsonl")
    with pytest.raises(DataError, match="only a Hub data set has configurations"):
        load_split(config(train, dataset_config="all"))
    asked = []

    def read(source, config=None, split="train", tick=None):
        asked.append((source, config))
        return read_table(str(train) if source == "someone/rows" else source)

    monkeypatch.setattr("sft.data.read_table", read)
    split = load_split(config("someone/rows", dataset_config="all", eval_dataset=str(held_out)))
    assert asked == [("someone/rows", "all"), (str(held_out), None)]
    assert len(split.held_out) == 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_clean_and_share_no_row(name):
    train, _ = usable(read_table(f"examples/{name}.jsonl"))
    held_out, _ = usable(read_table(f"examples/{name}.eval.jsonl"))
    sizes = {"support-json": (150, 40), "assistant": (200, 30), "domain": (150, 40), "weekday": (120, 40)}
    assert len(train) >= sizes[name][0]
    assert len(held_out) >= sizes[name][1]

    def question(row):
        return next(message["content"] for message in row.messages if message["role"] == "user").lower().strip()

    questions = [question(row) for row in [*train, *held_out]]
    assert len(set(questions)) == len(questions)


def test_a_weekday_is_the_only_one_in_its_message():
    import re

    for part in ("", ".eval"):
        for row in usable(read_table(f"examples/weekday{part}.jsonl"))[0]:
            _, question, answer = (message["content"] for message in row.messages)
            assert re.findall(r"\b[A-Z][a-z]+day\b", question) == [answer]


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

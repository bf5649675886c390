"""Data sets from the Hub, read through the real `datasets` from the Hub of hub_server.py."""

import json
from pathlib import Path

import pytest
from hub_server import Hub, python

ROW = json.dumps({"question": "Which?", "answer": "This."}) + "\n"
FRONT_MATTER = """---
configs:
- config_name: short
  data_files:
  - {split: train, path: short/train.jsonl}
  - {split: test, path: short/test.jsonl}
- config_name: long
  data_files: long.jsonl
---
"""
FILES = {
    "someone/in-data": {"data/train.jsonl": ROW * 3, "README.md": "# Rows\n"},
    "someone/in-root": {"train.jsonl": ROW * 2, "test.jsonl": ROW, "notes.txt": "not a row"},
    "someone/configs": {
        "README.md": FRONT_MATTER,
        "short/train.jsonl": ROW * 4,
        "short/test.jsonl": ROW,
        "long.jsonl": ROW * 5,
    },
    "someone/script": {"script.py": "print('code of a stranger')"},
    "someone/torn": {"train.jsonl": ROW + '{"question": '},
    "someone/empty": {"train.jsonl": ""},
    "someone/no-rows": {"README.md": "# Nothing yet\n"},
    "someone/bad-card": {"README.md": "---\nconfigs: [\n---\n", "train.jsonl": ROW},
    "someone/gated": {"train.jsonl": ROW},
}
READ = """
import json, sys
from sft.data import conversations
from sft.errors import DataError
from sft.tables import held_out_split, identity, read_table
answers = []
for arguments in json.loads(sys.argv[1]):
    try:
        table = read_table(*arguments)
        first = next(conversations(table))
        full = (*arguments, *(None, "train")[len(arguments) - 1 :])
        own = [held_out_split(*full), identity(*full)]
        answers.append([len(table.rows), first.place, first.conversation.messages, own])
    except DataError as error:
        answers.append([error.message, error.hint])
print(json.dumps(answers))
"""
READABLE = [  # rows, and the split that may be held out
    (("someone/in-data",), 3, None),
    (("someone/in-root",), 2, "test"),
    (("someone/in-root", None, "test"), 1, None),
    (("someone/configs", "short", "train"), 4, "test"),
    (("someone/configs", "short", "test"), 1, None),
    (("someone/configs", "long"), 5, None),
]
UNREADABLE = [
    (("someone/nothing",), "no data set someone/nothing"),
    (("someone/gated",), "no data set someone/gated"),
    (("a/b/c",), "possible name"),
    (("two words/x",), "possible name"),
    (("x" * 300,), "too long"),
    (("~nobody-of-this-name/rows",), "home"),
    (("someone/configs",), "['short', 'long']"),
    (("someone/configs", "middle"), "['short', 'long']"),
    (("someone/configs", "short", "validation"), "['train', 'test']"),
    (("someone/script",), "scripts are no longer supported"),
    (("someone/torn",), "JSON parse error"),
    (("someone/empty",), "cannot be read as rows"),
    (("someone/no-rows",), "rows: The directory"),
    (("someone/bad-card",), "cannot be read as rows"),
    # datasets itself would read every such file below the working directory, whoever's it is
    (("json",), "possible name"),
    (("text",), "possible name"),
    (("csv",), "possible name"),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("repositories")
    for repo_id, files in FILES.items():
        for name, text in files.items():
            path = root / repo_id / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    folders = {repo_id: root / repo_id for repo_id in FILES}
    with Hub(datasets=folders, gated=["someone/gated"]) as hub:
        yield hub


def read(hub: Hub, folder: Path, *calls: tuple, **environment: str) -> list:
    """For each call of `read_table`: rows, place and messages, or the two parts of a DataError."""
    env = hub.environment(folder.parent / f"{folder.name}-home") | environment
    result = python("-c", READ, json.dumps(calls), env=env, cwd=folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def answers(hub, tmp_path_factory) -> dict:
    """By arguments, and all from one process: importing `datasets` takes longer than any of them."""
    here = tmp_path_factory.mktemp("here")
    for suffix in ("json", "txt", "csv"):
        (here / f"private.{suffix}").write_text(ROW * 2)
    calls = [arguments for arguments, *_ in READABLE + UNREADABLE]
    return dict(zip(calls, read(hub, here, *calls), strict=True))


@pytest.mark.parametrize(("arguments", "rows", "held_out"), READABLE)
def test_a_data_set_is_read_by_config_and_split(arguments, rows, held_out, answers):
    messages = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "This."}]
    *read, (own, identity) = answers[arguments]
    assert read == [rows, "row 1", messages]
    assert own == held_out
    assert [answers[other][-1][1] == identity for other, *_ in READABLE].count(True) == 1


@pytest.mark.parametrize(("arguments", "said"), UNREADABLE)
def test_a_data_set_that_cannot_be_read(arguments, said, answers):
    message, hint = answers[arguments]
    assert arguments[0][:100] in message
    assert said in message
    assert len(hint.split()) > 3


def test_a_download_that_breaks_off(tmp_path):
    (tmp_path / "train.jsonl").write_text(ROW * 100)
    with Hub(datasets={"someone/long": tmp_path}, torn=True) as hub:
        [(message, hint)] = read(hub, tmp_path, ("someone/long",))
    assert "someone/long" in message
    assert "peer closed connection" in message
    assert "network" in hint


def test_without_a_network(hub, tmp_path):
    call = ("someone/in-data",)
    [(message, hint)] = read(hub, tmp_path, call, HF_HUB_OFFLINE="1")
    assert "someone/in-data" in message
    assert "network" in hint
    rows = read(hub, tmp_path, call)
    assert read(hub, tmp_path, call, HF_HUB_OFFLINE="1") == rows  # now from the cache

"""Prepared rows are what `encode` gives row by row; they are kept between runs, and memory holds but a few."""

import os
import signal
import subprocess
import sys
import tracemalloc

import pytest

from sft import data
from sft.chat_format import ChatFormat
from sft.config import TrainConfig
from sft.errors import DataError
from sft.prepare import prepare

ROWS = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(100)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


@pytest.fixture
def config(write_rows):
    def make(rows=ROWS, name="rows.jsonl", **settings):
        return TrainConfig.from_dict({"dataset": str(write_rows(rows, name)), "eval_strategy": "no", **settings})

    return make


def never(*_):
    raise AssertionError("nobody asked for this")


def as_lists(rows):
    return [(row["input_ids"], row["labels"]) for row in rows]


@pytest.mark.parametrize("name", ["support-json", "assistant", "domain"])
def test_rows_are_what_encode_gives(chatml, name):
    config = TrainConfig(
        dataset=f"examples/{name}.jsonl", eval_dataset=f"examples/{name}.eval.jsonl", max_length=150, max_eval_samples=9
    )
    prepared = prepare(config, chatml, lambda warning: None)
    split = data.load_split(config)
    for rows, conversations in ((prepared.train, split.train), (prepared.held_out, list(split.held_out)[:9])):
        encoded = [chatml.encode(conversation, 150) for conversation in conversations]
        assert as_lists(rows) == [(row.input_ids, row.labels) for row in encoded if row.trained]


def test_the_next_run_finds_the_rows_and_is_told_the_same(chatml, config, monkeypatch):
    rows = [*ROWS, {"question": "Long?", "answer": "Yes. " * 200}, {"question": "x", "answer": ""}]
    settings = config(rows, eval_share=0.1, max_length=100, on_bad_rows="skip")
    said, again = [], []
    first = prepare(settings, chatml, said.append)
    monkeypatch.setattr(data, "load_split", never)
    second = prepare(settings, chatml, again.append)
    assert said == again
    assert "1 of 102 rows left out" in said[0]
    assert "were cut at 100 tokens" in said[1]
    assert second.fingerprint == first.fingerprint
    assert as_lists(second.train) == as_lists(first.train)
    for changed in ({"max_length": 99}, {"eval_share": 0.2}, {"seed": 1}, {"on_bad_rows": "stop"}):
        with pytest.raises(AssertionError, match="nobody asked"):
            prepare(
                config(rows, **{"eval_share": 0.1, "max_length": 100, "on_bad_rows": "skip", **changed}), chatml, never
            )
    with pytest.raises(AssertionError, match="nobody asked"):
        prepare(settings, ChatFormat(chatml.tokenizer, chatml.chat_template + " "), never)
    with pytest.raises(AssertionError, match="nobody asked"):
        prepare(config(rows[1:], eval_share=0.1, max_length=100, on_bad_rows="skip"), chatml, never)


def test_a_seed_that_draws_nothing_prepares_nothing_anew(chatml, config, monkeypatch):
    first = prepare(config(seed=1), chatml, never)
    monkeypatch.setattr(data, "load_split", never)
    assert prepare(config(seed=2), chatml, never).fingerprint == first.fingerprint


def test_other_rows_have_another_fingerprint(chatml, config):
    prints = {prepare(config(rows), chatml, never).fingerprint for rows in (ROWS, ROWS[1:], ROWS[::-1])}
    assert len(prints) == 3


def test_samples_tell_the_lengths(chatml, config):
    rows = [*ROWS, {"question": "Hi", "answer": "Long. " * 20}, {"question": "a", "answer": "b"}]
    prepared = prepare(config(rows, eval_share=0.1), chatml, never)
    lengths = sorted(len(row["input_ids"]) for row in prepared.train)
    shortest, second, longest, held_out = (len(row["input_ids"]) for row in prepared.sample())
    assert [shortest, second, longest] == [lengths[0], lengths[1], lengths[-1]]
    assert held_out == max(len(row["input_ids"]) for row in prepared.held_out)


def test_progress_is_told_and_a_stop_is_heard_and_leaves_nothing(chatml, config, cache, monkeypatch):
    told, asked = [], []
    monkeypatch.setattr("sft.prepare.time.monotonic", lambda: 10.0 * len(told) + 10)  # every time is worth telling
    prepare(config(ROWS * 3), chatml, never, lambda share, said: told.append((share, said)))
    assert {said for _, said in told} >= {"Looking at the rows of rows.jsonl", "Preparing training rows"}
    assert all(0 <= share <= 1 for share, _ in told)

    def stop():
        asked.append(1)
        if len(asked) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config(ROWS * 4), chatml, never, check_stop=stop)
    assert [len(list(cache.glob(name))) for name in ("*/rows", "*/building")] == [1, 0]


def test_a_preparation_that_was_killed_is_done_again(chatml, config, cache, tiny_model):
    settings = config(ROWS * 3)
    program = f"""
import os, pathlib, signal
from sft import models
from sft.chat_format import ChatFormat
from sft.config import TrainConfig
from sft.prepare import prepare
asked = []
def stop():
    asked.append(1)
    if len(asked) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
chat_format = ChatFormat.of(models.load_tokenizer(pathlib.Path({str(tiny_model)!r})))
prepare(TrainConfig(dataset={settings.dataset!r}, eval_strategy="no"), chat_format, print, check_stop=stop)
"""
    killed = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (home,) = cache.iterdir()
    assert not (home / "rows").exists()
    assert len(prepare(settings, chatml, never).train) == 300
    assert [path.name for path in cache.iterdir()] == [home.name]  # the same key, in another process


def test_memory_does_not_grow_with_the_rows(chatml, config):
    def most(count: int) -> float:
        rows = [{"question": f"What is {n}?", "answer": "It is so. " * 20} for n in range(count)]
        settings = config(rows, f"{count}.jsonl")
        del rows
        tracemalloc.start()
        prepare(settings, chatml, never)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / 2**20

    most(10)  # fills caches
    few, many = most(500), most(1500)
    assert many - few < 0.5, f"{few:.2f} MB for 500 rows, {many:.2f} MB for 1,500"


def test_the_own_test_split_of_a_folder_is_held_out(chatml, write_rows, tmp_path):
    import json

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS[:20])))
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, [*ROWS[18:30], {"question": "x", "answer": ""}])))
    said = []
    prepared = prepare(TrainConfig(dataset=str(folder)), chatml, said.append)
    assert (len(prepared.train), len(prepared.held_out)) == (20, 10)
    assert ["left out because they break a rule" in said[0], "2 held-out rows also occur" in said[1]] == [True, True]
    (folder / "test.jsonl").write_text('{"text": "no shape"}')
    prepared = prepare(TrainConfig(dataset=str(folder), eval_strategy="no"), chatml, said.append)
    assert prepared.held_out is None
    assert said[-1].startswith("the split 'test' is not held out: ")


def test_what_cannot_be_trained_on_stops_the_preparation(chatml, config):
    refusing = ChatFormat(chatml.tokenizer, "{{ raise_exception('never') }}")
    with pytest.raises(DataError, match=r"100 training rows are refused.*\n.*line 1: .*never"):
        prepare(config(), refusing, never)
    with pytest.raises(DataError, match=r"No row of .* within 8 tokens"):
        prepare(config(max_length=8), chatml, never)

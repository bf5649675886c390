"""What stays in memory: one base model, a few adapters, and pasts within their room."""

import gc
import shutil
import weakref

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_run

from sft import weights
from sft.contest import Contest
from sft.passes import Row
from sft.run import Run
from sft.weights import Voice, Weights


@pytest.fixture
def held():
    return Weights()


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, tiny_model):
    return save_tiny_run(tmp_path_factory.mktemp("runs"), "tiny", tiny_model, seed=1)


def test_a_base_model_is_loaded_once_and_adapters_beyond_a_few_are_let_go(held, tiny_run, tmp_path):
    base, tuned = held.load(Contest.of_run(tiny_run))
    assert base.reader is tuned.reader
    assert base.adapter is None
    assert held.load(Contest.of_run(tiny_run))[1].adapter is tuned.adapter
    for number in range(weights.KEPT_ADAPTERS):
        copy = tmp_path / f"run{number}"
        shutil.copytree(tiny_run.folder, copy)
        assert held.load(Contest.of_run(Run(copy)))[1].reader is base.reader
    assert held.load(Contest.of_run(tiny_run))[1].adapter is not tuned.adapter


def test_another_base_model_takes_the_place(held, tiny_run, tiny_model, tmp_path):
    first = held.load(Contest.of_run(tiny_run))[0]
    other = tmp_path / "model"
    shutil.copytree(tiny_model, other)
    (second,) = held.load(Contest.of_base(str(other)))
    assert second.reader is not first.reader
    row = Row()
    first.reader.read([row], [[5, 6]])
    held.keep(first, row)  # a conversation that was under way: nothing is kept of it
    held.row(second, [1, 2])
    assert held._rows == []


def test_what_was_read_is_found_by_its_tokens_and_its_adapter(held, tiny_run):
    base, tuned = held.load(Contest.of_run(tiny_run))
    row = held.row(base, [5, 6, 7])
    base.reader.read([row], [[5, 6, 7, 8, 9]])
    held.keep(base, row)
    assert held.row(tuned, [5, 6, 7, 8]).token_ids == []  # the same words, but another reader of them
    assert held.row(base, [5, 6, 9, 9, 9, 9]).token_ids == [5, 6]  # a copy: the longer one stays
    longer = held.row(base, [5, 6, 7, 8, 1, 2])
    assert longer is row
    assert longer.token_ids == [5, 6, 7, 8]
    assert longer.past.length == 4
    assert held.row(base, [5, 6, 7, 8]).token_ids == []  # it was taken


def test_a_prompt_that_was_read_whole_leaves_its_last_token_to_read(held, tiny_run):
    base, _ = held.load(Contest.of_run(tiny_run))
    row = held.row(base, [5, 6, 7])
    base.reader.read([row], [[5, 6, 7]])
    held.keep(base, row)
    assert held.row(base, [5, 6, 7]).token_ids == [5, 6]


def test_pasts_stay_within_their_room(held, tiny_run, monkeypatch):
    base, _ = held.load(Contest.of_run(tiny_run))
    rows = []
    for token in range(5, 9):
        rows.append(Row())
        base.reader.read([rows[-1]], [[token] * 10])
    monkeypatch.setattr(weights, "KEPT_PASTS", 2 * rows[0].past.bytes)
    for row in rows:
        held.keep(base, row)
    held.row(base, [1, 2])
    assert [kept for _, _, kept in held._rows] == rows[2:]


def test_an_adapter_that_is_let_go_takes_along_what_was_read_with_it(held, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "KEPT_ADAPTERS", 1)
    tuned = held.load(Contest.of_run(tiny_run))[1]
    adapter, late = weakref.ref(tuned.adapter), Row(tuned.adapter)
    for row in (Row(tuned.adapter), late):
        tuned.reader.read([row], [[5, 6, 7]])
        held.keep(tuned, row)
    held.row(tuned, [1, 2])
    shutil.copytree(tiny_run.folder, tmp_path / "other")
    other = held.load(Contest.of_run(Run(tmp_path / "other")))[1]
    held.keep(tuned, late)  # a conversation that was still under way
    held.row(other, [1, 2])
    del tuned, late, row
    gc.collect()
    assert adapter() is None


def test_weights_that_are_replaced_on_the_disk_are_loaded_anew(held, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (first,) = held.load(Contest.of_base(str(folder)))
    path = folder / "model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    (second,) = held.load(Contest.of_base(str(folder)))
    assert second.reader is not first.reader


def test_nothing_is_held_after_forget(held, tiny_run):
    voice: Voice = held.load(Contest.of_run(tiny_run))[0]
    model = weakref.ref(voice.reader.model)
    held.keep(voice, Row())
    del voice
    held.forget()
    assert model() is None

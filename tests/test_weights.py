"""What stays in memory: the last contest's models, each once, a few adapters, and pasts within their room."""

import gc
import shutil
import weakref

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import save_full_run, save_tiny_model, save_tiny_run

from sft import chat, models, weights
from sft.chat import Sampling, get_ready, stream
from sft.chat_format import preset
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


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("other"), preset("chatml"), seed=1)


@pytest.fixture
def loaded(monkeypatch):
    """Weak references to all models that are loaded."""
    found, load = [], models.load_base

    def load_base(folder):
        model = load(folder)
        found.append(weakref.ref(model))
        return model

    monkeypatch.setattr(models, "load_base", load_base)
    return found


def kept(model) -> list[Row]:
    model.file()
    return [row for _, row in model.rows]


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


def test_streams_over_two_base_models_share_what_is_loaded_and_leave_one(tiny_model, other_model, loaded):
    """Visitors who take turns, each with a conversation under way, find the model that the others still use."""
    chat.WEIGHTS.forget()
    contests = [Contest.of_base(str(folder)) for folder in (tiny_model, other_model)]
    streams = [stream(contest, [[5, 6, 7]], Sampling(max_new_tokens=9)) for contest in contests * 3]
    for each in streams:
        next(each)
    assert len(loaded) == 2
    for each in streams:
        each.close()
    del each, streams
    gc.collect()
    assert [model() is not None for model in loaded] == [False, True]


def test_a_model_tuned_in_full_is_gone_before_the_next_is_loaded(held, tiny_model, tmp_path, loaded, monkeypatch):
    first, second = (save_full_run(tmp_path, name, tiny_model) for name in ("first", "second"))
    voice = held.load(Contest.of_run(first))[1]
    row = held.row(voice, [5, 6])
    voice.reader.read([row], [[5, 6]])
    held.keep(voice, row)
    del voice, row
    load, alive = models.load_base, []
    monkeypatch.setattr(
        models, "load_base", lambda folder: alive.append([model() is not None for model in loaded]) or load(folder)
    )
    held.load(Contest.of_run(second))
    assert alive == [[True, False]]  # the base is, the other is not


def test_what_was_read_is_found_by_its_tokens_and_its_adapter(held, tiny_run):
    base, tuned = held.load(Contest.of_run(tiny_run))
    row = held.row(base, [5, 6, 7])
    base.reader.read([row], [[5, 6, 7, 8, 9]])
    held.keep(base, row)
    assert held.row(tuned, [5, 6, 7, 8]).token_ids == []  # the same words, but another reader of them
    longer = held.row(base, [5, 6, 7, 8, 1, 2])
    assert longer is row
    assert longer.token_ids == [5, 6, 7, 8]
    assert longer.past.length == 4
    assert held.row(base, [5, 6, 7, 8]).token_ids == []  # it was taken


def test_a_conversation_is_not_cut_by_another_with_the_same_beginning(held, tiny_run):
    base, _ = held.load(Contest.of_run(tiny_run))
    talk = [*range(5, 35)]
    row = held.row(base, talk)
    base.reader.read([row], [talk])
    held.keep(base, row)
    other = held.row(base, [*talk[:20], 99, 98])
    assert (other.token_ids, other.past.length) == (talk[:20], 20)
    assert row.token_ids == talk
    base.reader.read([other], [[99]])
    held.keep(base, other)
    assert held.row(base, [*talk[:20], 97]) is other  # the shortest of those that share as much; it loses one token
    assert held.row(base, [*talk, 96]) is row


def test_getting_ready_reads_once_and_leaves_conversations_alone(tiny_run, monkeypatch):
    chat.WEIGHTS.forget()
    contest, read = Contest.of_run(tiny_run), []
    whole = weights.Model.read
    monkeypatch.setattr(weights.Model, "read", lambda self, *given: read.append(given) or whole(self, *given))
    system = {"role": "system", "content": "Talk of the fox and the dog."}
    get_ready(contest, [system])
    prompt = contest.chat_format.prompt_ids([system, {"role": "user", "content": "Hello? " * 9}])
    list(stream(contest, [prompt] * 2, Sampling(max_new_tokens=3)))
    model, before = chat.WEIGHTS.load(contest)[0].reader, len(read)
    rows = [[*row.token_ids] for row in kept(model)]
    assert min(map(len, rows)) >= len(prompt)
    for _ in range(3):
        get_ready(contest, [system])
    assert [row.token_ids for row in kept(model)] == rows
    assert len(read) == before


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
    assert kept(base.reader) == rows[2:]


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

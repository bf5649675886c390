"""Who answers: settled quickly, from what is on the disk now, and refused in words."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_models import save_full_run, save_tiny_run

from sft import chat, contest, models
from sft.chat import Sampling, stream
from sft.contest import Contest, Contestant
from sft.errors import ModelError, RunError, TemplateError


@pytest.fixture
def run(tmp_path, tiny_model):
    return save_tiny_run(tmp_path, "tiny", tiny_model, seed=1)


@pytest.fixture
def loaded(monkeypatch):
    """The folders of the tokenizers that are loaded."""
    contest._loaded_format.cache_clear()
    found, load = [], models.load_tokenizer
    monkeypatch.setattr(models, "load_tokenizer", lambda folder: found.append(folder) or load(folder))
    return found


def test_a_chat_format_is_loaded_once_for_all_questions(run, tiny_model, loaded, tmp_path):
    third = save_tiny_run(tmp_path, "third", tiny_model, seed=2)
    formats = set()
    for _ in range(3):
        pair, base = Contest.of_run(run), Contest.of_base(str(tiny_model))
        pair.with_contestant(Contestant(third))
        formats |= {id(pair.chat_format), id(base.chat_format)}
    assert loaded == [run.adapter, tiny_model, third.adapter]
    assert len(formats) == 2


def test_a_chat_format_that_changes_on_the_disk_is_loaded_anew(run, loaded):
    before = Contest.of_run(run).chat_format
    path = run.adapter / "tokenizer.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "normalizer": {"type": "Lowercase"}}))
    with pytest.raises(TemplateError, match="not the one that the adapter was trained with"):
        Contest.of_run(run)
    assert Contest.of_run(run, other_format=True).chat_format.tokenize("A")[0] == before.tokenize("a")[0]
    template = run.folder / "chat_template.jinja"
    template.write_text("changed")
    assert Contest.of_run(run, other_format=True).chat_format.chat_template == "changed"


def test_several_threads_ask_one_tokenizer_whatever_its_file_says_of_padding(run):
    path = run.adapter / "tokenizer.json"
    settings = {
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "<|endoftext|>",
        },
    }  # fmt: skip
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    chat_format = Contest.of_run(run).chat_format
    backend = chat_format.tokenizer.backend_tokenizer
    assert (backend.truncation, backend.padding) == (None, None)
    texts = ["fox " * (at % 50) for at in range(400)]
    wanted = [chat_format.tokenize(text) for text in texts]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(chat_format.tokenize, texts)) == wanted


def test_a_finished_run_whose_files_are_gone_says_so(run):
    shutil.rmtree(run.adapter)
    with pytest.raises(RunError, match="is finished, but its files are gone") as told:
        Contest.of_run(run)
    assert told.value.hint == "Train again."


@pytest.mark.parametrize("gone", ["run", "adapter", "weights", "model"])
def test_a_run_that_goes_between_contest_and_reply_is_told_in_words(gone, run, tiny_model, tmp_path):
    if gone == "model":
        run = save_full_run(tmp_path, "full", tiny_model)
    contest = Contest.of_run(run)
    places = {
        "run": run.folder, "adapter": run.adapter, "weights": run.adapter / "adapter_model.safetensors",
        "model": run.model / "model.safetensors",
    }  # fmt: skip
    if places[gone].is_file():
        places[gone].unlink()
    else:
        shutil.rmtree(places[gone])
    with pytest.raises((RunError, ModelError)):
        next(stream(contest, [[5, 6]] * 2, Sampling()))
    assert contest.contestants[1].run.result is None or contest.contestants[1].written == 0
    assert not chat.WEIGHTS.lock.locked()

"""The page's own logic without a browser: whose run it is, what settings become, the model to begin with."""

import gradio as gr
import pytest

from sft.config import TrainConfig
from sft.errors import DataError, RunError, UserError
from sft.runs import create_run
from sft.tables import read_table
from sft.ui import (
    _refresh_chat,
    arrived,
    inputs,
    readiness,
    run_view,
    settings,
    visitors,
    watch,
    who,
)  # fmt: skip
from sft.ui.talk import Talk, Who, contest_of

CONFIG = TrainConfig.from_dict({"dataset": "examples/support-json.jsonl", "max_steps": 4})


def test_a_visitor_sees_and_touches_no_run_of_another(runs):
    run = create_run(CONFIG, runs, "hers", owner="alice")
    assert run_view.run_names("alice") == ["hers"]
    assert run_view.run_names("bob") == []
    assert "hers" not in str(run_view.show_run("bob", "hers"))
    assert "hers" in run_view.show_run("alice", "hers")[0]
    with pytest.raises(RunError, match="There is no run 'hers'"):
        contest_of("bob", Who(run="hers"))
    (runs / "hers/adapter").mkdir()
    (runs / "hers/adapter/adapter_model.safetensors").write_bytes(b"")
    assert ("hers", "hers") in who.choices("alice")
    assert ("hers", "hers") not in who.choices("bob")
    assert run.owner == "alice"
    assert who.suggested_system("bob", "hers") == ""
    assert who.suggested_system("alice", "hers") == "You file support tickets for Northwind Home."


def test_strangers_on_a_space_name_no_folder_of_the_machine(monkeypatch, tmp_path):
    inputs.guard_model(str(tmp_path))
    monkeypatch.setenv("SPACE_ID", "someone/space")
    inputs.guard_model("HuggingFaceTB/SmolLM2-135M")
    for name in (str(tmp_path), "./runs", "~/models", "examples", " /etc", "sft/ui"):
        with pytest.raises(UserError, match="names a folder"):
            inputs.guard_model(name)


def test_settings_become_the_config_of_the_run(runs):
    values = settings.example_settings("support-json")
    config = settings.config_of("embedded", False, *values, "Example", "support-json", None, "", "", "train")
    assert config == TrainConfig.load("examples/support-json.yaml")


def test_an_upload_is_kept_and_a_share_of_it_held_out(runs, write_rows):
    path = write_rows([{"question": "a", "answer": "b"}] * 20, "mine.jsonl")
    config = settings.make_config("embedded", {}, "Upload", None, str(path), "", "", "train")
    assert config.eval_share == 0.1
    assert config.dataset.startswith(str(runs))
    path.unlink()
    assert len(read_table(config.dataset).rows) == 20


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("Upload", None, None, "", "", ""), "No file is uploaded yet"),
        (("Hub", None, None, " ", "", ""), "No Hub id is given yet"),
        (("Hub", None, None, "examples", "", ""), "names a file of this machine"),
        (("Hub", None, None, "../secret.jsonl", "", ""), "names a file of this machine"),
    ],
)
def test_a_source_that_is_missing_or_not_the_visitors_is_told(runs, values, said):
    with pytest.raises(DataError, match=said):
        settings.make_config("embedded", {}, *values)


# ---- whose page it is ----


def test_on_a_space_nobody_acts_as_the_shared_owner(runs, monkeypatch):
    create_run(CONFIG, runs, "shared")
    assert visitors.first_owner() == "local"
    assert arrived({"owner": "local", "run": ["x"]})[:2] == ("local", {"owner": "local", "run": "shared"})
    monkeypatch.setenv("SPACE_ID", "someone/space")
    assert visitors.first_owner() == ""
    for owner in ("", "local", None, "short", 7):
        assert run_view.run_names(owner) == []
        assert "shared" not in str(run_view.show_run(owner, "shared"))
        assert "shared" not in str(who.choices(owner))
        with pytest.raises(UserError, match="lost track of who you are"):
            visitors.check_owner(owner)
        with pytest.raises(UserError, match="lost track of who you are"):
            contest_of(owner, Who(run="shared"))


@pytest.mark.parametrize("stored", [None, {}, {"owner": "local"}, {"owner": ["a" * 40]}, {"owner": "a/" * 20}])
def test_a_stored_owner_that_is_no_token_is_replaced(runs, monkeypatch, stored):
    monkeypatch.setenv("SPACE_ID", "someone/space")
    owner, kept, _ = arrived(stored)
    assert visitors.known(owner)
    assert owner != (stored or {}).get("owner")
    assert arrived(kept)[0] == owner


# ---- the model to begin with ----


@pytest.fixture
def ready(monkeypatch):
    """A Readiness of the test's own, whose default is not the embedded model."""
    fresh = readiness.Readiness()
    for user in ("sft.ui.READINESS", "sft.ui.inputs.READINESS"):
        monkeypatch.setattr(user, fresh)
    monkeypatch.setattr(readiness.models, "default_model", lambda: ("some/model", "It is there."))
    monkeypatch.setattr(readiness.models, "load_tokenizer", lambda folder: None)
    monkeypatch.setattr(readiness.launch, "stand_by", lambda: None)
    return fresh


def test_a_default_that_cannot_be_had_falls_back_to_the_embedded_model(ready, monkeypatch):
    def locate(name, report):
        if name != "embedded":
            raise UserError("The download broke.")

    monkeypatch.setattr(readiness.models, "locate", locate)
    ready._work()
    assert (ready.model, ready.ready) == ("embedded", True)
    assert "some/model could not be had" in ready.banner()
    assert "The download broke." in ready.banner()


@pytest.mark.filterwarnings("error")
def test_a_defect_while_preparing_is_told_and_holds_up_no_other_model(ready, monkeypatch):
    def locate(name, report):
        raise ZeroDivisionError("by <b>zero")

    monkeypatch.setattr(readiness.models, "locate", locate)
    monkeypatch.setattr(inputs, "_format_of", lambda model, stamp: model)
    with pytest.raises(UserError, match="being prepared"):
        inputs.format_of("some/model")
    ready.model = "some/model"
    assert inputs.format_of("embedded") == "embedded"
    ready._work()
    assert "ZeroDivisionError: by &lt;b&gt;zero" in ready.banner()
    assert inputs.format_of("some/model") == "some/model"


def test_a_model_that_the_visitor_picked_meanwhile_stays(ready):
    ready.model, ready.ready = "some/model", True
    _, timer, picked, untouched = watch("my/model", "embedded")
    assert not timer.active
    assert "value" not in picked
    assert untouched == "some/model"


# ---- names ----


@pytest.mark.parametrize("name", [None, "", "  ", 7])
def test_no_model_is_told_in_words(name):
    with pytest.raises(UserError, match="No model is chosen"):
        inputs.guard_model(name)


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000])
def test_a_name_that_is_far_too_long_is_told_in_words(monkeypatch, name):
    monkeypatch.setenv("SPACE_ID", "someone/space")
    with pytest.raises(UserError, match="cannot be a name"):
        inputs.guard_model(name)
    with pytest.raises(UserError, match="cannot be a name"):
        settings.make_config("embedded", {}, "Hub", None, None, name, "", "")


@pytest.mark.parametrize("nobody", [Who(), Who(base="  ")])
def test_nobody_to_answer_is_told_in_words(nobody):
    with pytest.raises(UserError, match="chosen"):
        contest_of("local", nobody)


def test_beside_a_base_model_alone_the_page_says_whether_there_is_a_run_by_now(runs):
    chosen, talk = f"{who.BASE_ALONE}embedded", Talk(Who(base="embedded"))
    assert who.ALONE in _refresh_chat("local", chosen, talk)[1]
    run = create_run(CONFIG, runs, "one")
    run.adapter.mkdir()
    run.set_status("finished", step=4, max_steps=4)
    choices, told = _refresh_chat("local", chosen, talk)
    assert told == "" and ("one", "one") in choices["choices"] and "value" not in choices
    assert _refresh_chat("local", None, Talk())[0]["value"] == "one"
    for other in ("one", f"{who.BASE_ALONE}HuggingFaceTB/SmolLM2-135M"):  # the page has not turned to it
        assert _refresh_chat("local", other, talk)[1] == gr.skip()


def test_no_run_is_told_in_words():
    with pytest.raises(RunError, match="No run is chosen"):
        visitors.run_of("local", None)

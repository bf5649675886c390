"""The visitor's runs side by side, and the form that is filled from one: whose they are, what is drawn and told."""

from dataclasses import replace

import pytest

from sft.config import TrainConfig
from sft.errors import DataError, RunError
from sft.runs import create_run
from sft.ui import runs_table, settings, side_by_side

CONFIG = TrainConfig.load("examples/support-json.yaml")
NASTY = '<img src=x onerror="alert(1)">'


def finished(root, name, losses, **changes):
    run = create_run(replace(CONFIG, **changes), root, name)
    for step, loss in enumerate(losses, 1):
        run.append_event("log", step=step, loss=loss)
    run.append_event("eval", step=len(losses), loss=9.5)
    run.set_status("finished", step=len(losses), max_steps=60)
    return run


# ---- the list ----


def test_the_list_tells_of_each_run_and_keeps_the_ticks(runs):
    one, other = finished(runs, "one", [3, 2]), finished(runs, "other", [3, 1.25])
    html = runs_table.table([one, other], ["other"])
    assert 'value="other" aria-label="Compare other" checked' in html
    assert html.count(" checked") == 1
    assert "support-json.jsonl" in html
    assert "SmolLM2" in html
    for seen in ("1.250", "9.500", "2 of 60", 'class="spark"', "2 runs, newest first"):
        assert seen in html


def test_a_run_whose_config_cannot_be_read_hides_no_other(runs):
    one, other = finished(runs, "one", [3]), finished(runs, "other", [2])
    (one.folder / "config.yaml").write_text(f"{NASTY}: 1")
    html = runs_table.table([one, other], [])
    assert "its config cannot be read" in html
    assert "2.000" in html
    assert "<img" not in html + runs_table.differences([one, other])


def test_the_list_is_painted_only_when_a_run_has_changed(runs):
    assert "No runs yet" in side_by_side.listed("local", "", [])[0]
    run = finished(runs, "one", [3])
    html, seen = side_by_side.listed("local", "", [])
    assert "One run so far" in html
    assert "value" not in side_by_side.listed("local", seen, [])[0]
    run.set_status("stopped", step=1, max_steps=60)
    assert "stopped" in side_by_side.listed("local", seen, [])[0]


def test_a_hundred_runs_are_listed_quickly_once_they_were_read(runs):
    import time

    for number in range(100):
        finished(runs, f"run-{number}", [2, 1])
    side_by_side.listed("local", "", [])
    began = time.perf_counter()
    side_by_side.listed("local", "", [])
    assert time.perf_counter() - began < 0.5


# ---- comparing ----


def test_ticked_runs_are_drawn_over_each_other_with_what_differs(runs):
    finished(runs, "one", [3, 2]), finished(runs, "other", [3, 1], lora_r=64, learning_rate=0.001)
    ticked, *_, html = side_by_side.chosen("local", ["other", "one", "nobody's"], "train")
    assert sorted(ticked) == ["one", "other"]
    assert '<g class="c0">' in html
    assert '<g class="c1">' in html
    assert '<th scope="row">lora_r</th>' in html
    assert '<th scope="row">max_length</th>' not in html
    assert "No stop token loss: one." in side_by_side.compared("local", ["one", "other"], "stop token")
    same = [finished(runs, name, [1]) for name in ("a", "b")]
    assert "the same in every field" in runs_table.differences(same)


def test_more_runs_than_colours_are_told(runs):
    many = [finished(runs, f"r{number}", [1]) for number in range(runs_table.OVERLAID + 2)]
    html = runs_table.overlay(many, "train")
    assert html.count("<g class=") == runs_table.OVERLAID
    assert "The first 8 of 10 are drawn." in html


def test_one_run_alone_is_not_compared(runs):
    finished(runs, "one", [3])
    ticked, actions, name, *_, html = side_by_side.chosen("local", ["one"], "train")
    assert (ticked, name, html) == (["one"], "one", "")
    assert actions["visible"]


@pytest.mark.parametrize("names", [None, "alices", ["alices"], [["alices"]], {"alices": 1}])
def test_the_run_of_another_is_never_ticked_renamed_or_deleted(runs, names):
    create_run(CONFIG, runs, "alices", owner="alice")
    assert side_by_side.chosen("bob", names, "train")[0] == []
    assert "alices" not in str(side_by_side.chosen("bob", names, "train"))
    assert "alices" not in side_by_side.listed("bob", "", [])[0]
    with pytest.raises(RunError, match="There is no run 'alices'"):
        side_by_side.only("bob", ["alices"])
    with pytest.raises(RunError, match="There is no run 'alices'"):
        side_by_side.delete("bob", ["alices"])
    with pytest.raises(RunError, match="There is no run 'alices'"):
        side_by_side.rename_one("bob", ["alices"], "mine")
    assert (runs / "alices").is_dir()


# ---- rename, delete ----


def test_a_run_is_renamed_and_deleted(runs):
    finished(runs, "one", [3])
    side_by_side.rename_one("local", ["one"], " two ")
    assert not (runs / "one").exists()
    with pytest.raises(RunError, match="cannot name a run"):
        side_by_side.rename_one("local", ["two"], NASTY)
    side_by_side.delete("local", ["two"])
    assert not (runs / "two").exists()


def test_nothing_is_deleted_where_one_of_the_runs_still_works(runs):
    finished(runs, "one", [3])
    create_run(CONFIG, runs, "busy")
    with pytest.raises(RunError, match="busy is still working"):
        side_by_side.delete("local", ["one", "busy"])
    assert (runs / "one").exists()
    assert "Delete one?" in side_by_side.question([side_by_side.only("local", ["one"])])


# ---- duplicate: a run's settings in the form ----


def again(config):
    """What the form that is filled from a run's config describes."""
    source = ["support-json" if isinstance(value, dict) else value for value in settings.source_of(config)]
    chatml = settings.learns_chatml(config)
    return settings.config_of(config.model, chatml, *settings.settings_of(config), *source)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_r": 64, "seed": 7, "target_modules": "q_proj,v_proj"},
        {"finetuning_type": "full", "learning_rate": 5e-5},
        settings.CHATML,
        {"dataset": "HuggingFaceTB/smoltalk", "dataset_config": "all", "eval_dataset": None, "eval_share": 0.1},
    ],
)
def test_the_form_filled_from_a_run_describes_the_same_run(runs, changes):
    config = replace(CONFIG, **changes)
    assert again(config) == config
    assert settings.not_taken_over(config) == []


def test_settings_that_the_form_has_no_place_for_are_named():
    config = replace(CONFIG, chat_template="plain", eval_dataset=None, eval_share=0.2)
    assert settings.not_taken_over(config) == ["chat_template", "eval_dataset", "eval_share"]


def test_an_upload_is_found_again_and_one_that_is_gone_is_told(runs, write_rows):
    rows = write_rows([{"question": "a", "answer": "b"}] * 20, "mine.jsonl")
    first = settings.make_config("embedded", {}, "Upload", None, str(rows), "", "", "train")
    assert again(first) == first
    with pytest.raises(DataError, match=r"gone\.jsonl, is not there any more"):
        settings.source_of(replace(first, dataset="./gone.jsonl"))


def test_full_fine_tuning_takes_a_tenth_of_the_learning_rate_and_no_settings_of_lora():
    assert settings.rate_of("full", 5e-4) == 5e-5
    assert settings.rate_of("lora", 5e-5) == 5e-4
    assert settings.rate_of("lora", None) is None
    chatml, *lora = settings.usable("full")
    assert (chatml["interactive"], chatml["value"]) == (False, False)
    assert len(lora) == len(settings.LORA_ONLY)
    assert not any(field["interactive"] for field in lora)
    assert all(field["interactive"] for field in settings.usable("lora"))

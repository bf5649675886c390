"""Who answers in the Chat tab, and what is said where somebody cannot."""

from dataclasses import replace

import pytest
from talks import replies, say
from tiny_models import save_tiny_run

from sft.errors import RunError
from sft.ui import who
from sft.ui.floor import Floor
from sft.ui.panes import models_of, stamps
from sft.ui.talk import PROMPTED, Talk, Who, empty
from sft.ui.turning import turn

pytestmark = pytest.mark.usefixtures("two_runs")


def test_the_controls_say_who_answers(two_runs):
    assert who.who_of("local", "one", 3, "", False) == Who(run="one")
    assert who.who_of("local", "one", 0, "two", True) == Who(run="one", step=0, third="two", other_format=True)
    assert who.who_of("local", "one", 1, PROMPTED, False).step == 2
    assert who.who_of("local", "two", 0, None, False).step == 0
    assert who.who_of("local", "base alone: embedded", 1, "two", False) == Who(base="embedded")
    assert who.who_of("local", None, 1, None, False) == Who()
    with pytest.raises(RunError, match="There is no run 'three'"):
        who.who_of("local", "three", 1, "", False)
    steps = who.stages(who.run_of("local", "one"))
    assert steps == [0, 2, 5, 8]
    assert [who.stage_of(Who(run="one", step=step), steps) for step in (0, 2, 5, None)] == [0, 1, 2, 3]
    assert who.stage_label(steps, 2) == "As it was after step 5 of 8"
    assert [value for _, value in who.thirds("local", Who(run="one"))] == ["", PROMPTED, "two"]


def test_each_pane_says_what_made_its_words(tiny_model):
    base, tuned, third = models_of("local", Who(run="one", step=5, third="two"))
    assert base == f"Base model: {tiny_model}, adapter off"
    assert tuned == "Tuned model: the same with the adapter of one as after step 5, adapter on"
    assert third == "Another run: the same with the adapter of two, adapter on"
    assert "still the base model" in stamps("local", Who(run="one", step=0))[1]
    assert stamps("local", Who(base="<b>"))[0].count("&lt;b&gt;") == 1


def test_every_stage_and_a_third_answer_for_themselves():
    """Each pane's reply is that of its model alone, whoever answers beside it."""
    whole = say(empty(Who(run="one", third="two")), "Hello?")
    assert len(set(replies(whole))) == 3
    assert replies(say(empty(Who(run="two")), "Hello?")) == [replies(whole)[0], replies(whole)[2]]
    stages = [replies(say(empty(Who(run="one", step=step)), "Hello?"))[1] for step in (0, 2, 5, None)]
    assert stages[0] == replies(whole)[0]
    assert stages[3] == replies(whole)[1]
    assert len(set(stages)) == 4


def test_a_base_model_told_more_reads_its_own_system_message():
    talk = replace(empty(Who(run="one", third=PROMPTED, third_system="You know it all.")), system="Be brief.")
    read = [pane.text for pane in say(talk, "Hello?").panes]
    assert "Be brief." in read[0] == read[1]
    assert "You know it all." in read[2]
    assert "Be brief." not in read[2]


def test_every_wrong_state_has_words(two_runs, tiny_model, tiny_base_model):
    assert "Tune a model first" in who.state("local", Who())[0]
    assert who.state("local", Who(base="embedded"))[0] == ""
    assert who.ALONE in who.state("nobody's", Who(base="embedded"))[0]
    run = save_tiny_run(two_runs, "wrong", tiny_model, seed=4)
    weights = run.adapter / "adapter_model.safetensors"
    weights.rename(run.adapter / "adapter_model.bin")
    assert "no adapter in safetensors" in who.state("local", Who(run="wrong"))[0]
    (run.adapter / "adapter_model.bin").rename(weights)
    run.append_event("start", step=0, base="of other weights")
    assert "its weights have changed" in who.state("local", Who(run="wrong"))[0]
    run.delete()
    assert "There is no run" in turn("local", "wrong", 1, "", False, "right", "", "", Talk(), {}, Floor())[-9]
    other = save_tiny_run(two_runs, "wrong", tiny_base_model, seed=4)
    html, mendable = who.state("local", Who(run="one", third="wrong"))
    assert "cannot answer beside it" in html
    assert not mendable
    other.delete()


def test_another_chat_format_is_refused_or_paired_under_a_warning(two_runs, tiny_model):
    run = save_tiny_run(two_runs, "odd", tiny_model, seed=5)
    template = run.folder / "chat_template.jinja"
    template.write_bytes(b"{{ 'ODD' }}" + template.read_bytes())
    for asked in (Who(run="odd"), Who(run="one", third="odd")):
        html, mendable = who.state("local", asked)
        assert "chat format" in html
        assert mendable
    html, mendable = who.state("local", Who(run="odd", other_format=True))
    assert who.PAIRED in html
    assert mendable  # it can be taken back
    assert "ODD" in say(empty(Who(run="odd", other_format=True)), "Hello?").panes[1].text
    run.delete()

"""Three arms on held-out rows: which rows, what each arm is asked, and losses row by row."""

import json
import os
import signal
import time

import psutil
import pytest
from tiny_models import save_tiny_model

from sft import data, launch, models
from sft.best_prompt import LOOKED_AT
from sft.chat_format import ChatFormat, preset
from sft.cli import main
from sft.cli.evaluate import _print
from sft.config import TrainConfig
from sft.contest import Contest
from sft.errors import DataError, RunError
from sft.evaluate import evaluate, rows_of
from sft.evaluation import FAILED, Settings, read_evaluation, read_progress
from sft.runs import create_run
from sft.tables import read_table
from sft.train import train

ROWS = [{"question": f"Is {n} even?", "answer": ("yes", "no")[n % 2]} for n in range(40)]


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """A run on ROWS, a quarter of them held out."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = TrainConfig.from_dict(
        {
            "model": str(tiny_model), "dataset": str(folder / "rows.jsonl"), "eval_share": 0.25, "max_steps": 60,
            "learning_rate": 0.02, "eval_strategy": "no",
        }
    )  # fmt: skip
    made = create_run(config, folder, "evaluated")
    train(config, made)
    return made


@pytest.fixture(scope="module")
def evaluation(run):
    return evaluate(run, *rows_of(run))


def test_held_out_rows_are_the_runs_own_or_those_named(tmp_path, write_rows):
    rows = [{"question": f"{n}?", "answer": "y"} for n in range(20)]
    run = create_run(TrainConfig.from_dict({"dataset": str(write_rows(rows)), "eval_share": 0.25}), tmp_path / "r")
    held_out, training = rows_of(run)
    assert (len(held_out), len(training)) == (5, 15)
    some = rows_of(run, limit=3, seed=1)[0]
    assert [row for row in held_out if row in some] == some and len(some) == 3
    assert some == rows_of(run, limit=3, seed=1)[0] != rows_of(run, limit=3, seed=2)[0] != held_out[:3]
    assert rows_of(run, limit=99)[0] == held_out
    assert len(rows_of(run, str(write_rows(rows[:3], "other.jsonl")))[0]) == 3
    none = create_run(TrainConfig.from_dict({"dataset": str(write_rows(rows))}), tmp_path / "r2")
    with pytest.raises(DataError, match="no held-out rows"):
        rows_of(none)


def test_all_arms_answer_the_same_rows(evaluation):
    assert list(evaluation.arms) == ["base", "prompted", "tuned"]
    assert {len(arm.replies) for arm in evaluation.arms.values()} == {10}
    base, prompted, tuned = evaluation.arms.values()
    assert base.messages == tuned.messages == evaluation.rows[0].messages[:-1]
    assert [message["role"] for message in prompted.messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert prompted.messages[-1] == base.messages[-1]
    assert base.prompt_tokens == tuned.prompt_tokens
    assert all(more > few + 50 for more, few in zip(prompted.prompt_tokens, base.prompt_tokens, strict=True))


def test_examples_come_from_training_rows_alone(evaluation, run):
    held_out, training = rows_of(run)
    shown = [message["content"] for message in evaluation.arms["prompted"].messages[1:-1] if message["role"] == "user"]
    assert len(shown) == 3
    assert set(shown) <= {row.messages[0]["content"] for row in training}
    assert not set(shown) & {row.messages[0]["content"] for row in held_out}


def test_each_arm_is_scored_by_its_own_replies(evaluation):
    base, prompted, tuned = evaluation.arms.values()
    assert evaluation.settings["check"] in ("one of: yes, no", "one of: no, yes")
    for arm in (base, prompted, tuned):
        assert arm.valid == [reply in ("yes", "no") for reply in arm.replies]
        wanted = [row.messages[-1]["content"] for row in evaluation.rows]
        assert arm.exact == [reply == answer for reply, answer in zip(arm.replies, wanted, strict=True)]
    assert (base.value("stop_rate"), tuned.value("stop_rate")) == (0, 1)
    assert tuned.value("loss") < base.value("loss")
    assert evaluation.verdict.measure == "exact_match"


def test_the_document_is_json_and_whole(evaluation):
    document = json.loads(json.dumps(evaluation.as_json(), allow_nan=False))
    assert list(document) == ["arms", "verdict", "rows", "settings"]
    assert document["rows"][0] == {
        "messages": evaluation.rows[0].messages[:-1], "wanted": evaluation.rows[0].messages[-1]["content"],
    }  # fmt: skip
    assert set(document["settings"]) == {"run", "data", "limit", "system", "examples", "seed", "check", "written"}
    assert set(document["verdict"]) == {"kind", "sentence", "measure"}


def test_the_table_has_the_arms_the_intervals_and_the_verdict(evaluation, capsys):
    _print(evaluation.as_json())
    said = capsys.readouterr().out
    assert said.split("\n")[2].split() == ["base", "prompted", "tuned"]
    (line,) = [line for line in said.split("\n") if line.startswith("exactly as wanted")]
    assert line.count("%") == line.count("(") == 3
    assert "valid format: one of: " in said
    assert said.rstrip().endswith(evaluation.verdict.sentence)


def test_the_same_seed_gives_the_same_numbers(evaluation, run):
    def told(found):
        document = found.as_json()
        for arm in document["arms"].values():
            del arm["seconds"]
        return document

    shares = []
    again = evaluate(run, *rows_of(run), Settings(), lambda stage, share: shares.append((stage, share)))
    assert told(again) == told(evaluation)
    assert shares == sorted(shares, key=lambda told: told[1]) and shares[-1][1] == 1.0
    assert {stage for stage, _ in shares} == {"base model", "prompted model", "tuned model", "verdict"}


def test_the_prompt_is_the_users_where_one_is_given(run):
    held_out, training = rows_of(run, limit=2)
    found = evaluate(run, held_out, training, Settings(system="Say yes or no.", examples=1, seed=3))
    prompted = found.arms["prompted"].messages
    assert [message["role"] for message in prompted] == ["system", "user", "assistant", "user"]
    assert prompted[0]["content"] == "Say yes or no."
    bare = evaluate(run, held_out, training, Settings(examples=0))
    assert [message["role"] for message in bare.arms["prompted"].messages] == ["system", "user"]
    assert bare.verdict.kind == "unclear" and "2 rows are too few" in bare.verdict.sentence


def test_rows_that_were_trained_on_are_no_test_and_said(run, tmp_path):
    held_out, training = rows_of(run, limit=2)
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("".join(json.dumps({"messages": row.messages}) + "\n" for row in [*held_out, training[0]]))
    found = evaluate(run, *rows_of(run, str(mixed)), Settings(data=str(mixed), examples=0))
    assert found.verdict.sentence.endswith("Careful: 1 of the 3 rows were trained on.")


def test_all_training_rows_are_looked_through_and_an_idle_prompted_arm_is_said(run, write_rows):
    rows = [{"question": f"{n}?", "answer": f"{n}!"} for n in range(LOOKED_AT + 1000)]
    training = data.usable(read_table(write_rows(rows)))[0]
    found = evaluate(run, [training[at] for at in range(12)], training, Settings(examples=0))
    assert found.verdict.sentence.endswith(
        "Careful: 12 of the 12 rows were trained on. The prompted model was asked the same as the base: there is "
        "neither an instruction nor an example for it."
    )


def test_a_run_without_a_result_is_refused_for_that(tmp_path, write_rows, capsys):
    path = write_rows([{"question": f"{n}?", "answer": "y"} for n in range(20)])
    create_run(TrainConfig.from_dict({"dataset": str(path)}), tmp_path / "r", "early")
    assert main(["evaluate", "early", "--runs-dir", str(tmp_path / "r")]) == 2
    assert "The run early has no adapter" in capsys.readouterr().err


def test_rows_that_the_model_cannot_read_are_left_out_and_said(run, write_rows):
    """The tiny model reads 512 tokens."""
    answers = ["yes", "no"] * 6 + ["word " * 600, "word " * 60]
    rows = write_rows([{"question": f"Is {n} odd?", "answer": answer} for n, answer in enumerate(answers)])
    found = evaluate(run, *rows_of(run, str(rows)), Settings(examples=0))
    assert found.verdict.sentence.endswith(
        "1 of 14 rows are left out: with an answer they are longer than the model can read."
    )
    replies = found.arms["base"].reply_tokens
    assert max(replies[:-1]) < replies[-1]  # each has room for its own answer
    rows.write_text(rows.read_text().splitlines()[-2])
    with pytest.raises(RunError, match="more than the 512 tokens that the model can read"):
        evaluate(run, *rows_of(run, str(rows)), Settings())
    with pytest.raises(RunError, match="Write a shorter instruction"):
        evaluate(run, *rows_of(run, limit=2), Settings(system="word " * 600))


def test_a_template_that_thinks_first_is_asked_for_the_answer(tiny_model, tmp_path):
    """All arms begin where the template's own words before an answer end, and replies are compared without these."""
    thinks = "{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}<think></think>{% endif %}"
    thinks += "{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    folder = save_tiny_model(tmp_path / "model", thinks)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = {"model": str(folder), "dataset": str(path), "eval_share": 0.25, "max_steps": 1, "eval_strategy": "no"}
    made = create_run(TrainConfig.from_dict(config), tmp_path, "thinks")
    train(made.config(), made)
    found = evaluate(made, *rows_of(made), Settings(examples=1))
    form = Contest.of_run(made).chat_format
    length = len(form.prompt_ids(found.rows[0].messages[:-1]) + form.tokenize("<think></think>")[0])
    assert found.arms["base"].prompt_tokens[0] == found.arms["tuned"].prompt_tokens[0] == length
    answers = [form.tokenize(row.messages[-1]["content"])[0] for row in found.rows]
    for arm in found.arms.values():
        assert arm.answer_tokens == [len(ids) + 1 for ids in answers]  # and the stop token


def test_a_named_format_is_what_is_valid(run, tmp_path):
    (run.folder / "config.yaml").rename(run.folder / "kept.yaml")
    try:
        text = (run.folder / "kept.yaml").read_text().replace("eval_format: null", "eval_format: 'regex: y.*'")
        (run.folder / "config.yaml").write_text(text)
        found = evaluate(run, *rows_of(run, limit=4))
    finally:
        (run.folder / "kept.yaml").replace(run.folder / "config.yaml")
    assert found.settings["check"] == "regex: y.*"
    assert found.arms["tuned"].valid == [reply.startswith("y") for reply in found.arms["tuned"].replies]


def test_the_base_model_reads_its_own_format(tmp_path):
    """A run may be given another template: the base model is not made to read it."""
    folder = save_tiny_model(tmp_path / "model", preset("chatml"))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = TrainConfig.from_dict(
        {"model": str(folder), "dataset": str(path), "eval_share": 0.1, "max_steps": 1, "chat_template": "plain"}
    )
    other = create_run(config, tmp_path, "other")
    train(config, other)
    found = evaluate(other, *rows_of(other), Settings(examples=0))
    own = ChatFormat.of(models.load_tokenizer(folder))
    assert found.arms["base"].prompt_tokens == [len(own.prompt_ids(row.messages[:-1])) for row in found.rows]
    plain = Contest.of_run(other).chat_format
    assert found.arms["tuned"].prompt_tokens == [len(plain.prompt_ids(row.messages[:-1])) for row in found.rows]


def test_a_process_of_its_own_evaluates_and_can_be_stopped_and_killed(run):
    launch.evaluate(run, Settings(limit=2, system="Be -- brief.", examples=1))
    pid = read_progress(run)["pid"]
    assert psutil.Process(pid).nice() == launch._NICENESS
    with pytest.raises(RunError, match="being evaluated already"):
        launch.evaluate(run, Settings())
    deadline = time.monotonic() + 60
    while (progress := read_progress(run)) and progress["stage"] != FAILED and time.monotonic() < deadline:
        time.sleep(0.05)
    assert progress is None, (progress, (run.folder / "evaluate.log").read_text())
    before = read_evaluation(run)
    assert before["settings"]["system"] == "Be -- brief." and before["arms"]["tuned"]["rows"] == 2

    launch.evaluate(run, Settings())
    pid = read_progress(run)["pid"]
    launch.stop_evaluation(run)
    assert not psutil.pid_exists(pid)
    assert read_progress(run) is None and read_evaluation(run) == before
    launch.stop_evaluation(run)  # again, by a second click

    launch.evaluate(run, Settings())
    os.kill(read_progress(run)["pid"], signal.SIGKILL)
    time.sleep(0.2)
    progress = read_progress(run)
    assert progress["stage"] == FAILED and "ended without a word" in progress["message"]
    assert read_evaluation(run) == before and run.status().state == "finished"

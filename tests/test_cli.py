"""The command line: what it prints, its exit status, and one clear message for each wrong input."""

import json
import subprocess
import sys

import pytest
from tiny_models import save_tiny_run

from sft.chat_format import preset
from sft.cli import main
from sft.config import TrainConfig
from sft.runs import create_run, find_run

SHORT = [{"question": f"{n}?", "answer": str(n) if n < 10 else ""} for n in range(12)]
TALK = [{"role": "user", "content": "Hi 12"}, {"role": "assistant", "content": "Hello."}]


def sft(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "sft", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False
    )


@pytest.fixture
def messages(tmp_path):
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(TALK))
    return path


@pytest.fixture
def tiny_config(tiny_model, write_rows, tmp_path):
    rows = write_rows([{"question": f"{n}?", "answer": json.dumps({"n": n})} for n in range(20)])
    path = tmp_path / "tiny.yaml"
    path.write_text(f"model: {tiny_model}\ndataset: {rows}\neval_share: 0.2\nmax_steps: 3\neval_steps: 2\n")
    return path


def test_help_names_every_command():
    done = sft("--help")
    assert done.returncode == 0
    for command in ("preview", "check", "train", "runs", "chat", "evaluate"):
        assert command in done.stdout
        assert sft(command, "--help").returncode == 0


def test_preview_prints_one_json_document(messages, tiny_model):
    done = sft("preview", "--messages", messages, "--model", tiny_model, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert set(shown) == {"text", "token_ids", "tokens", "assistant_mask", "assistant_spans", "findings"}
    ((start, end),) = shown["assistant_spans"]
    assert shown["text"][start:end] == "Hello.<|im_end|>"
    assert len(shown["token_ids"]) == len(shown["tokens"]) == len(shown["assistant_mask"])
    assert sum(shown["assistant_mask"]) > 0


def test_preview_with_a_template_alone(messages, tmp_path):
    template = tmp_path / "plain.jinja"
    template.write_text(preset("plain"))
    done = sft(
        "preview", "--messages", messages, "--template", template, "--template-kwargs", '{"eos_token": "</s>"}',
        "--generation-prompt", "--json",
    )  # fmt: skip
    shown = json.loads(done.stdout)
    assert shown["text"].endswith("Hello.</s>\n\n### Assistant:\n")
    assert shown["token_ids"] is shown["tokens"] is shown["assistant_mask"] is None
    assert shown["assistant_spans"]


def test_preview_for_people_marks_what_is_trained_on(messages, tiny_model):
    done = sft("preview", "--messages", messages, "--model", tiny_model)
    assert "⟦Hello.<|im_end|>⟧" in done.stdout
    assert "trained on" in done.stdout


def test_preview_foretells_another_template(messages, tiny_model, tmp_path, capsys):
    arguments = ["preview", "--messages", str(messages), "--model", str(tiny_model), "--chat-with", "zephyr"]
    assert main([*arguments, "--json"]) == 0
    foretold = json.loads(capsys.readouterr().out)["mismatch"]
    assert (foretold["fits"], foretold["writes"], foretold["awaits"]) == (False, "<|im_end|>", ["<|endoftext|>"])
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "chatted with zephyr: they do not fit." in said
    assert all(line in said for line in foretold["said"])


def test_a_template_alone_is_compared_by_its_texts(messages, tmp_path, capsys):
    template = tmp_path / "mine.jinja"
    template.write_text(preset("chatml"))
    arguments = ["preview", "--messages", str(messages), "--template", str(template), "--chat-with"]
    assert main([*arguments, "chatml"]) == 0
    said = capsys.readouterr().out
    assert "chatted with chatml: their texts fit." in said and "cannot be told without a tokenizer" in said
    assert main([*arguments, "zephyr", "--template-kwargs", '{"eos_token": "</s>"}']) == 0
    said = capsys.readouterr().out
    assert "chatted with zephyr: they do not fit." in said and "nothing that a turn ends in" not in said


def test_preview_says_what_a_cut_takes_away(messages, tiny_model, capsys):
    arguments = ["preview", "--messages", str(messages), "--model", str(tiny_model), "--json"]
    assert main(arguments) == 0
    whole = json.loads(capsys.readouterr().out)
    assert "stop_cut" not in [each["code"] for each in whole["findings"]]
    assert main([*arguments, "--max-length", "5"]) == 0
    (cut,) = [each for each in json.loads(capsys.readouterr().out)["findings"] if each["code"] == "stop_cut"]
    assert "max length 5" in cut["message"] and cut["end"] == len(whole["text"])


def test_messages_may_begin_with_a_byte_order_mark(messages, tiny_model, capsys):
    messages.write_bytes(b"\xef\xbb\xbf" + messages.read_bytes())
    assert main(["preview", "--messages", str(messages), "--model", str(tiny_model)]) == 0
    assert "Hello." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-length", "x"), "must be a whole number, not x"),
        (("--max-length", "0"), "must be 1 or more, not 0"),
        (("--date", "tomorrow"), "must be a day such as 2024-07-26, not tomorrow"),
    ],
)
def test_an_option_of_another_kind_is_told_in_words(messages, options, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["preview", "--messages", str(messages), *options])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_check_says_what_it_found(tiny_model, write_rows):
    path = write_rows([{"question": "a", "answer": "b"}, {"question": "c", "answer": ""}])
    done = sft("check", path, "--model", tiny_model)
    assert done.returncode == 0
    assert "line 2: wrong: message 1: the assistant's content is empty" in done.stdout
    assert "1 kept, 0 cut, 0 dropped, 1 wrong" in done.stdout
    found = json.loads(sft("check", path, "--model", tiny_model, "--json").stdout)
    assert [item["verdict"] for item in found["verdicts"]] == ["kept", "wrong"]


def test_check_of_many_rows_lists_the_first_and_draws_their_lengths(tiny_model, write_rows):
    long = [{"question": "Hi", "answer": "Hello. " * 30}] * 30
    path = write_rows([{"Frage": row["question"], "Antwort": row["answer"]} for row in [*long, *SHORT]])
    arguments = ("check", path, "--model", tiny_model, "--columns", "user=Frage, assistant=Antwort", "--max-length", 64)
    done = sft(*arguments)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert sum(": cut: " in line for line in said) == 20
    assert "… and 10 more rows cut" in said
    assert sum(": wrong: " in line for line in said) == 2
    assert "10 kept, 30 cut, 0 dropped, 2 wrong" in done.stdout
    assert "30 stop tokens are among them" in done.stdout
    (mark,) = (index for index, line in enumerate(said) if "max length 64 cuts here" in line)
    assert "–64 " in said[mark - 1]
    assert said[mark + 1].strip().startswith("65–")
    assert said[-1].endswith("█" * 40)  # the most rows are the longest
    assert "\x1b" not in done.stdout
    found = json.loads(sft(*arguments, "--json").stdout)
    assert set(found) == {
        "shape", "rows", "kept", "cut", "dropped", "wrong", "tokens", "trained", "longest", "cut_tokens", "lost_stops",
        "histogram", "verdicts",
    }  # fmt: skip
    assert sum(bar["rows"] for bar in found["histogram"]) == 40
    assert {"from", "to", "rows"} == set(found["histogram"][0])
    assert found["lost_stops"] == 30
    assert found["cut_tokens"] == sum(item["tokens"] - 64 for item in found["verdicts"] if item["verdict"] == "cut")
    assert len(found["verdicts"]) == 42


def test_an_output_that_lacks_characters_gets_them_escaped(tiny_model, write_rows):
    import os

    command = [sys.executable, "-m", "sft", "check", str(write_rows(SHORT)), "--model", str(tiny_model)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.returncode == 0, done.stderr
    assert "\\u2588" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--columns", "user=x"), "error: columns 'user=x' does not fit rows.jsonl"),
        (("--dataset-config", "all"), "only a Hub data set has configurations"),
        (("--split", "test"), "a file has no splits"),
    ],
)
def test_check_says_which_option_does_not_fit(tiny_model, write_rows, options, said):
    done = sft("check", write_rows(SHORT), "--model", tiny_model, *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_train_runs_chat_and_evaluate(tiny_config, tmp_path, capsys):
    runs = ["--runs-dir", str(tmp_path / "runs")]

    def here(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([*map(str, arguments), *runs])
        return status, *capsys.readouterr()

    trained = sft("train", tiny_config, "--set", "max_steps=4", "--run-name", "mine", *runs)
    assert trained.returncode == 0, trained.stderr
    assert "step 4/4" in trained.stdout
    assert "step 4/4" in (tmp_path / "runs/mine/log.txt").read_text()

    (listed,) = json.loads(here("runs", "--json")[1])
    assert (listed["name"], listed["state"], listed["step"]) == ("mine", "finished", 4)
    assert "mine" in here("runs")[1]

    replies = json.loads(here("chat", "mine", "--prompt", "3?", "--max-new-tokens", 5, "--json")[1])
    assert set(replies) == {"prompt_token_ids", "base", "tuned"}
    for name in ("base", "tuned"):
        assert set(replies[name]) == {"text", "token_ids", "stopped"}
        assert 0 < len(replies[name]["token_ids"]) <= 5

    evaluated = json.loads(here("evaluate", "mine", "--limit", 2, "--json")[1])
    assert set(evaluated["arms"]) == {"base", "prompted", "tuned"}
    assert evaluated["arms"]["tuned"]["rows"] == 2
    assert evaluated["verdict"]

    status, _, said = here("train", tmp_path / "runs/mine/config.yaml", "--run-name", "mine")
    assert status == 2 and "is finished already" in said
    status, _, said = here("train", tiny_config, "--run-name", "mine")
    assert status == 2 and "already a run mine" in said


def test_chat_takes_a_snapshot_and_another_template(tiny_model, tmp_path, capsys):
    save_tiny_run(tmp_path, "mine", tiny_model, seed=1, snapshots=(2,))
    asked = ["chat", "mine", "--prompt", "Hello?", "--max-new-tokens", "8", "--runs-dir", str(tmp_path), "--json"]
    told = []
    for more in ([], ["--step", "2"], ["--template", "none"], ["--template", "wrong"]):
        assert main([*asked, *more]) == 0
        told.append(json.loads(capsys.readouterr().out))
    result, snapshot, bare, wrong = told
    assert snapshot["base"] == result["base"]
    assert snapshot["tuned"] != result["tuned"]
    assert len(bare["prompt_token_ids"]) < len(result["prompt_token_ids"]) < len(wrong["prompt_token_ids"])
    assert main([*asked, "--step", "3"]) == 2
    assert "kept no snapshot of step 3" in capsys.readouterr().err


@pytest.fixture
def ended_runs(tiny_config, tmp_path):
    """Two runs, one stopped at its third step and one failed, and where they are."""
    root = tmp_path / "runs"
    for name, overrides, state in (("one", [], "stopped"), ("two", ["lora_r=4"], "failed")):
        run = create_run(TrainConfig.load(tiny_config, overrides), root, name)
        run.append_event("log", step=3, loss=1.5, stop_loss=0.5, tokens=9, seconds=1.0)
        run.set_status(state, step=3, max_steps=3)
    return root


def test_runs_are_compared_renamed_stopped_and_deleted(ended_runs, capsys):
    runs = ["runs", "--runs-dir", str(ended_runs)]
    assert main([*runs, "--compare", "one", "two", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differing"] == {"lora_r": [16, 4]}
    assert [(row["loss"], row["stop_loss"], row["resumable"]) for row in found["runs"]] == [(1.5, 0.5, True)] * 2
    assert main([*runs, "--compare", "one", "two"]) == 0
    assert "lora_r" in capsys.readouterr().out
    assert main([*runs, "--rename", "two", "three"]) == 0
    assert main([*runs, "--delete", "one"]) == 0
    assert main([*runs, "--stop", "three", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out.splitlines()[-1])] == ["three"]
    assert (ended_runs / "three" / "stop").exists()


def test_what_cannot_be_resumed_is_told(ended_runs, tiny_config, capsys):
    train = ["train", str(tiny_config), "--runs-dir", str(ended_runs), "--resume"]
    finished = create_run(TrainConfig.load(tiny_config), ended_runs, "done")
    finished.set_status("finished")
    create_run(TrainConfig.load(tiny_config), ended_runs, "busy")
    for options, said in (
        (["--run-name", "done"], "is finished: there is nothing to resume"),
        (["--run-name", "busy"], "is still working"),
        (["--run-name", "nobody"], "There is no run 'nobody'"),
        (["--run-name", "two"], "lora_r: 4 then, 16 now"),
        (["--set", "seed=1"], "has this config and was interrupted, stopped or failed"),
    ):
        assert main([*train, *options]) == 2
        assert said in capsys.readouterr().err


def test_the_newest_run_of_the_config_resumes(ended_runs, tiny_config, capsys):
    assert main(["train", str(tiny_config), "--runs-dir", str(ended_runs), "--resume"]) == 0
    assert "run one in" in capsys.readouterr().out
    assert find_run("one", ended_runs).status().state == "finished"


def wrong_calls(tmp_path, tiny_model, tiny_config, messages):
    (tmp_path / "broken.json").write_text('[{"role": ')
    deep = "[" * 200 + "]" * 200
    (tmp_path / "deep.json").write_text("[" * 99999 + "]" * 99999)
    (tmp_path / "twice.json").write_text('[\n{"role": "user", "role": "user", "content": "a"}]')
    (tmp_path / "two.json").write_text(json.dumps([{"role": "system", "content": "a"}] * 2))
    (tmp_path / "raising.jinja").write_text("{{ raise_exception('no such role') }}")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "weightless").mkdir()
    (tmp_path / "weightless/config.json").write_text("{}")
    preview = ["preview", "--messages"]
    yield [*preview, tmp_path / "none.json"], "cannot be read"
    yield [*preview, tmp_path / "broken.json"], "is not JSON"
    yield [*preview, tmp_path / "two.json", "--model", tiny_model], "two system messages"
    yield [*preview, messages, "--template", tmp_path / "raising.jinja"], "no such role"
    yield [*preview, messages, "--model", tmp_path / "weightless"], "no weights in safetensors"
    yield [*preview, messages, "--model", tmp_path / "nothing"], "There is no folder"
    yield [*preview, messages, "--template-kwargs", "x"], "The template arguments are not JSON"
    yield [*preview, messages, "--template-kwargs", ""], "The template arguments are not JSON"
    yield [*preview, messages, "--template-kwargs", '{"bos_token": 5}'], "bos_token must be text"
    yield [*preview, messages, "--template-kwargs", '{"messages": []}'], "messages cannot be a template argument"
    yield [*preview, messages, "--template-kwargs", f'{{"a": {deep}}}'], "nested more than"
    yield [*preview, tmp_path / "deep.json"], "nested too deeply"
    yield [*preview, tmp_path / "twice.json"], "line 2: the key 'role' is given twice"
    yield (
        [*preview, messages, "--model", tiny_model, "--chat-with", tmp_path / "none.jinja"],
        "neither a preset nor a file",
    )
    yield [*preview, messages, "--template", tmp_path / "raising.jinja", "--max-length", "9"], "--max-length counts"
    yield ["check", tmp_path / "empty.jsonl"], "is empty"
    yield ["check", tmp_path / "none.jsonl"], "There is no file"
    yield ["train", tmp_path / "none.yaml"], "no config file"
    yield ["train", tiny_config, "--set", "max_step=3"], "did you mean max_steps?"
    yield ["train", tiny_config, "--set", "lora_r=0"], "lora_r: must be at least 1"
    yield ["train", tiny_config, "--run-name", "../x"], "cannot name a run"
    yield ["train", tiny_config, "--set", f"dataset={tmp_path}/empty.jsonl", "--runs-dir", tmp_path / "r"], "is empty"
    yield ["chat", "nobody", "--prompt", "Hi", "--runs-dir", tmp_path / "r2"], "There is no run 'nobody'"
    yield ["evaluate", "nobody", "--runs-dir", tmp_path / "r2"], "There is no run 'nobody'"


def test_wrong_input_gets_one_message_and_exit_status_2(tmp_path, tiny_model, tiny_config, messages, capsys):
    for arguments, said in wrong_calls(tmp_path, tiny_model, tiny_config, messages):
        assert main([str(argument) for argument in arguments]) == 2, arguments
        out, err = capsys.readouterr()
        assert said in err, (arguments, err)
        assert "→" in err
        assert "Traceback" not in err + out
        if "--runs-dir" not in arguments:
            assert not out

"""The page's own logic without a browser: whose run it is, what is escaped, what settings become."""

import json

import pytest

from sft.chat_format import ChatFormat
from sft.check import Verdict
from sft.config import TrainConfig
from sft.errors import DataError, RunError, UserError
from sft.runs import create_run
from sft.ui import chat, paint, preview, tune

NASTY = '<img src=x onerror="alert(1)">${alert(2)}`'
CONFIG = TrainConfig.from_dict({"dataset": "examples/support-json.jsonl", "max_steps": 4})


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_RUNS_DIR", str(tmp_path))
    return tmp_path


def test_what_a_person_wrote_is_never_markup(chatml: ChatFormat, runs):
    rendered = chatml.render([{"role": "user", "content": NASTY}, {"role": "assistant", "content": NASTY}])
    run = create_run(CONFIG, runs, "one")
    run.log_file.write_text(NASTY)
    run.append_event("warning", message=NASTY)
    run.set_status("failed", message=NASTY)
    for html in (
        paint.text_view(rendered), paint.token_view(rendered), paint.findings(rendered),
        paint.problem(NASTY, NASTY, NASTY),
        paint.verdict(Verdict(NASTY, "wrong", problems=(NASTY,))), paint.run_card(run), paint.empty(NASTY),
    ):  # fmt: skip
        assert "<img" not in html
        assert 'onerror="' not in html


def test_text_and_tokens_show_every_character(chatml: ChatFormat):
    rendered = chatml.render([{"role": "user", "content": "a b\tc\n日🎉"}])
    text = paint.text_view(rendered)
    for seen in ("·", "⇥", "↵", "日", "🎉"):
        assert seen in text
    tokens = paint.token_view(rendered)
    assert tokens.count('class="token ') == len(rendered.token_ids)
    for token_id in rendered.token_ids:
        assert f"<small>{token_id}</small>" in tokens


def test_a_visitor_sees_and_touches_no_run_of_another(runs):
    run = create_run(CONFIG, runs, "hers", owner="alice")
    assert tune.run_names("alice") == ["hers"]
    assert tune.run_names("bob") == []
    assert "hers" not in str(tune.show_run("bob", "hers"))
    assert "hers" in tune.show_run("alice", "hers")[0]
    with pytest.raises(RunError, match="There is no run 'hers'"):
        chat.contest_of("bob", "hers")
    (runs / "hers/adapter").mkdir()
    (runs / "hers/adapter/adapter_model.safetensors").write_bytes(b"")
    assert ("hers", "hers") in chat.choices("alice")
    assert ("hers", "hers") not in chat.choices("bob")
    assert run.owner == "alice"
    assert chat.suggested_system("bob", "hers") == ""
    assert chat.suggested_system("alice", "hers") == "You file support tickets for Northwind Home."


def test_strangers_on_a_space_name_no_folder_of_the_machine(monkeypatch, tmp_path):
    preview.guard_model(str(tmp_path))
    monkeypatch.setenv("SPACE_ID", "someone/space")
    preview.guard_model("HuggingFaceTB/SmolLM2-135M")
    for name in (str(tmp_path), "./runs", "~/models", "examples", " /etc", "sft/ui"):
        with pytest.raises(UserError, match="names a folder"):
            preview.guard_model(name)


def test_settings_become_the_config_of_the_run(runs):
    settings = tune.example_settings("support-json")
    settings = {name: settings[name] for name in tune.SETTINGS}
    config = tune.make_config("embedded", settings, "Example", "support-json", None, "", "", "train")
    assert config == TrainConfig.load("examples/support-json.yaml")


def test_an_upload_is_kept_and_a_share_of_it_held_out(runs, write_rows):
    path = write_rows([{"question": "a", "answer": "b"}] * 20, "mine.jsonl")
    config = tune.make_config("embedded", {}, "Upload", None, str(path), "", "", "train")
    assert config.eval_share == 0.1
    assert config.dataset.startswith(str(runs))
    path.unlink()
    assert len(tune.read_table(config.dataset).rows) == 20


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
        tune.make_config("embedded", {}, *values)


def test_a_long_curve_is_thinned_and_keeps_its_ends(runs):
    run = create_run(CONFIG, runs, "long")
    for step in range(1, 3001):
        run.append_event("log", step=step, loss=1 / step)
    run.append_event("eval", step=3000, loss=0.5)
    points = tune._points(run)
    assert len(points) < 500
    assert (points["step"].iloc[0], points["step"].iloc[-2]) == (1, 3000)
    assert points["part"].iloc[-1] == "held-out"


def test_bubbles_keep_leading_spaces_and_lines():
    (bubble,) = chat._bubbles([{"role": "assistant", "content": "    if x:\n        y\n"}])
    assert bubble["content"] == [{"type": "text", "text": "    if x:\n        y\n"}]


def test_the_examples_of_the_preview_are_conversations():
    from sft.messages import problems

    for name, messages in preview.EXAMPLES.items():
        assert not problems(messages), name
    assert json.loads(preview._dump(preview.EXAMPLES["One question"])) == preview.EXAMPLES["One question"]

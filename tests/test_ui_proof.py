"""What the proof panel says of a conversation: settings, prompts and measurements; whose it is; hostile text."""

from dataclasses import replace

import gradio as gr
import pytest

from sft.chat import Reply, Sampling
from sft.chat_format import ChatFormat
from sft.compare import Candidate, Proof
from sft.config import TrainConfig
from sft.contest import Contest, Contestant
from sft.runs import create_run
from sft.ui import proof, proof_view
from sft.ui.talk import PROMPTED, Pane, Talk, Who
from sft.weight_change import Change

NASTY = '<img src=x onerror="alert(1)">${alert(2)}`'
CONFIG = TrainConfig.from_dict({"dataset": "examples/support-json.jsonl", "max_steps": 60})
FAR = Proof(Change(28.3, 210), 11.2, [Candidate(NASTY, 0.00001, 0.99999), Candidate(" The", 0.1219, 0.0)])


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_RUNS_DIR", str(tmp_path))
    made = create_run(CONFIG, tmp_path, "tickets", owner="alice")
    for folder in (made.adapter, made.snapshot(20)):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    made.set_status("finished", step=60, max_steps=60)
    return made


def pane(chatml: ChatFormat, text: str, **ended) -> Pane:
    prompt = chatml.prompt_ids([{"role": "user", "content": text}])
    reply = Reply(token_ids=[5, 6, 7, 2], text="x", seconds=2.0, **ended)
    return Pane(prompt=prompt, text=chatml.tokenizer.decode(prompt), reply=reply)


def talk_of(chatml: ChatFormat, **changes) -> Talk:
    panes = [pane(chatml, "Is it?", cut=True), pane(chatml, "Is it?", stopped=True)]
    return replace(Talk(Who(run="tickets"), panes, sampling=Sampling(seed=3), format_hash="ab" * 32), **changes)


def test_the_table_says_what_made_each_reply(chatml, run, tmp_path):
    contest = Contest("embedded", tmp_path, chatml, (Contestant(), Contestant(run)))
    html = proof_view.made(contest, talk_of(chatml))
    for seen in (
        "<td>none</td><td>tickets, 60 steps</td>", "abababababab</code>", "ab" * 32, "greedy, at most 128 tokens",
        "3, not used: greedy", "<td>cut at the limit</td><td>by itself, with <code>&lt;|im_end|&gt;</code>",
        "4 written", "2.0 tokens/s", "SmolLM2-135M-Instruct",
    ):  # fmt: skip
        assert seen in html
    sampled = talk_of(chatml, sampling=Sampling(0.7, 0.9, 64, 5), template="wrong")
    html = proof_view.made(contest, sampled)
    for seen in ("temperature 0.7, top p 0.9, at most 64 tokens", "<td>5</td>", "a wrong one, on purpose"):
        assert seen in html
    stopped = talk_of(chatml, panes=[pane(chatml, "a"), Pane()])
    assert "<td>stopped from outside</td><td>–</td>" in proof_view.made(contest, stopped)
    snapshot = replace(contest, contestants=(Contestant(), Contestant(run, 20)))
    assert "tickets, as after step 20" in proof_view.made(snapshot, talk_of(chatml))


def test_prompts_are_the_same_or_marked_where_they_part(chatml):
    assert "✓ Both models read the same" in proof_view.prompts(talk_of(chatml))
    panes = [pane(chatml, "Is it blue?"), pane(chatml, "Is it red?")]
    html = proof_view.prompts(talk_of(chatml, panes=panes))
    first, second = panes[0].prompt, panes[1].prompt
    at = next(at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    assert f"Not what the base model read: tuned model from token {at + 1} on" in html
    assert f'<mark class="parts">{" ".join(map(str, second[at:]))}</mark>' in html
    assert html.count("<section>") == 2


def test_a_change_is_told_in_numbers_and_none_with_its_causes():
    html = proof_view.measured("Tuned model", FAR, [])
    assert "the base pane has read its own" not in html
    assert "the base pane has read its own" in proof_view.measured("Tuned model", FAR, [], parted=True)
    for seen in (
        "On here, off in the base pane",
        "73,130 times",
        "11.2 nats",
        "28.3",
        "of 210 matrices",
        "&gt; 99.99 %",
    ):
        assert seen in html
    html = proof_view.measured("Tuned model", replace(FAR, divergence=1e-9), ["The rate is too low."])
    assert "No measurable change" in html
    assert "<li>The rate is too low.</li>" in html
    assert "On here" not in html


def test_what_a_model_or_a_person_wrote_is_never_markup(chatml, run, tmp_path):
    contest = Contest(NASTY, tmp_path, chatml, (Contestant(), Contestant(run)))
    panes = [pane(chatml, NASTY), pane(chatml, f"{NASTY}!")]
    talk = talk_of(chatml, panes=panes)
    html = proof_view.made(contest, talk) + proof_view.prompts(talk) + proof_view.measured(NASTY, FAR, [NASTY])
    html += proof_view.measured(NASTY, replace(FAR, divergence=0.0), [NASTY])
    assert "<img" not in html
    assert 'onerror="' not in html


def test_each_pane_has_its_name_and_those_of_runs_are_measured():
    names = [proof_view.BASE, proof_view.TUNED, proof_view.PROMPTED_BASE]
    assert proof_view.names(Who(run="a", third=PROMPTED)) == names
    assert proof_view.tuned_panes(Who(run="a", third=PROMPTED)) == [1]
    assert proof_view.tuned_panes(Who(run="a", third="b")) == [1, 2]
    assert proof_view.tuned_panes(Who(base="embedded", third=PROMPTED)) == []


def test_nothing_is_proven_while_closed_or_to_a_stranger(chatml, run):
    assert list(proof.proven(False, "alice", talk_of(chatml), [])) == [""]
    assert "Ask something first" in list(proof.proven(True, "alice", Talk(), []))[-1]
    (said,) = proof.proven(True, "bob", talk_of(chatml), [])
    assert "There is no run &#x27;tickets&#x27;" in said


def test_a_measurement_that_a_later_event_has_overtaken_is_not_shown(chatml, run, monkeypatch, tmp_path):
    contest = Contest("embedded", tmp_path, chatml, (Contestant(), Contestant(run)))
    monkeypatch.setattr(proof, "contest_of", lambda owner, who: contest)
    monkeypatch.setattr(proof, "_measured", lambda contest, talk, at: "MEASURED")
    latest = []
    assert "MEASURED" in list(proof.proven(True, "alice", talk_of(chatml), latest))[-1]
    slow = proof.proven(True, "alice", talk_of(chatml), latest)
    assert "Measuring" in next(slow)
    assert "Ask something first" in next(proof.proven(True, "alice", Talk(), latest))  # Clear was pressed
    assert list(slow) == [gr.skip()]

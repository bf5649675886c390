"""A base model that was really pretrained, in seconds: it continues text; tuned, it answers and stops."""

import json

import pytest
import torch
from peft import PeftModel
from tiny_models import domain_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft import models
from sft.chat import Contest, Sampling, stream
from sft.config import TrainConfig
from sft.evaluate import evaluate, rows_of
from sft.runs import create_run
from sft.train import train

MARKERS = "<|im_start|>,<|im_end|>"
LONGEST = 40  # new tokens: twice what the answers need


def short_rows(count: int) -> list[dict]:
    """The shortest answers of the domain's example, each with one question."""
    rows = [row for row in domain_rows() if len(row["messages"]) == 2]
    by_answer = {
        row["messages"][1]["content"]: row for row in sorted(rows, key=lambda row: len(str(row)), reverse=True)
    }
    return [by_answer[answer] for answer in sorted(by_answer, key=len)[:count]]


@pytest.fixture(scope="module")
def tuned(pretrained_base_model, tmp_path_factory):
    """Tunes the base model on a few rows, once for each choice of settings."""
    folder, made = tmp_path_factory.mktemp("base-runs"), {}
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in short_rows(4)))
    usual = {"max_steps": 80, "per_device_train_batch_size": 4, "learning_rate": 0.005, "eval_strategy": "no"}
    usual |= {"lora_r": 32, "lora_alpha": 256}

    def tune(**settings):
        key = str(settings)
        if key not in made:
            values = {"model": str(pretrained_base_model), "dataset": str(rows), **usual, **settings}
            config = TrainConfig.from_dict(values)
            made[key] = create_run(config, folder, f"run{len(made)}")
            train(config, made[key])
        return made[key]

    return tune


def plain(tuned):
    return tuned()


def chatml(tuned):
    return tuned(chat_template="chatml", trainable_token_indices=MARKERS)


def full(tuned):
    return tuned(finetuning_type="full", max_steps=60, learning_rate=0.007)


def replies(run, questions: int = 3) -> list[list]:
    """Greedy replies to questions of the rows: those of the base, and those of the tuned model."""
    contest, found = Contest.of_run(run), []
    for row in short_rows(questions):
        prompt = contest.chat_format.prompt_ids(row["messages"][:1])
        *_, last = stream(contest, [prompt, prompt], Sampling(max_new_tokens=LONGEST))
        found.append([(reply.text, reply.stopped, reply.token_ids) for reply in last])
    return [list(arm) for arm in zip(*found, strict=True)]


def alone(model, run) -> list[list[int]]:
    """What a model of its own answers to the same questions, without batch or mixed adapters."""
    form, found = Contest.of_run(run).chat_format, []
    for row in short_rows(3):
        ids = torch.tensor([form.prompt_ids(row["messages"][:1])])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LONGEST,
            eos_token_id=form.stop_token_ids, pad_token_id=0,
        )  # fmt: skip
        found.append(output[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.parametrize("kind", [plain, chatml, full])
def test_before_tuning_it_goes_on_and_after_it_answers_and_stops(tuned, pretrained_base_model, kind):
    """And each pane of a chat is its model alone, token for token."""
    run = kind(tuned)
    assert not run.events("warning")
    base, after = replies(run)
    assert not any(stopped for _, stopped, _ in base)
    assert all(stopped for _, stopped, _ in after)
    assert [text for text, *_ in after] == [row["messages"][1]["content"] for row in short_rows(3)]
    assert [ids for *_, ids in base] == alone(models.load_base(pretrained_base_model), run)
    if kind is full:
        own = models.load_base(run.model)
    else:
        own = PeftModel.from_pretrained(models.load_base(pretrained_base_model), str(run.adapter)).eval()
    assert [ids for *_, ids in after] == alone(own, run)


def test_without_training_them_it_does_not_learn_the_markers_and_the_run_says_so(tuned):
    with_them, without = chatml(tuned), tuned(chat_template="chatml")
    (warning,) = (event["message"] for event in without.events("warning"))
    assert f"trainable_token_indices: {MARKERS}" in warning
    assert with_them.events("log")[-1]["stop_loss"] < 0.2
    assert without.events("log")[-1]["stop_loss"] > 1


def test_merged_it_gives_the_same_logits(tuned, pretrained_base_model):
    run = chatml(tuned)
    assert not list(run.adapter.glob("*.bin"))
    loaded = PeftModel.from_pretrained(models.load_base(pretrained_base_model), str(run.adapter)).eval()
    ids = torch.tensor([Contest.of_run(run).chat_format.prompt_ids(short_rows(1)[0]["messages"][:1])])
    with torch.inference_mode():
        before, base = loaded(ids).logits, models.load_base(pretrained_base_model)(ids).logits
        with loaded.disable_adapter():
            assert torch.equal(loaded(ids).logits, base)
        merged = loaded.merge_and_unload()
        assert torch.allclose(merged(ids).logits, before, atol=1e-4)
    assert not torch.allclose(before, base, atol=0.1)
    marker = Contest.of_run(run).chat_format.tokenizer.convert_tokens_to_ids("<|im_end|>")
    head, embedding = merged.get_output_embeddings().weight, merged.get_input_embeddings().weight
    assert torch.equal(head[marker], embedding[marker])  # tied before, tied after
    assert not torch.equal(head[marker], models.load_base(pretrained_base_model).get_output_embeddings().weight[marker])


def test_runs_that_train_tokens_and_runs_that_do_not_take_turns(tuned):
    more = tuned(chat_template="chatml", trainable_token_indices=f"{MARKERS},3", max_steps=2)
    runs = [plain(tuned), chatml(tuned), more]
    first = [replies(run, 1) for run in runs]
    assert [replies(run, 1) for run in reversed(runs)] == first[::-1]


def test_both_arms_of_a_run_are_evaluated(tuned, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in short_rows(4)))
    for kind in (chatml, full):
        run = kind(tuned)
        arms = evaluate(run, *rows_of(run, str(path))).arms
        before, after = arms["base"].value, arms["tuned"].value
        assert (before("stop_rate"), after("stop_rate")) == (0, 1)
        assert (before("exact_match"), after("exact_match")) == (0, 1)
        assert after("loss") == pytest.approx(run.events("log")[-1]["loss"], abs=0.1)
        assert after("loss") < before("loss") / 2


def test_a_model_tuned_in_full_is_whole_and_stops_by_itself(tuned, pretrained_base_model):
    run = full(tuned)
    assert run.result == run.model and not run.adapter.exists()
    start = run.events("start")[0]
    own = AutoModelForCausalLM.from_pretrained(run.model).eval()
    assert start["trainable_parameters"] == start["total_parameters"] == own.num_parameters()
    before = models.load_base(pretrained_base_model).state_dict()
    still = [name for name, weights in own.state_dict().items() if torch.equal(weights, before[name])]
    assert not still
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    question, answer = short_rows(1)[0]["messages"]
    asked = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = own.generate(**asked, max_new_tokens=LONGEST, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert tokenizer.decode(said) == answer["content"] + tokenizer.eos_token

"""Paired streaming: each pane's reply is that of its model alone, and nothing is left behind."""

import threading

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sft import chat, models
from sft.chat import Contest, Sampling, stream
from sft.config import TrainConfig
from sft.errors import RunError, TemplateError
from sft.runs import create_run
from sft.train import train

PROMPTS = ["Hello?", "What is the capital of France?", "1 2 3", "Tell me a long story about a fox and a dog.", "x"]


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """A tiny model tuned for a few steps at a high rate, so that its replies differ from the base's."""
    folder = tmp_path_factory.mktemp("runs")
    rows = folder / "rows.jsonl"
    rows.write_text('{"question": "Hello?", "answer": "Paris."}\n' * 8)
    config = TrainConfig.from_dict(
        {"model": str(tiny_model), "dataset": str(rows), "max_steps": 150, "learning_rate": 0.02, "lora_r": 8}
    )
    made = create_run(config, folder, "tiny")
    train(config, made)
    return made


def last(replies):
    found = None
    for found in replies:  # noqa: B007
        pass
    return found


def alone(model, prompt, contest, count):
    """Greedy reply of one model by itself, without batch, padding or mixed adapters."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
        eos_token_id=contest.chat_format.stop_token_ids, pad_token_id=0,
    )  # fmt: skip
    return output[0, len(prompt) :].tolist()


def test_replies_are_those_of_each_model_alone(run, tiny_model):
    contest = Contest.of_run(run)
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    untouched = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tuned = PeftModel.from_pretrained(base, str(run.adapter)).eval()
    differ = 0
    for text in PROMPTS:
        prompt = contest.chat_format.prompt_ids([{"role": "user", "content": text}])
        replies = last(stream(contest, [prompt, prompt], Sampling(max_new_tokens=24)))
        assert replies[0].token_ids == alone(untouched, prompt, contest, 24)
        assert replies[1].token_ids == alone(tuned, prompt, contest, 24)
        differ += replies[0].token_ids != replies[1].token_ids
    assert differ


def test_histories_of_different_length_do_not_disturb_each_other(run, tiny_model):
    contest = Contest.of_run(run)
    short, long = (contest.chat_format.prompt_ids([{"role": "user", "content": text}]) for text in ("x", "fox " * 30))
    crossed = last(stream(contest, [short, long], Sampling(max_new_tokens=16)))
    assert crossed[0].token_ids == last(stream(contest, [short, short], Sampling(max_new_tokens=16)))[0].token_ids
    assert crossed[1].token_ids == last(stream(contest, [long, long], Sampling(max_new_tokens=16)))[1].token_ids


def test_a_base_model_alone_gives_one_reply(tiny_model, run):
    contest = Contest.of_base(str(tiny_model))
    prompt = contest.chat_format.prompt_ids([{"role": "user", "content": "Hello?"}])
    (reply,) = last(stream(contest, [prompt], Sampling(max_new_tokens=12)))
    paired = last(stream(Contest.of_run(run), [prompt, prompt], Sampling(max_new_tokens=12)))
    assert reply.token_ids == paired[0].token_ids


def test_replies_come_token_by_token_and_end_at_the_stop_token(run):
    contest = Contest.of_run(run)
    prompt = contest.chat_format.prompt_ids([{"role": "user", "content": "Hello?"}])
    lengths, replies = [], None
    for replies in stream(contest, [prompt, prompt], Sampling(max_new_tokens=40)):
        lengths.append(len(replies[1].token_ids))
    assert lengths[:3] == [1, 2, 3]
    tuned = replies[1]
    assert tuned.stopped
    assert tuned.token_ids[-1] in contest.chat_format.stop_token_ids
    assert tuned.text == "Paris."
    assert len(tuned.token_ids) < len(lengths)  # the base went on while the tuned reply had ended


@pytest.mark.parametrize("how", ["event", "close"])
def test_a_reply_can_be_stopped_and_the_next_one_is_whole(run, how):
    contest, cancelled = Contest.of_run(run), threading.Event()
    prompt = contest.chat_format.prompt_ids([{"role": "user", "content": "x"}])
    whole = last(stream(contest, [prompt, prompt], Sampling(max_new_tokens=60)))[0].token_ids
    replies = stream(contest, [prompt, prompt], Sampling(max_new_tokens=60), cancelled)
    first = next(replies)[0].token_ids[:]
    if how == "close":
        replies.close()
    else:
        cancelled.set()
        assert len(last(replies)[0].token_ids) < 60
    assert first == whole[:1]
    assert not chat.WEIGHTS.lock.locked()
    assert last(stream(contest, [prompt, prompt], Sampling(max_new_tokens=60)))[0].token_ids == whole


def test_the_same_seed_samples_the_same(run):
    contest = Contest.of_run(run)
    prompt = contest.chat_format.prompt_ids([{"role": "user", "content": "x"}])
    sampled = [
        last(stream(contest, [prompt, prompt], Sampling(temperature=1.0, top_p=0.9, max_new_tokens=20, seed=seed)))[0]
        for seed in (1, 1, 2)
    ]
    assert sampled[0].token_ids == sampled[1].token_ids != sampled[2].token_ids


def test_a_conversation_that_does_not_fit_is_refused(run):
    contest = Contest.of_run(run)
    with pytest.raises(RunError, match="longer than the 512"):
        next(stream(contest, [[5] * 500] * 2, Sampling(max_new_tokens=100)))
    assert not chat.WEIGHTS.lock.locked()


def test_a_run_without_adapter_is_refused(tmp_path):
    config = TrainConfig.from_dict({"dataset": "examples/support-json.jsonl"})
    with pytest.raises(RunError, match="has no adapter"):
        Contest.of_run(create_run(config, tmp_path))


def test_another_chat_format_than_the_adapters_is_refused(run):
    path = run.folder / "chat_template.jinja"
    original = path.read_bytes()
    try:
        path.write_bytes(original + b" ")
        with pytest.raises(TemplateError, match="is not the one that the adapter was trained with"):
            Contest.of_run(run)
    finally:
        path.write_bytes(original)


def test_a_byte_cut_in_the_middle_of_a_character_is_not_shown(run):
    form = Contest.of_run(run).chat_format
    ids = form.tokenizer("日", add_special_tokens=False)["input_ids"]
    assert [chat.reply_text(ids[:count], form) for count in range(1, len(ids) + 1)] == [""] * (len(ids) - 1) + ["日"]


def test_a_run_trained_anew_under_its_old_name_answers_with_its_new_adapter(run, tmp_path):
    import os
    import shutil

    from safetensors.torch import load_file, save_file

    again = type(run)(tmp_path / "again")
    shutil.copytree(run.folder, again.folder)
    contest = Contest.of_run(again)
    prompt = contest.chat_format.prompt_ids([{"role": "user", "content": "Hello?"}])
    before = last(stream(contest, [prompt, prompt], Sampling(max_new_tokens=8)))
    path = again.adapter / "adapter_model.safetensors"
    save_file({name: weights * 0 for name, weights in load_file(path).items()}, path)
    os.utime(path, (1, 1))
    after = last(stream(Contest.of_run(again), [prompt, prompt], Sampling(max_new_tokens=8)))
    assert before[0].token_ids != before[1].token_ids
    assert after[0].token_ids == after[1].token_ids == before[0].token_ids


def test_models_are_kept_and_adapters_beyond_a_few_are_let_go(run, tmp_path):
    import shutil

    weights = chat.Weights()
    contest = Contest.of_run(run)
    model, same = weights.load(contest)
    assert model is same
    for number in range(chat.KEPT_ADAPTERS + 2):
        copy = tmp_path / f"run{number}"
        shutil.copytree(run.folder, copy)
        assert weights.load(Contest.of_run(type(run)(copy))) == [model, model]
    assert len(weights._adapters) == chat.KEPT_ADAPTERS
    assert len(model.peft_config) == chat.KEPT_ADAPTERS
    assert models.locate(run.config().model) == contest.folder

"""Paired streaming: each pane's reply is that of its model alone, and nothing is left behind."""

import gc
import json
import subprocess
import sys
import time
from contextlib import contextmanager
from random import Random

import psutil
import pytest
import torch
from peft import PeftModel
from tiny_models import save_tiny_model, save_tiny_run
from transformers import AutoModelForCausalLM

from sft import chat, weights
from sft.chat import Sampling, stream
from sft.chat_format import preset
from sft.config import TrainConfig
from sft.contest import Contest, Contestant
from sft.errors import RunError, TemplateError
from sft.passes import Reader
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


def test_the_seconds_of_a_reply_begin_when_it_is_asked(run, monkeypatch):
    contest, load = Contest.of_run(run), chat.WEIGHTS.load
    monkeypatch.setattr(chat.WEIGHTS, "load", lambda contest: time.sleep(0.5) or load(contest))
    replies = stream(contest, [[5, 6]] * 2, Sampling(max_new_tokens=2))
    assert all(reply.seconds > 0.5 for reply in next(replies))


def test_a_reply_can_be_stopped_and_the_next_one_is_whole(run):
    contest = Contest.of_run(run)
    prompt = contest.chat_format.prompt_ids([{"role": "user", "content": "x"}])
    whole = last(stream(contest, [prompt, prompt], Sampling(max_new_tokens=60)))[0].token_ids
    replies = stream(contest, [prompt, prompt], Sampling(max_new_tokens=60))
    first = next(replies)[0].token_ids[:]
    replies.close()
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


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_a_seed_samples_what_generate_samples_from_the_base_model_alone(run, tiny_model, top_p):
    contest = Contest.of_run(run)
    prompt = contest.chat_format.prompt_ids([{"role": "user", "content": "x"}])
    paired = last(stream(contest, [prompt, prompt], Sampling(1.0, top_p, max_new_tokens=20, seed=5)))
    (alone,) = last(stream(Contest.of_base(str(tiny_model)), [prompt], Sampling(1.0, top_p, max_new_tokens=20, seed=5)))
    base, ids = AutoModelForCausalLM.from_pretrained(tiny_model).eval(), torch.tensor([prompt])
    torch.manual_seed(5)
    generated = base.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=top_p, max_new_tokens=20,
        eos_token_id=contest.chat_format.stop_token_ids, pad_token_id=0,
    )[0, len(prompt) :].tolist()  # fmt: skip
    assert paired[0].token_ids == alone.token_ids == generated
    assert len(set(generated)) > 5


def test_three_answer_as_each_would_alone(run):
    contest = Contest.of_run(run)
    form = contest.chat_format
    short, long = (form.prompt_ids([{"role": "user", "content": text}]) for text in ("x", "fox " * 30))
    three = last(stream(contest.with_contestant(Contestant()), [short, short, long], Sampling(max_new_tokens=12)))
    two = last(stream(contest, [short, short], Sampling(max_new_tokens=12)))
    (third,) = last(stream(Contest.of_base(contest.model_name), [long], Sampling(max_new_tokens=12)))
    assert [reply.token_ids for reply in three] == [*(reply.token_ids for reply in two), third.token_ids]


def test_a_turn_reads_only_what_is_new_and_answers_as_if_it_had_read_all(run, monkeypatch):
    contest, read = Contest.of_run(run), []
    whole_read = Reader.read
    monkeypatch.setattr(
        Reader, "read",
        lambda self, rows, new, last=None: read.append([len(ids) for ids in new]) or whole_read(self, rows, new, last),
    )  # fmt: skip
    history, prompts = [], []
    for question in ("x", "Tell me more about the fox.", "1 2 3"):
        history.append({"role": "user", "content": question})
        prompts.append(contest.chat_format.prompt_ids(history))
        began = len(read)
        replies = last(stream(contest, [prompts[-1]] * 2, Sampling(max_new_tokens=10)))
        if len(history) > 1:
            # what the template adds may end in another token than the reply did
            assert max(read[began]) <= len(prompts[-1]) - len(prompts[-2]) + 1
        chat.WEIGHTS.forget()
        fresh = last(stream(contest, [prompts[-1]] * 2, Sampling(max_new_tokens=10)))
        assert [reply.token_ids for reply in fresh] == [reply.token_ids for reply in replies]
        history.append({"role": "assistant", "content": replies[0].text})


def test_what_a_conversation_begins_with_is_read_ahead(run):
    contest, system = Contest.of_run(run), [{"role": "system", "content": "Talk of the fox and the dog alone."}]
    prompt = contest.chat_format.prompt_ids([*system, {"role": "user", "content": "Hello?"}])
    chat.WEIGHTS.forget()
    whole = last(stream(contest, [prompt] * 2, Sampling(max_new_tokens=8)))
    chat.WEIGHTS.forget()
    for _ in range(2):  # a second time finds it read
        chat.get_ready(contest, system)
    model = chat.WEIGHTS.load(contest)[0].reader
    model.file()
    read = [len(row.token_ids) for _, row in model.rows]
    assert len(read) == 2
    assert len(prompt) - 20 < read[0] == read[1] < len(prompt)
    ready = last(stream(contest, [prompt] * 2, Sampling(max_new_tokens=8)))
    assert [reply.token_ids for reply in ready] == [reply.token_ids for reply in whole]


@contextmanager
def broken(contest: Contest):
    """Passes of the contest's model break off after their first layer."""

    def break_off(*given):
        raise RuntimeError("broke off")

    with chat.WEIGHTS.lock:
        model = chat.WEIGHTS.load(contest)[0].reader.model
    hook = model.get_decoder().layers[1].register_forward_pre_hook(break_off)
    try:
        yield
    finally:
        hook.remove()


def one_turn(turn: int, contest: Contest, prompt: list[int]) -> None:
    """A paired reply; some are stopped, before some a question is refused and another breaks off in its pass."""
    replies = stream(contest, [prompt] * 2, Sampling(max_new_tokens=3))
    next(replies)
    if turn % 11 == 0:
        replies.close()
        return
    if turn % 13 == 0:
        with pytest.raises(RunError):
            next(stream(contest, [[5] * 510] * 2, Sampling(max_new_tokens=3)))
        with broken(contest), pytest.raises(RuntimeError, match="broke off"):
            next(stream(contest, [[1, 2, 3]] * 2, Sampling(max_new_tokens=3)))
    list(replies)


def assert_little_is_held() -> None:
    """One model, as many adapters and rows as there may be. What came back is filed first."""
    (model,) = chat.WEIGHTS._living.values()
    chat.WEIGHTS._file()
    assert len(model.adapters) <= weights.KEPT_ADAPTERS
    assert 10 < len(model.rows) < 70
    assert sum(row.past.bytes for _, row in model.rows) <= weights.KEPT_PASTS


def tensors() -> int:
    """How many there are."""
    gc.collect()
    return sum(type(each) in (torch.Tensor, torch.nn.Parameter) for each in gc.get_objects())


def test_after_a_thousand_replies_they_are_still_those_of_a_fresh_process(tiny_model, tmp_path, monkeypatch):
    """With stops, errors, histories, switches between more adapters than are kept, and now and then another base."""
    monkeypatch.setattr(weights, "KEPT_PASTS", 2_000_000)
    bases = [tiny_model, save_tiny_model(tmp_path / "base", preset("chatml"), seed=1)]
    runs = [save_tiny_run(tmp_path, f"run{seed}", bases[seed == 7], seed) for seed in range(8)]
    contests = list(map(Contest.of_run, runs))
    form = contests[0].chat_format
    prompts = [form.prompt_ids([{"role": "user", "content": text * times}]) for text in PROMPTS for times in (1, 3)]

    def all_replies():
        asked = [stream(each, [prompt] * 2, Sampling(max_new_tokens=3)) for each in contests for prompt in prompts]
        return [[reply.token_ids for reply in last(replies)] for replies in asked]

    chat.WEIGHTS.forget()
    tensors_before = tensors()
    before, process, held, draw = all_replies(), psutil.Process(), [], Random(0)
    for turn in range(1000):
        elsewhere = turn % 125 >= 110
        one_turn(turn, contests[7] if elsewhere else contests[draw.randrange(7)], draw.choice(prompts))
        if turn % 125 == 109:  # a conversation that is still under way when the base changes
            waiting = stream(contests[0], [prompts[0]] * 2, Sampling(max_new_tokens=3))
            next(waiting)
        if turn % 125 == 115:
            assert [reply.token_ids for reply in last(waiting)] == before[0]
        if turn % 100 == 99:
            assert_little_is_held()
            held.append(process.memory_info().rss)
    assert held[-1] - held[2] < 6e6  # of which one step of 4 is the allocator's
    assert all_replies() == before
    del waiting
    chat.WEIGHTS.forget()
    assert tensors() == tensors_before
    said = subprocess.run(
        [sys.executable, "-m", "sft", "chat", runs[1].name, "--runs-dir", str(tmp_path), "--prompt", "Hello?",
         "--max-new-tokens", "12", "--json"], capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    replies = last(stream(contests[1], [prompts[0]] * 2, Sampling(max_new_tokens=12)))
    assert [reply.token_ids for reply in replies] == [json.loads(said)[name]["token_ids"] for name in ("base", "tuned")]


def test_a_beginning_that_is_longer_than_the_model_can_read_is_left_alone(run):
    contest = Contest.of_run(run)
    chat.WEIGHTS.forget()
    chat.get_ready(contest, [{"role": "system", "content": "fox " * 600}])
    model = chat.WEIGHTS.load(contest)[0].reader
    model.file()
    assert model.rows == []


def test_a_stream_that_the_garbage_collector_ends_holds_nobody_up(run):
    contest = Contest.of_run(run)
    prompt = contest.chat_format.prompt_ids([{"role": "user", "content": "x"}])
    abandoned = [stream(contest, [prompt] * 2, Sampling(max_new_tokens=9))]
    abandoned.append(abandoned)
    next(abandoned[0])
    del abandoned
    with chat.WEIGHTS.lock:  # as a pass holds it, in which the collector may run
        gc.collect()
    assert last(stream(contest, [prompt] * 2, Sampling(max_new_tokens=9)))


def test_a_prompt_without_a_token_is_refused(run):
    with pytest.raises(RunError, match="nothing to answer"):
        next(stream(Contest.of_run(run), [[5], []], Sampling()))


def test_conversations_that_take_turns_do_not_meet(run, tiny_model):
    pair, base = Contest.of_run(run), Contest.of_base(str(tiny_model))
    prompts = [pair.chat_format.prompt_ids([{"role": "user", "content": text}]) for text in ("x", "fox " * 9)]
    sampling = Sampling(max_new_tokens=15)
    alone = last(stream(pair, [prompts[0]] * 2, sampling)), last(stream(base, [prompts[1]], sampling))
    together = stream(pair, [prompts[0]] * 2, sampling), stream(base, [prompts[1]], sampling)
    found = [None, None]
    for found[0], found[1] in zip(*together, strict=False):
        pass
    for at in (0, 1):
        found[at] = last(together[at]) or found[at]
        assert [reply.token_ids for reply in found[at]] == [reply.token_ids for reply in alone[at]]


def test_complete_gives_every_prompt_its_own_reply(run):
    contest = Contest.of_run(run)
    texts = ["Hello?", *(f"fox {'and dog ' * n}" for n in range(chat.AT_ONCE + 3))]
    prompts = [contest.chat_format.prompt_ids([{"role": "user", "content": text}]) for text in texts]
    shares, stops = [], contest.chat_format.stop_token_ids
    with chat.WEIGHTS.lock:
        voice = chat.WEIGHTS.load(contest)[1]
    found = chat.complete(voice, prompts, stops, [12] * len(prompts), shares.append)
    for prompt, reply in zip(prompts, found, strict=True):
        assert reply == last(stream(contest, [prompt, prompt], Sampling(max_new_tokens=12)))[1].token_ids
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert found[0][-1] in stops


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


def test_read_gives_each_contestants_log_probabilities(run, tiny_model):
    contest = Contest.of_run(run)
    prompt = contest.chat_format.prompt_ids([{"role": "user", "content": "Hello?"}])
    base, tuned = chat.read(contest, [prompt, [*prompt, 5]], 2)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    alone = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(run.adapter)).eval()
    with torch.inference_mode():
        wanted = plain(input_ids=torch.tensor([prompt])).logits[0, -2:].log_softmax(-1)
        wanted_tuned = alone(input_ids=torch.tensor([[*prompt, 5]])).logits[0, -2:].log_softmax(-1)
    torch.testing.assert_close(base, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tuned, wanted_tuned, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(tuned[0], base[0], atol=1e-2)

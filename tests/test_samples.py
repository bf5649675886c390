"""What a model answers while it learns: when it is asked, what is written, and that training does not notice."""

import random
from itertools import pairwise

import pytest
import torch
from test_greedy import small

from sft.config import TrainConfig
from sft.messages import Conversation
from sft.runs import create_run
from sft.samples import BEYOND, FRAMES, SHARE, Samples, questions
from sft.train import train

ROWS = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(24)]


@pytest.fixture
def config(tiny_model, write_rows):
    def make(**settings):
        return TrainConfig.from_dict(
            {
                "model": str(tiny_model), "dataset": str(write_rows(ROWS)), "eval_share": 0.25, "max_steps": 20,
                "learning_rate": 0.01, "eval_strategy": "no", "lora_r": 4, "lora_dropout": 0.1, **settings,
            }
        )  # fmt: skip

    return make


def conversation(*contents: str, last: str = "assistant") -> Conversation:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    messages[-1]["role"] = last
    return Conversation(messages, None, "row")


# ---- which questions ----


def test_questions_are_the_first_that_end_in_an_answer_and_fit(chatml, config):
    rows = [
        conversation("Hello?", "Hi.", "And?", last="user"),
        conversation("Long?", "Yes. " * 300),
        conversation("One?", "1"),
        conversation("Two?", "2"),
        conversation("Three?", "3"),
    ]
    one, two = questions(iter(rows), chatml, config(max_steps=100))
    assert (one.messages, one.wanted) == (rows[2].messages[:-1], "1")
    assert two.wanted == "2"
    assert one.prompt == chatml.prompt_ids(rows[2].messages[:-1])
    assert one.prompt + one.answer == chatml.encode(rows[2]).input_ids
    assert one.room == len(one.answer) + BEYOND
    assert len(questions(rows, chatml, config(max_steps=99))) == 1
    assert questions(rows[:2], chatml, config()) == []


# ---- when ----


class Schedule(Samples):
    """The real schedule with a clock of its own: a step takes one second, a sample what it is told."""

    def __init__(self, run, cost):
        super().__init__(run, [], None)
        self.cost = cost

    def _sample(self, step, model):
        self.last = step
        self.costs.append(self.cost(step))
        self.run.append_event("sample", step=step, seconds=self.costs[-1], replies=[])

    def go(self, steps, of):
        if steps[0] == 1:
            self._sample(0, None)
        for step in steps:
            if self._due(step, of, 1.0):
                self._sample(step, None)
        return [event["step"] for event in self.run.events("sample")]


@pytest.mark.parametrize(
    ("max_steps", "cost"),
    [
        (60, lambda step: 0.5),
        (120, lambda step: 2.0 if step == 0 else 0.4),
        (1000, lambda step: 3.0),
        (1000, lambda step: 3.0 - step / 400),
        (400, lambda step: random.Random(step).uniform(0.1, 2.0)),
    ],
)
def test_samples_are_spread_over_the_run_and_cost_less_than_a_tenth(config, tmp_path, max_steps, cost):
    schedule = Schedule(create_run(config(), tmp_path), cost)
    taken = schedule.go(range(1, max_steps + 1), max_steps)
    assert taken[0] == 0 and taken[-1] == max_steps
    assert SHARE / 2 < sum(schedule.costs) / max_steps < 0.1
    gaps = [later - earlier for earlier, later in pairwise(taken)]
    assert max(gaps) <= max_steps / 2
    assert len(taken) == len(set(taken))


def test_a_very_short_run_has_its_first_and_its_last(config, tmp_path):
    assert Schedule(create_run(config(), tmp_path), lambda step: 5.0).go(range(1, 11), 10) == [0, 10]


def test_samples_that_cost_nothing_are_no_more_than_anyone_looks_at(config, tmp_path):
    taken = Schedule(create_run(config(), tmp_path), lambda step: 1e-6).go(range(1, 501), 500)
    assert FRAMES / 2 < len(taken) <= FRAMES


def test_a_resumed_run_goes_on_where_it_was(config, tmp_path):
    run = create_run(config(), tmp_path)
    whole = Schedule(create_run(config(), tmp_path, "whole"), lambda step: 1.0).go(range(1, 201), 200)
    Schedule(run, lambda step: 1.0).go(range(1, 91), 200)
    resumed = Schedule(run, lambda step: 1.0)
    assert resumed.go(range(91, 201), 200) == whole


# ---- in a real run ----


def test_a_run_shows_how_its_replies_change(config, tmp_path):
    settings = config(max_steps=40)
    run = create_run(settings, tmp_path)
    train(settings, run)
    samples = run.events("sample")
    assert (samples[0]["step"], samples[-1]["step"]) == (0, 40)
    assert all(sample["seconds"] > 0 for sample in samples)
    first, last = samples[0]["replies"][0], samples[-1]["replies"][0]
    assert [message["role"] for message in last["messages"]] == ["user"]
    assert last["wanted"].startswith("It is ")
    assert first["text"] != last["text"]
    assert not first["stopped"]


def test_training_does_not_notice(config, tmp_path, monkeypatch):
    settings = config(max_steps=6)

    def losses(name):
        run = create_run(settings, tmp_path, name)
        train(settings, run)
        return [event["loss"] for event in run.events("log")], run.events("sample")

    asked, samples = losses("asked")
    monkeypatch.setattr("sft.train.questions", lambda *given: [])
    unasked, none = losses("unasked")
    assert samples and not none
    assert asked == unasked


def test_a_stop_request_leaves_an_unfinished_sample_out(config, tmp_path, chatml):
    run = create_run(config(), tmp_path)
    found = questions([conversation("One?", "1")], chatml, config())
    samples, model = Samples(run, found, chatml), small()
    samples._sample(0, model)
    run.ask_to_stop()
    samples._sample(5, model)
    assert [event["step"] for event in run.events("sample")] == [0]
    assert model.training is False and torch.is_grad_enabled()

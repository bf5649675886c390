"""The whole journey on the embedded model, by the commands of the README; and one chat format from end to end."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from sft import data, models, tables
from sft.chat import Contest, Sampling, stream
from sft.chat_format import IGNORED, ChatFormat, preset
from sft.cli import main
from sft.runs import find_run

pytestmark = pytest.mark.real
EXAMPLES = sorted(path for path in Path("examples").glob("*.jsonl"))


def sft(*arguments):
    """What the command prints; in this process, which has imported what takes seconds."""
    with redirect_stdout(StringIO()) as said:
        assert main(list(arguments)) == 0, said.getvalue()[-3000:]
    return said.getvalue()


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory, embedded_model):
    """A runs folder with `tickets`, trained as the example config says, but for fewer steps and less measured."""
    folder = str(tmp_path_factory.mktemp("runs"))
    less = ("--set", "eval_strategy=no", "--set", "max_steps=32")
    command = [sys.executable, "-m", "sft", "train", "examples/support-json.yaml", *less]
    subprocess.run([*command, "--run-name", "tickets", "--runs-dir", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def plain_models(runs_dir, embedded_model):
    """The untouched base model, and a freshly loaded one with the saved adapter."""
    from peft import PeftModel

    base, to_adapt = models.load_base(embedded_model), models.load_base(embedded_model)
    return base, PeftModel.from_pretrained(to_adapt, str(find_run("tickets", Path(runs_dir)).adapter)).eval()


def test_tuning_beats_the_base_on_held_out_tickets(runs_dir):
    options = ("--limit", "6", "--examples", "1", "--json", "--runs-dir", runs_dir)
    arms = json.loads(sft("evaluate", "tickets", *options))["arms"]
    print({name: {key: value for key, value in arm.items() if key != "replies"} for name, arm in arms.items()})
    assert arms["tuned"]["rows"] == 6
    assert arms["base"]["valid_format"] <= 0.10
    assert arms["tuned"]["valid_format"] >= 0.90
    assert arms["tuned"]["exact_match"] >= 0.20
    assert arms["tuned"]["stop_rate"] >= 0.95
    assert arms["tuned"]["loss"] < arms["base"]["loss"] / 5


def test_both_panes_are_what_they_say(runs_dir, plain_models):
    """Token for token; and so does the command."""
    held_out = data.usable(tables.read_table("examples/support-json.eval.jsonl"))[0]
    asked = [held_out[0].messages[1]["content"], "What is the capital of France?"]

    contest = Contest.of_run(find_run("tickets", Path(runs_dir)))
    form = contest.chat_format

    def alone(model, prompt):
        ids = torch.tensor([prompt], device=model.device)
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12,
            eos_token_id=form.stop_token_ids, pad_token_id=form.stop_token_ids[0],
        )  # fmt: skip
        return output[0, len(prompt) :].tolist()

    system = "You file support tickets for Northwind Home."
    talks = [[{"role": "system", "content": system}, {"role": "user", "content": question}] for question in asked]
    prompts = [form.prompt_ids(talk) for talk in talks]
    panes = [list(stream(contest, [prompt] * 2, Sampling(max_new_tokens=12)))[-1] for prompt in prompts]
    for model, replies in zip(plain_models, zip(*panes, strict=True), strict=True):
        assert [reply.token_ids for reply in replies] == [alone(model, prompt) for prompt in prompts]

    said = sft(
        "chat", "tickets", "--system", system, "--prompt", asked[0], "--max-new-tokens", "12", "--json",
        "--runs-dir", runs_dir,
    )  # fmt: skip
    by_command = json.loads(said)
    assert by_command["prompt_token_ids"] == prompts[0]
    for name, pane in zip(("base", "tuned"), panes[0], strict=True):
        assert by_command[name] == {"text": pane.text, "token_ids": pane.token_ids, "stopped": pane.stopped}


TALKS = [
    ["What is the capital of France?", "And of Italy?", "Which of them is larger?"],
    ["Say hello.", "Now in French.", "And in one word of German."],
    ["My kettle leaks, order AB-1234. It is urgent!", "Thank you. And the lamp?", "Answer in one word: red or blue?"],
    ["Write a poem about the sea.", "Shorter, please.", "What was the poem about?"],
    ["2 + 2 = ?", "And times three?", "Is that an even number? Answer yes or no."],
    ["Name a colour.", "Another one.", "Which of both is warmer?"],
    ["Where is my parcel? Order XY-9876", "It should have come on Monday.", "Please file this as a ticket."],
]


def test_conversations_of_several_turns_are_those_of_each_model_alone(runs_dir, plain_models):
    """Every reply is made from what was read in earlier turns. A plain pass over what all turns came to says what each
    model alone finds likeliest at each place: that has to be the reply."""
    contest = Contest.of_run(find_run("tickets", Path(runs_dir)))
    stopped, lengths = 0, set()
    for questions in TALKS:
        histories, said = [[], []], [[], []]
        for question in questions:
            for history in histories:
                history.append({"role": "user", "content": question})
            prompts = list(map(contest.chat_format.prompt_ids, histories))
            replies = list(stream(contest, prompts, Sampling(max_new_tokens=12)))[-1]
            for side, reply in enumerate(replies):
                said[side].append((prompts[side], reply.token_ids))
                histories[side].append({"role": "assistant", "content": reply.text})
                stopped += reply.stopped
                lengths.add(len(reply.token_ids))
        for model, turns in zip(plain_models, said, strict=True):
            assert [reply for _, reply in turns] == _likeliest(model, turns)
    assert stopped >= 5
    assert len(lengths) >= 3, lengths


def _likeliest(model, turns):
    """What the model would say at each token of each turn's reply, in as few plain passes as there are beginnings."""
    found, read = [None] * len(turns), []
    for at, (prompt, reply) in sorted(enumerate(turns), key=lambda turn: -len(turn[1][0])):
        if read[: len(prompt + reply)] != prompt + reply:
            read = prompt + reply
            with torch.inference_mode():
                likeliest = model(input_ids=torch.tensor([read], device=model.device)).logits[0].argmax(-1).tolist()
        found[at] = likeliest[len(prompt) - 1 : len(prompt + reply) - 1]
    return found


@pytest.mark.parametrize("template", [None, preset("chatml"), preset("plain")], ids=["own", "chatml", "plain"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name.removesuffix(".jsonl"))
def test_preview_training_and_chat_have_the_same_ids(embedded_model, path, template):
    tokenizer = models.load_tokenizer(embedded_model)
    tokenizer.chat_template = template or tokenizer.chat_template
    form = ChatFormat.of(tokenizer)
    for conversation in data.usable(tables.read_table(str(path)))[0]:
        messages = conversation.messages
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        encoded = form.encode(conversation)
        assert encoded.input_ids == ids
        labelled = [token for token in encoded.labels if token != IGNORED]
        last = messages[-1]["content"]
        assert tokenizer.decode(labelled).rstrip().removesuffix("<|im_end|>").endswith(last)
        prompt = form.prompt_ids(messages[:-1])
        assert ids[: len(prompt)] == prompt


def test_the_preview_shows_those_ids_too(embedded_model, tmp_path):
    conversation = data.usable(tables.read_table("examples/assistant.jsonl"))[0][0]
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(conversation.messages))
    shown = json.loads(sft("preview", "--messages", str(path), "--json"))
    encoded = ChatFormat.of(models.load_tokenizer(embedded_model)).encode(conversation)
    assert shown["token_ids"] == encoded.input_ids
    assert shown["assistant_mask"] == [int(label != IGNORED) for label in encoded.labels]

"""What differs between base and tuned, against models of plain transformers and PEFT that read alone."""

from dataclasses import replace
from shutil import rmtree

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_run
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

from sft import chat, compare
from sft.causes import likely_causes
from sft.chat import Contest
from sft.compare import Candidate, Proof
from sft.passes import Reader
from sft.run import Run
from sft.weight_change import Change, change

QUESTION, OTHER = ([{"role": "user", "content": text}] for text in ("What is the capital of France?", "1 2 3"))


@pytest.fixture
def make_run(tiny_model, tmp_path):
    """Makes a finished run of so many steps, whose adapter has normally distributed B matrices of this size."""

    def make(size: float, steps: int = 60) -> Run:
        run = save_tiny_run(tmp_path, f"size-{size}", tiny_model, seed=1)
        path = run.adapter / "adapter_model.safetensors"
        torch.manual_seed(1)
        adapter = load_file(path).items()
        save_file({name: torch.randn_like(each) * size if "lora_B" in name else each for name, each in adapter}, path)
        run.set_status("finished", step=steps, max_steps=60)
        return run

    return make


@pytest.fixture
def plain(tiny_model):
    """The base model alone, and with a run's adapter: neither has ever been near the other's."""

    def both(run: Run) -> list:
        base, other = (AutoModelForCausalLM.from_pretrained(tiny_model).eval() for _ in range(2))
        return [base, PeftModel.from_pretrained(other, str(run.adapter)).eval()]

    return both


def log_probabilities(model, token_ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([token_ids])).logits[0].log_softmax(-1)


def test_the_proof_is_what_two_separate_models_say(make_run, plain):
    run = make_run(10)
    contest = Contest.of_run(run)
    prompt = contest.chat_format.prompt_ids(QUESTION)
    shown = compare.proof(contest, prompt)
    base, tuned = (log_probabilities(model, prompt)[-1] for model in plain(run))
    wanted = kl_div(base, tuned, reduction="sum", log_target=True).item()
    other_way = kl_div(tuned, base, reduction="sum", log_target=True).item()
    assert shown.divergence == pytest.approx(wanted, rel=1e-3)
    assert abs(wanted - other_way) > 0.01 * wanted  # so that the direction is tested too
    assert shown.measurable
    likeliest = tuned.exp().topk(5)
    assert [each.tuned for each in shown.candidates[:5]] == pytest.approx(likeliest.values.tolist(), rel=1e-3)
    theirs = base.exp()[likeliest.indices].tolist()
    assert [each.base for each in shown.candidates[:5]] == pytest.approx(theirs, rel=1e-3)
    assert max(each.base for each in shown.candidates) == pytest.approx(base.exp().max().item(), rel=1e-3)


def test_the_norm_is_that_of_the_difference_of_all_weights(make_run, plain, tiny_model):
    run = make_run(10)
    base, tuned = plain(run)
    merged = tuned.merge_and_unload().state_dict()
    wanted = sum((merged[name] - weight).square().sum() for name, weight in base.state_dict().items()) ** 0.5
    found = change(Contest.of_run(run))
    assert found.norm == pytest.approx(wanted.item(), rel=1e-4)
    assert found.matrices == 14


def test_a_model_tuned_in_full_is_measured_by_its_weights(tmp_path, tiny_model):
    run = save_tiny_run(tmp_path, "full", tiny_model, seed=1)
    rmtree(run.adapter)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 0.5
    model.save_pretrained(run.model)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(run.model)
    contest = Contest.of_run(run)
    assert change(contest).norm == pytest.approx(0.5, rel=1e-5)
    shown = compare.proof(contest, contest.chat_format.prompt_ids(QUESTION))
    assert shown.divergence > 0


def test_the_shifts_are_what_two_separate_models_say(make_run, plain):
    run = make_run(10)
    contest = Contest.of_run(run)
    prompt = contest.chat_format.prompt_ids(QUESTION)
    reply = contest.chat_format.tokenizer("Paris 🎉\n<|im_end|>")["input_ids"]
    found = compare.shifts(contest, prompt, reply)
    base, tuned = (log_probabilities(model, prompt + reply)[len(prompt) - 1 : -1] for model in plain(run))
    for rows, said in ((base, [each.base for each in found]), (tuned, [each.tuned for each in found])):
        assert said == pytest.approx([rows[at, token].item() for at, token in enumerate(reply)], abs=1e-4)
    choices = list(zip(base.argmax(1).tolist(), tuned.argmax(1).tolist(), strict=True))
    assert [each.choices_differ for each in found] == [one != other for one, other in choices]
    assert compare.choices_part(found) == next(at for at, (one, other) in enumerate(choices) if one != other)
    assert found[-1].text == "<|im_end|>"
    differences = (tuned - base)[range(len(reply)), reply].abs()
    assert compare.strongest(found, 3) == differences.topk(3).indices.tolist()
    assert compare.shifts(contest, prompt, []) == []


def test_a_long_reply_is_judged_in_parts_as_it_is_whole(make_run, monkeypatch):
    contest, sizes, whole_read = Contest.of_run(make_run(10)), [], Reader.read
    prompt, reply = contest.chat_format.prompt_ids(QUESTION), [*range(5, 105)]

    def read(self, rows, new, last=None):
        sizes.append(max(last))
        return whole_read(self, rows, new, last)

    monkeypatch.setattr(Reader, "read", read)
    whole = compare.shifts(contest, prompt, reply)
    monkeypatch.setattr(chat, "JUDGED", 16)
    parts = compare.shifts(contest, prompt, reply)
    assert sizes == [100, *[16] * 6, 4]
    for one, other in zip(whole, parts, strict=True):
        assert (one.base, one.tuned) == pytest.approx((other.base, other.tuned), abs=1e-4)
        assert (one.base_choice, one.tuned_choice) == (other.base_choice, other.tuned_choice)


def test_replies_part_where_they_first_differ_or_one_ends():
    assert compare.parting([1, 2, 3], [1, 2, 3]) is None
    assert compare.parting([1, 2, 3], [1, 9, 3]) == 1
    assert compare.parting([1, 2], [1, 2, 3]) == 2
    assert compare.parting([], [4]) == 0


# ---- why nothing measurable changed ----


def causes(contest: Contest, prompt_ids: list[int] | None = None) -> str:
    """The causes at a prompt at which nothing measurable has changed."""
    prompt_ids = prompt_ids or contest.chat_format.prompt_ids(QUESTION)
    shown = compare.proof(contest, prompt_ids)
    assert not shown.measurable
    return "\n".join(likely_causes(contest, prompt_ids, shown))


@pytest.mark.parametrize(
    ("steps", "cause"), [(0, "ended before its first step"), (1, "after 1 step at a learning rate of 0.0005")]
)
def test_an_adapter_of_zeros_has_changed_nothing(make_run, steps, cause):
    contest = Contest.of_run(make_run(0.0, steps))
    assert cause in causes(contest)
    assert compare.proof(contest, contest.chat_format.prompt_ids(QUESTION)).divergence == 0


def test_an_adapter_of_no_numbers_is_told(make_run):
    assert causes(Contest.of_run(make_run(float("nan")))).startswith("The adapter holds numbers that are none")


def test_a_weak_adapter_is_told_by_its_own_data_and_its_losses(make_run):
    run = make_run(1e-6)
    assert "too little to show at this prompt" in causes(Contest.of_run(run))
    run.append_event("sample", step=0, replies=[{"messages": OTHER, "text": "", "stopped": True}])
    assert causes(Contest.of_run(run)).startswith("Nor do they differ at a prompt of the run's own data")
    run.append_event("log", step=1, loss=3.0)
    run.append_event("log", step=60, loss=2.99)
    said = causes(Contest.of_run(run))
    assert "from 3.000 at step 1 to 2.990 at step 60: the learning rate, 0.0005, is too low" in said


def test_a_prompt_unlike_the_data_is_told_from_a_weak_adapter(make_run):
    low, high, apart = 0.01, 1.0, [0, 0]
    while not min(apart) < compare.MEASURABLE <= max(apart):  # an adapter of a size that one prompt shows, one not
        size = (low * high) ** 0.5
        run = make_run(size)
        contest = Contest.of_run(run)
        ids = [contest.chat_format.prompt_ids(messages) for messages in (QUESTION, OTHER)]
        apart = [compare.proof(contest, each).divergence for each in ids]
        low, high = (size, high) if max(apart) < compare.MEASURABLE else (low, size)
    asked, known = (QUESTION, OTHER) if apart[0] < apart[1] else (OTHER, QUESTION)
    run.append_event("sample", step=0, replies=[{"messages": known, "text": "", "stopped": True}])
    said = causes(contest, contest.chat_format.prompt_ids(asked))
    assert said.startswith("The adapter works")
    assert "This prompt is unlike that data." in said


def test_another_template_is_told(make_run):
    run = make_run(1e-6)
    contest = Contest.of_run(run)
    assert "does not end as in training" in causes(contest, contest.chat_format.tokenize("What is it?")[0])
    path = run.folder / "chat_template.jinja"
    path.write_text(path.read_text() + "{# changed #}")
    assert "in another chat format" in causes(Contest.of_run(run, other_format=True))


def test_two_that_are_sure_of_their_first_token_may_part_later(make_run):
    contest = Contest.of_run(make_run(1e-6))
    shown = Proof(Change(1.0, 4), 0.0, [Candidate("{", 0.999, 0.998)])
    (cause,) = likely_causes(contest, contest.chat_format.prompt_ids(QUESTION), shown)
    assert cause.startswith("Both are sure of this first token (99.90% and 99.80%)")


def test_the_model_before_its_first_step_has_no_adapter(tiny_model):
    contest = Contest.of_base(str(tiny_model))
    assert "before its first training step" in causes(replace(contest, contestants=contest.contestants * 2))

"""Losses of wanted answers: those of each row alone, whatever is shared, and of nothing but the answer."""

import pytest
import torch

from sft import models
from sft.answers import TOKENS_AT_ONCE, Answer, _batches, losses
from sft.chat_format import IGNORED, ChatFormat, preset
from sft.messages import Conversation
from sft.passes import Reader
from sft.weights import Voice


def row(number: int, length: int) -> Conversation:
    question = {"role": "user", "content": f"Is {number} even{'?' * length}"}
    return Conversation([question, {"role": "assistant", "content": ("yes", "no, it is odd")[number % 2]}])


EXAMPLES = [message for number in (90, 91) for message in row(number, 1).messages]


def answers_to(form: ChatFormat, rows: list[Conversation], examples: list[dict]) -> list[Answer]:
    asked = [[*examples, *row.messages[:-1]] for row in rows]
    return [Answer.of(form, each, form.prompt_ids(each), row) for each, row in zip(asked, rows, strict=True)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("examples", [EXAMPLES, []], ids=["shared", "bare"])
@pytest.mark.parametrize("count", [1, 30])
def test_losses_are_those_of_each_row_alone(tiny_model, attention, examples, count):
    """Rows together, which go on from what they share, and one by one, as eager attention takes them."""
    model, alone = models.load_base(tiny_model), models.load_base(tiny_model)
    model.set_attn_implementation(attention)
    form = ChatFormat.of(models.load_tokenizer(tiny_model))
    rows = [row(number, number % 7) for number in range(count)]
    answers, shares = answers_to(form, rows, examples), []
    for wanted, answer, loss in zip(
        rows, answers, losses(Voice(Reader(model), None, ""), answers, shares.append), strict=True
    ):
        labels = [label for label in answer.labels if label != IGNORED]
        assert form.tokenizer.decode(labels) == wanted.messages[-1]["content"] + "<|im_end|>"
        ids = torch.tensor([answer.before + answer.token_ids], device=alone.device)
        masked = torch.tensor([[IGNORED] * len(answer.before) + answer.labels], device=alone.device)
        assert loss == pytest.approx(alone(input_ids=ids, labels=masked).loss.item() * answer.labelled, abs=1e-3)
    assert shares == sorted(shares) and shares[-1] == 1


def test_rows_of_the_same_prompt_have_their_own_losses(tiny_model, chatml):
    same = [row(0, 1), Conversation([row(0, 1).messages[0], {"role": "assistant", "content": "never"}])]
    voice = Voice(Reader(models.load_base(tiny_model)), None, "")
    together, apart = losses(voice, answers_to(chatml, same, []), print), []
    for each in same:
        apart += losses(voice, answers_to(chatml, [each], []), print)
    assert together == pytest.approx(apart, abs=1e-4) and together[0] != pytest.approx(together[1], abs=1e-2)


def test_a_template_that_thinks_first_keeps_the_whole_answer(chatml):
    """Its prompt ends in what a training text does not hold."""
    header = "'<|im_start|>assistant\\n'"
    thinks = preset("chatml").replace(header, header[:-1] + "<think></think>'")
    assert "<think>" in thinks
    form = ChatFormat(chatml.tokenizer, thinks)
    (answer,) = answers_to(form, [row(0, 1)], [])
    labels = [label for label in answer.labels if label != IGNORED]
    assert form.tokenizer.decode(labels).startswith("yes")


def test_a_batch_has_as_many_tokens_as_a_pass_should():
    answers = [Answer([1] * 100, [2] * size, [2] * size) for size in (50, 50, 2000, 10, 10)]
    batches = list(_batches(answers, 90))
    assert [len(batch) for batch in batches] == [2, 1, 2]
    assert [answer for batch in batches for answer in batch] == answers and TOKENS_AT_ONCE < 2000

"""Rows of one pass: each as if it were alone, for every kind of model that may come."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

from sft.errors import ModelError
from sft.passes import Reader, Row

SIZE = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
MORE = {**SIZE, "intermediate_size": 48, "head_dim": 8, "max_position_embeddings": 128}
CONFIGS = {
    "llama": LlamaConfig(**MORE),
    "qwen2": Qwen2Config(**{**SIZE, "intermediate_size": 48, "max_position_embeddings": 128}),
    "qwen3": Qwen3Config(**MORE),
    "gemma2": Gemma2Config(**MORE, sliding_window=8),
    "gpt2": GPT2Config(vocab_size=99, n_positions=128, n_embd=32, n_layer=2, n_head=4),
}
ROWS = [[5, 6, 7], [9] * 20, [1, 2, 3, 4, 5, 6, 7, 8, 9]]


@pytest.fixture(params=CONFIGS)
def models(request):
    """A reader, and the same model untouched."""
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    same = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    same.load_state_dict(plain.state_dict())
    return Reader(same), plain


def logits(plain, ids):
    with torch.inference_mode():
        return plain(input_ids=torch.tensor([ids])).logits[0]


def test_rows_of_a_pass_are_read_as_each_alone_and_go_on_from_there(models):
    reader, plain = models
    rows = [Row() for _ in ROWS]
    first = reader.read(rows, ROWS, [2, 3, 1])
    for found, ids, count in zip(first, ROWS, [2, 3, 1], strict=True):
        torch.testing.assert_close(found, logits(plain, ids)[-count:], atol=1e-5, rtol=1e-4)
    more = [[11], [12, 13, 14, 15], [16, 17]]
    second = reader.read(rows, more)
    for found, ids, added in zip(second, ROWS, more, strict=True):
        torch.testing.assert_close(found, logits(plain, ids + added)[-1:], atol=1e-5, rtol=1e-4)
    assert [row.token_ids for row in rows] == [ids + added for ids, added in zip(ROWS, more, strict=True)]


def test_known_architectures_are_read_together_and_others_alone(models):
    reader, plain = models
    assert reader.together == (plain.config.model_type in ("llama", "qwen2", "qwen3"))


def test_a_row_can_go_two_ways_and_be_taken_back():
    torch.manual_seed(0)
    reader = Reader(AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval())
    row = Row()
    reader.read([row], [[5, 6, 7, 8]])
    other = row.copy(2)
    ways = reader.read([row, other], [[1], [7, 8, 1]])
    torch.testing.assert_close(*ways, atol=1e-5, rtol=1e-4)
    row.take_back(2)
    (again,) = reader.read([row], [[7, 8, 1]])
    torch.testing.assert_close(again, ways[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("new", "last"), [([[5], []], None), ([[5, 6, 7], [8]], [1, 2])])
def test_no_row_gets_what_follows_anothers_tokens(new, last):
    torch.manual_seed(0)
    reader = Reader(AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval())
    with pytest.raises(ValueError, match="every row reads a token at least"):
        reader.read([Row(), Row()], new, last)


def test_a_pass_that_raises_leaves_the_rows_as_they_were():
    torch.manual_seed(0)
    reader, row = Reader(AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()), Row()
    before = reader.read([row], [[5, 6, 7]])
    with pytest.raises(ModelError, match="knows 99 tokens, and its tokenizer gave number 1,000,000"):
        reader.read([row], [[1, 1_000_000]])
    assert (row.token_ids, row.past.length) == ([5, 6, 7], 3)
    assert reader.parts.tokens == []
    reader.model.register_forward_pre_hook(lambda *_: torch.empty(2**50, dtype=torch.uint8))
    with pytest.raises(ModelError, match="Out of memory while the model read 2 tokens"):
        reader.read([row], [[1, 2]])
    reader.model._forward_pre_hooks.clear()
    assert (row.token_ids, row.past.length) == ([5, 6, 7], 3)
    row.take_back(2)
    torch.testing.assert_close(reader.read([row], [[7]]), before, atol=1e-5, rtol=1e-4)


def test_few_tokens_take_one_thread_of_two_and_many_take_both():
    reader, before, took = (
        Reader(AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()),
        torch.get_num_threads(),
        [],
    )

    def note(*_):
        took.append(torch.get_num_threads())
        if len(took) % 3 == 0:
            raise RuntimeError("broke off")

    reader.model.register_forward_pre_hook(note)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            reader.read([Row(), Row()], [[5], [6]])
            reader.read([Row(), Row()], [[5] * 8, [6]])
            with pytest.raises(RuntimeError, match="broke off"):
                reader.read([Row()], [[5]])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert took == [1, 1, 1, 1, 2, 1]

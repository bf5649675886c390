"""What tokens read as, alone and in a row, whole characters or not."""

import random

import pytest
from tiny_models import tiny_tokenizer

from sft.token_text import byte_names, token_text, token_texts

TOKENIZER = tiny_tokenizer(None)


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_a_part_of_a_character_reads_as_its_bytes_and_the_last_part_as_the_character():
    assert token_texts(TOKENIZER, ids_of("🎉")) == ["⟨F0⟩", "⟨9F⟩", "⟨8E⟩", "🎉"]
    assert [token_text(TOKENIZER, token) for token in ids_of("🎉")] == ["⟨F0⟩", "⟨9F⟩", "⟨8E⟩", "⟨89⟩"]
    assert byte_names("<0xE6>") == "⟨E6⟩"  # as tokenizers with a fallback to bytes write it


@pytest.mark.parametrize("seed", range(20))
def test_the_texts_in_a_row_make_up_the_whole(seed):
    letters = random.Random(seed).choices([*"ab e.", "  ", "\n", "日", "🎉", "é", "France", "<|im_end|>"], k=30)
    token_ids = ids_of("".join(letters))
    texts = token_texts(TOKENIZER, token_ids)
    assert len(texts) == len(token_ids)
    assert "".join(text for text in texts if not text.startswith("⟨")) == TOKENIZER.decode(token_ids)


def test_bytes_that_make_up_no_character_hide_nothing():
    first = ids_of("🎉")[0]
    assert token_texts(TOKENIZER, [first, *ids_of("a"), first]) == ["⟨F0⟩", "a", "⟨F0⟩"]
    assert token_texts(TOKENIZER, []) == []

"""Control tokens that training never moved, told from a file of weights."""

import json
import struct

import numpy
import pytest

from sft import embeddings
from sft.embeddings import untrained

CONTROL = range(12)  # of 40 tokens: 2 and 3 are trained, 4 a little
KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def matrix():
    draw = numpy.random.default_rng(3)
    rows = draw.normal(size=(40, 64)).astype("f4")
    rows[:12] = rows[0] * (1 + 0.001 * draw.normal(size=(12, 64)))
    rows[2:4] = draw.normal(size=(2, 64))
    rows[4] *= 1.2
    return rows


def write(path, rows, kind="F32", name="model.embed_tokens.weight", metadata=True):
    """A safetensors file with another tensor before the rows."""
    if kind == "BF16":
        data = (rows.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    else:
        data = rows.astype(KINDS[kind]).tobytes()
    header = {"__metadata__": {"format": "pt"}} if metadata else {}
    header["norm.weight"] = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    header[name] = {"dtype": kind, "shape": list(rows.shape), "data_offsets": [12, 12 + len(data)]}
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(12) + data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "transformer.wte.weight"])
def test_untrained_rows_are_found(tmp_path, kind, name):
    write(tmp_path / "model.safetensors", matrix(), kind, name, metadata=kind != "F16")
    assert untrained(tmp_path, [0, 1, 2, 3, 4, 5, 11], CONTROL) == [0, 1, 5, 11]


def test_only_control_tokens_that_have_rows_are_asked_about(tmp_path):
    write(tmp_path / "model.safetensors", matrix())
    assert untrained(tmp_path, [20, 39, 40, 99], [*CONTROL, 40, 99]) == []  # words; rows that are not there
    assert untrained(tmp_path, [], CONTROL) == []
    assert untrained(tmp_path, [0], []) == []


def test_one_other_row_alike_is_not_enough(tmp_path):
    write(tmp_path / "model.safetensors", matrix())
    assert untrained(tmp_path, [0, 1], [0, 1, 2, 3]) == []
    assert untrained(tmp_path, [0, 1], [0, 1, 5, 2, 3]) == [0, 1]


def test_rows_of_nothing_but_zeros_are_untrained(tmp_path):
    rows = matrix()
    rows[:4] = 0
    write(tmp_path / "model.safetensors", rows)
    assert untrained(tmp_path, [0, 4], CONTROL) == [0]


def test_the_file_that_has_the_rows_is_found_among_others(tmp_path):
    write(tmp_path / "model-00001-of-00002.safetensors", matrix(), name="model.layers.0.weight")
    write(tmp_path / "model-00002-of-00002.safetensors", matrix())
    assert untrained(tmp_path, [0, 2], CONTROL) == [0]


@pytest.mark.parametrize(
    "content",
    [
        None, b"", b"abc", struct.pack("<Q", 2**63), struct.pack("<Q", 5) + b"{not}",
        struct.pack("<Q", 2) + b"\xff\xfe",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 28) + b'{"model.embed_tokens.weight"' + b":5}",
        struct.pack("<Q", 31) + b'{"model.embed_tokens.weight":5}', struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 32) + b'{"model.embed_tokens.weight":{}}', struct.pack("<Q", 3) + b"[1]",
    ],
)  # fmt: skip
def test_without_weights_nothing_is_said(tmp_path, content):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    assert untrained(tmp_path, [0, 1], CONTROL) == []


def test_weights_that_are_cut_off_or_of_another_kind_say_nothing(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, matrix())
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert untrained(tmp_path, [0, 1], CONTROL) == []
    path.write_bytes(whole.replace(b'"dtype": "F32", "shape": [40', b'"dtype": "I32", "shape": [40'))
    assert untrained(tmp_path, [0, 1], CONTROL) == []


@pytest.mark.real
def test_the_markers_of_the_embedded_model_were_trained(embedded_model):
    from sft.chat_format import ChatFormat
    from sft.models import load_tokenizer

    tokenizer = load_tokenizer(embedded_model)
    control = set(tokenizer.added_tokens_decoder)
    trained = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    assert not set(untrained(embedded_model, control, control)) & set(trained)
    assert len(untrained(embedded_model, control, control)) >= 5
    assert ChatFormat.of(tokenizer).stop_token_ids[0] in trained


def test_a_file_is_read_again_only_when_it_has_changed(tmp_path, monkeypatch):
    read = []
    mapped = embeddings._mapped
    monkeypatch.setattr(embeddings, "_mapped", lambda path: [read.append(path), mapped(path)][1])
    path = tmp_path / "model.safetensors"
    write(path, matrix())
    for _ in range(3):
        assert untrained(tmp_path, [0, 2], CONTROL) == [0]
    assert read == [path]
    write(path, numpy.random.default_rng(5).normal(size=(40, 64)).astype("f4"), name="longer.embed_tokens.weight")
    assert untrained(tmp_path, [0, 2], CONTROL) == []
    assert read == [path, path]

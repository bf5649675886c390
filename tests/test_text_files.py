"""Lines are the same whether a file is read whole or line by line, however its lines end."""

import random

import pytest

from sft.errors import DataError
from sft.text_files import lines, read_text


def line_by_line(path) -> list[str]:
    with path.open("rb") as file:
        found = list(lines(path, file))
    data = path.read_bytes()
    assert all(data[start:end].decode() == line for start, end, line in found)
    return [line for *_, line in found]


@pytest.mark.parametrize("seed", range(20))
def test_lines_and_their_bytes_are_those_of_the_whole_text(tmp_path, seed):
    draw = random.Random(seed)
    path = tmp_path / "a.jsonl"
    text = "".join(draw.choices(["a", "é", "日本", "\n", "\r", "\r\n", " ", "\u2028", "\x0b"], k=60))
    path.write_bytes(draw.choice([b"", b"\xef\xbb\xbf"]) + text.encode())
    assert line_by_line(path) == read_text(path).removesuffix("\n").split("\n")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xfea\0", "UTF-16"),
        (b"a\nb\n\xe9\n", "line 3 has the byte 0xe9"),
        (b"a\r\nb\0\nc", "line 2 holds binary data"),
        (b"a\0\nb\n\xe9\n", "line 3 has the byte 0xe9"),
    ],
)
def test_what_is_no_text_is_told_alike(tmp_path, data, said):
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    for read in (read_text, line_by_line):
        with pytest.raises(DataError, match=said):
            read(path)

"""The same rows out of every format; a file that is not what its ending says is told, with the line."""

import json

import pytest

from sft.errors import DataError
from sft.tables import read_table

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def test_every_format_reads_the_same(tmp_path):
    import pandas as pd

    rows = [{"question": "Why, “so”?", "answer": "Because\nit is."}, {"question": "é", "answer": "日本"}]
    frame = pd.DataFrame(rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text(json.dumps({"data": rows}))
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    for name in ("a.json", "b.json", "a.jsonl", "a.csv", "a.parquet"):
        assert list(read_table(str(tmp_path / name)).rows) == rows, name


def wrong_files():
    line = json.dumps(GOOD)
    yield "empty.jsonl", b"", "empty.jsonl is empty"
    yield "blank.jsonl", b"\n\n", "holds no rows"
    yield "list.json", b"[]", "holds no rows"
    yield "line7.jsonl", "\n".join([line] * 6 + [line[:-5]] + [line] * 2).encode(), "line 7: "
    yield "number.jsonl", b"3\n", "line 1: must be a JSON object"
    yield "binary.jsonl", b"PAR1\xff\xfe\x00", "not UTF-8 text"
    yield "binary.csv", b"a,b\n\x00,1\n", "binary data"
    yield "text.parquet", line.encode(), "is not a Parquet file"
    yield "digits.jsonl", f"{line}\n{{'a': {'9' * 5000}}}".replace("'", '"').encode(), "line 2: a number has too many"
    yield (
        "digits.json",
        f'[{{"a": "{"8" * 6000}"}},\n{{"a": {"9" * 5000}}}]'.encode(),
        "line 2 is not valid JSON: a num",
    )
    yield "deep.jsonl", f"{line}\n{'[' * 5000}".encode(), "line 2: lists and objects are nested too deeply"
    yield "deep.json", f'["{"]" * 9000}",\n{"[" * 5000}'.encode(), "line 2 is not valid JSON: lists and objects are"
    yield "lines.json", f"{line}\n{line}".encode(), "line 2 is not valid JSON"
    yield "object.json", line.encode()[:-1] + b', "more": 1}', "not a list of objects"
    yield "ragged.csv", b"question,answer\na,b\nc,d,e\n", "line 3 has not the 2 columns"
    yield "short.csv", b"question,answer\na,b\nc\n", "line 3 has not the 2 columns"
    yield "rows.xlsx", b"PK", "not a data format known here"


@pytest.mark.parametrize(("name", "content", "said"), list(wrong_files()), ids=lambda value: str(value)[:20])
def test_files_that_cannot_be_read(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(str(tmp_path / name))
    assert said in caught.value.message
    assert caught.value.hint


def test_a_row_of_a_csv_is_found_at_its_first_line(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer\n"a\nb",c\n\nd,e\n')
    table = read_table(str(tmp_path / "a.csv"))
    assert [table.place(index) for index in range(2)] == ["line 2", "line 5"]
    assert table.rows[0] == {"question": "a\nb", "answer": "c"}


def test_a_file_that_may_not_be_read_is_told(tmp_path):
    """Root may read everything, so it is nobody who tries."""
    import os
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
            path = Path(folder) / name
            path.write_text(json.dumps(GOOD))
            path.chmod(0)
            me = os.geteuid()
            if me == 0:
                os.seteuid(65534)
            try:
                with pytest.raises(DataError, match=f"{name} cannot be read: Permission denied"):
                    read_table(str(path))
            finally:
                os.seteuid(me)

"""One data file (JSONL, JSON, CSV, Parquet) → a table: its rows as they were read, and where a person finds each.

A file is read through once, so that all that is wrong with it is told together. Rows of JSONL and Parquet then stay on
the disk. Knows nothing about roles and messages.
"""

import csv
import hashlib
import io
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import fstat
from pathlib import Path

from sft.errors import DataError, listed
from sft.json_text import JsonProblem, loads
from sft.stored_rows import JsonLines, ParquetRows, stamp
from sft.text_files import lines, read_text

DIGESTED = 64 * 2**20  # bytes: a larger file takes too long to read only to know it again
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
REMEDIES = {  # for endings that are met often
    **dict.fromkeys((".gz", ".zip", ".zst", ".bz2", ".xz", ".tar", ".7z"), "Unpack it, and give the file inside."),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save the sheet as CSV, in UTF-8."),
    **dict.fromkeys((".tsv", ".tab"), "Rename it so that it ends in .csv: tabs between the columns are understood."),
    ".ndjson": "Rename it so that it ends in .jsonl.",
}
_MARKS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # between the columns of a CSV file


Tick = Callable[[float, str], None]  # how much is done (0 to 1), and what; it may raise to stop the work


@dataclass(frozen=True)
class Table:
    """Rows as they were read: `rows[i]` is a dict of columns, `place(i)` is where a person finds it."""

    source: str
    rows: Sequence[dict]
    unit: str = "row"
    numbers: Sequence[int] | None = None

    def place(self, index: int) -> str:
        return f"{self.unit} {self.numbers[index] if self.numbers else index + 1}"


def read_file(path: Path, tick: Tick = lambda share, said: None) -> Table:
    """The rows of one file. Raises DataError where it is not what its ending says, with the line that breaks it."""
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise DataError(
            f"{path.name} ends in {path.suffix or 'nothing'}, which is not a data format known here.",
            REMEDIES.get(suffix, f"Give a file that ends in {', '.join(SUFFIXES)}."),
        )
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise DataError(f"{path.name} is empty.", "Put one conversation on each line.")
        table = readers[suffix](path, tick)
    except OSError as error:
        raise _unreadable(path, error) from None
    if not table.rows:
        raise DataError(f"{path.name} holds no rows.", "Put one conversation on each line.")
    return table


def identity(path: Path) -> list:
    """The file's name and a digest of its content; of a large file, where it is and when it was written last."""
    try:
        status = path.stat()
        if status.st_size > DIGESTED:
            return [str(path.resolve()), *stamp(status)]
        return [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path.name} cannot be read: {error.strerror or error}", "Check that you may read it, and that it is whole."
    )


def _read_jsonl(path: Path, tick: Tick) -> Table:
    starts, ends, numbers = array("Q"), array("Q"), array("Q")
    broken, opening = [], ""
    with path.open("rb") as file:
        known = stamp(fstat(file.fileno()))
        for number, (start, end, line) in enumerate(lines(path, file), start=1):
            if number % 1000 == 0:
                tick(end / known[0], f"Reading {path.name}")
            if not line.strip():
                continue
            opening = opening or line.lstrip()[0]
            problem = _line_problem(line)
            if problem:
                broken.append(f"line {number}: {problem}")
            starts.append(start)
            ends.append(end)
            numbers.append(number)
    if broken:
        many = "1 line is" if len(broken) == 1 else f"{len(broken)} lines are"
        hint = "In a .jsonl file each line is one complete JSON object."
        if opening == "[":
            hint = "It looks like one JSON list: such a file must end in .json."
        raise DataError(f"{path.name}: {many} not valid JSON:\n{listed(broken)}", hint)
    return Table(path.name, JsonLines(path, known, starts, ends), "line", numbers)


def _line_problem(line: str) -> str | None:
    try:
        return None if isinstance(loads(line), dict) else "must be a JSON object {...}"
    except JsonProblem as problem:
        return problem.said


def _read_json(path: Path, tick: Tick) -> Table:
    try:
        rows = _unwrapped(loads(read_text(path)))
    except JsonProblem as problem:
        raise DataError(
            f"{path.name}: line {problem.line} is not valid JSON: {problem.said}",
            "A .json file holds one list of rows; a file with one object a line must end in .jsonl.",
        ) from None
    if not isinstance(rows, list):
        raise DataError(f"{path.name} is not a list of objects.", 'Write [{"messages": [...]}, …].')
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path.name}: row {number} is not an object.", 'Write {"messages": [...]} for each row.')
    return Table(path.name, rows)


def _unwrapped(value):
    """Many exports wrap their rows: {"version": 1, "data": [{…}, …]}. One conversation alone is no such wrapper."""
    if not isinstance(value, dict) or value.keys() & {"messages", "conversations"}:
        return value
    tables = [
        inner for inner in value.values() if isinstance(inner, list) and any(isinstance(row, dict) for row in inner)
    ]
    return tables[0] if len(tables) == 1 else value


def _read_csv(path: Path, tick: Tick) -> Table:
    csv.field_size_limit(2**27)
    text = read_text(path)
    mark = max(_MARKS, key=text.partition("\n")[0].count)  # semicolons where the comma is the decimal mark
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    rows, numbers, names, start = [], [], None, 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1  # a quoted cell may take several lines: the first is told
            if names is None:
                names = _column_names(path, cells)
            elif len(cells) == len(names):
                rows.append(dict(zip(names, cells, strict=True)))
                numbers.append(line)
            elif cells:
                raise DataError(
                    f"{path.name}: line {line} has not the {len(names)} columns of line 1, but {len(cells)}.",
                    f"Quote cells that contain {_MARKS[mark]} or line breaks.",
                )
    except csv.Error as error:
        raise DataError(
            f"{path.name} is not valid CSV: the row that begins in line {start}: {error}",
            "Save it as CSV with quoted cells.",
        ) from None
    return Table(path.name, rows, "line", numbers)


def _column_names(path: Path, cells: list[str]) -> list[str]:
    """The names in a CSV file's first line. One may be empty, as pandas leaves that of its index."""
    names = [cell.strip() for cell in cells]
    if not any(names):
        raise DataError(f"{path.name}: line 1 is empty.", "Name the columns there, such as question,answer.")
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path.name}: line 1 names the column {name!r} twice.", "Give each column its own name.")
    return names


def _read_parquet(path: Path, tick: Tick) -> Table:
    rows, read = ParquetRows(path), 0
    for batch in rows.batches():  # decodes all of it once, so that what is damaged shows now
        read += batch.num_rows
        tick(read / len(rows), f"Reading {path.name}")
    return Table(path.name, rows)

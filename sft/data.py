"""Files, folders and Hub data sets in any common shape → conversations, with a verdict for each row.

Knows nothing about templates or tokens. A source that cannot be read raises DataError; a row that breaks a rule
is kept with its problems and its place (line or row number), so that it is seen and never trained on silently.
"""

import csv
import io
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sft.config import TrainConfig
from sft.errors import DataError, listed
from sft.messages import Conversation, problems, tools_problems

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
HELD_OUT_NAMES = ("test", "val", "eval")  # how files begin that nobody means to train on


@dataclass(frozen=True)
class Table:
    """Rows as they were read: `rows[i]` is a dict of columns, `place(i)` is where a person finds it."""

    source: str
    rows: Sequence[dict]
    unit: str = "row"
    numbers: Sequence[int] | None = None

    def place(self, index: int) -> str:
        return f"{self.unit} {self.numbers[index] if self.numbers else index + 1}"


@dataclass(frozen=True)
class Row:
    """One row's conversation, or the rules that it breaks."""

    place: str
    conversation: Conversation | None
    problems: tuple[str, ...] = ()


# ---- sources → tables ----


def read_table(source: str, config: str | None = None, split: str = "train") -> Table:
    """Reads a local file or folder, or a data set from the Hub (`config` is for the Hub).

    `split` chooses among the files of a folder; a file is all one split, so it takes only the default. Raises
    DataError where there is nothing to read, or not what the file's ending says.
    """
    try:
        path = Path(source).expanduser()
        is_folder = path.is_dir()
        if is_folder:
            path = _file_in_folder(path, split)
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home folder that nobody has
        raise DataError(
            f"{source[:100]} is not a path that can be read: {error}", "Give the path of a file, or a Hub id."
        ) from None
    if is_file:
        # otherwise all of its rows would be read for a part of them, or the training rows as held out
        if split != "train" and not is_folder:
            raise DataError(
                f"{path.name} is a file, and a file has no splits, so {split!r} cannot be read from it.",
                "Leave train_split out; for held-out rows name another file as eval_dataset, or set eval_share.",
            )
        return _read_file(path)
    if path.suffix.lower() in SUFFIXES or path.is_absolute() or source.startswith((".", "~")):
        raise DataError(f"There is no file {source}.", "Check the path; it is relative to the working directory.")
    return _read_hub(source, config, split)


def _file_in_folder(folder: Path, split: str) -> Path:
    """The file that is named after the split, or the only one there is, unless its name says that it is held out."""
    if not re.fullmatch(r"[\w.-]+", split):
        raise DataError(
            f"{split!r} cannot be read from the folder {folder}: a folder has one file for each split, and no slices.",
            "Give the plain name of a split, such as train or test.",
        )
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    found = [file for file in files if file.name.lower().startswith(split.lower())]
    if not found and split == "train":
        found = [] if any(file.name.lower().startswith(HELD_OUT_NAMES) for file in files) else files
    if len(found) != 1:
        names = ", ".join(file.name for file in (found or files)[:5]) or "no data file"
        raise DataError(
            f"The folder {folder} holds {names}, so it is not clear which file to read as {split!r}.",
            f"Name one file ending in {', '.join(SUFFIXES)}.",
        )
    return found[0]


def _read_file(path: Path) -> Table:
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path.name} ends in {path.suffix or 'nothing'}, which is not a data format known here.",
            f"Give a file that ends in {', '.join(SUFFIXES)}.",
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty.", "Put one conversation on each line.")
    table = reader(path)
    if not table.rows:
        raise DataError(f"{path.name} holds no rows.", "Put one conversation on each line.")
    return table


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            f"{path.name} is not UTF-8 text, so it is not the {path.suffix[1:].upper()} file that its ending says.",
            "Save it as UTF-8, or give the file the ending that matches its content.",
        ) from None


class _JsonProblem(ValueError):
    """What is wrong with a text of JSON, and in which of its lines."""

    def __init__(self, said: str, line: int):
        super().__init__(said)
        self.said = said
        self.line = line


def _loads(text: str):
    """`json.loads` that raises _JsonProblem only, also where Python itself gives up."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _JsonProblem(f"{error.msg} at column {error.colno}", error.lineno) from None
    except RecursionError:
        raise _JsonProblem("lists and objects are nested too deeply", _deepest_line(text)) from None
    except ValueError:
        raise _JsonProblem("a number has too many digits", _longest_number_line(text)) from None


JSON_STRING = r'"(?:[^"\\]|\\.)*"'  # matched only to be passed over: what is inside is text


def _longest_number_line(text: str) -> int:
    numbers = re.finditer(rf"{JSON_STRING}|\d+", text)
    longest = max(numbers, key=lambda part: 0 if part[0].startswith('"') else len(part[0]))
    return text.count("\n", 0, longest.start()) + 1


def _deepest_line(text: str) -> int:
    depth = deepest = position = 0
    for part in re.finditer(rf"{JSON_STRING}|[\[\]{{}}]", text):
        depth += (part[0] in "[{") - (part[0] in "]}")
        if depth > deepest:
            deepest, position = depth, part.start()
    return text.count("\n", 0, position) + 1


def _read_jsonl(path: Path) -> Table:
    rows, numbers, broken = [], [], []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _loads(line)
        except _JsonProblem as problem:
            broken.append(f"line {number}: {problem.said}")
            continue
        if not isinstance(row, dict):
            broken.append(f"line {number}: must be a JSON object {{...}}")
            continue
        rows.append(row)
        numbers.append(number)
    if broken:
        many = "1 line is" if len(broken) == 1 else f"{len(broken)} lines are"
        raise DataError(
            f"{path.name}: {many} not valid JSON:\n{listed(broken)}",
            "In a .jsonl file each line is one complete JSON object.",
        )
    return Table(path.name, rows, "line", numbers)


def _read_json(path: Path) -> Table:
    try:
        value = _loads(_text(path))
    except _JsonProblem as problem:
        raise DataError(
            f"{path.name}: line {problem.line} is not valid JSON: {problem.said}",
            "A .json file holds one list of rows; a file with one object a line must end in .jsonl.",
        ) from None
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        value = next(iter(value.values()))  # {"data": [...]}, as many exports wrap their rows
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise DataError(f"{path.name} is not a list of objects.", 'Write [{"messages": [...]}, …].')
    return Table(path.name, value)


def _read_csv(path: Path) -> Table:
    text = _text(path)
    if "\0" in text:
        raise DataError(f"{path.name} is not a CSV file: it holds binary data.", "Save it as CSV from its program.")
    csv.field_size_limit(2**27)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows, numbers = [], []
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path.name}: line {reader.line_num} has not the {len(reader.fieldnames)} columns of line 1.",
                    "Quote cells that contain commas or line breaks.",
                )
            rows.append(row)
            numbers.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path.name} is not valid CSV: {error}", "Save it as CSV with quoted cells.") from None
    return Table(path.name, rows, "line", numbers)


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        return Table(path.name, pyarrow.parquet.read_table(path).to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path.name} is not a Parquet file: {str(error).splitlines()[0]}",
            "Give the file the ending that matches its content.",
        ) from None


def _read_hub(source: str, config: str | None, split: str) -> Table:
    import datasets
    import httpx2  # what huggingface_hub speaks HTTP with
    import yaml
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    unreadable = (datasets.exceptions.DatasetsError, datasets.data_files.EmptyDatasetError)
    try:
        validate_repo_id(source)
        if source.count("/") != 1:  # datasets takes "json", "text" and the like for readers of all files around here
            raise HFValidationError
        rows = datasets.load_dataset(source, config, split=split)
    except HFValidationError:
        raise DataError(
            f"{source!r} is neither a file here nor a possible name of a Hub data set.",
            "Give a path, or an id such as HuggingFaceTB/smoltalk.",
        ) from None
    except (datasets.exceptions.DatasetNotFoundError, RepositoryNotFoundError):
        raise DataError(
            f"There is no file {source} here and no data set {source} on the Hub that you may read.",
            "Check the spelling; a gated data set needs `hf auth login` first.",
        ) from None
    except ValueError as error:  # an unknown config or split: the library's message lists the known ones
        said = str(error).partition("\nExample of usage")[0]
        raise DataError(f"{source}: {said}", "Choose one of the names that the message lists.") from None
    except (*unreadable, RuntimeError, StopIteration, yaml.YAMLError) as error:
        reason = error.__cause__ or error  # datasets wraps what went wrong with a file's content
        raise DataError(
            f"{source} is on the Hub, but its files cannot be read as rows: {_first_line(reason)}",
            "Choose another data set, or download its file and give the path.",
        ) from None
    except (httpx2.HTTPError, OSError) as error:
        raise DataError(
            f"{source} could not be read from the Hub: {_first_line(error)}",
            "Check the network, or use a local file.",
        ) from None
    return Table(source, rows)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# ---- rows → conversations ----


def _from_messages(row: dict) -> list[dict]:
    return _json_cell(row, "messages")


def _from_sharegpt(row: dict) -> list[dict]:
    roles = {"human": "user", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant"}

    def message(turn):
        if not isinstance(turn, dict) or "from" not in turn:
            return turn
        sender = turn["from"]  # anything that JSON can hold, also what no dict takes for a key
        return {"role": roles.get(sender, sender) if isinstance(sender, str) else sender, "content": turn.get("value")}

    turns = _json_cell(row, "conversations")
    return [message(turn) for turn in turns] if isinstance(turns, list) else turns


def _from_completion(row: dict) -> list[dict]:
    prompt, completion = _messages_or_text(row["prompt"]), _messages_or_text(row["completion"])
    if not isinstance(prompt, list):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(completion, list):
        completion = [{"role": "assistant", "content": completion}]
    return prompt + completion


def _ask(question: str, answer: str, context: str | None = None) -> Callable[[dict], list[dict]]:
    """Reads a question column, an optional context column below it, and an answer column."""

    def convert(row: dict) -> list[dict]:
        content = row[question]
        if context and row.get(context) and isinstance(content, str):
            content = f"{content}\n\n{row[context]}"
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": row[answer]}]
        return [{"role": "system", "content": row["system"]}, *messages] if row.get("system") else messages

    return convert


# The first shape whose columns are all there is taken, so the more particular come first.
SHAPES: list[tuple[str, set[str], Callable[[dict], list[dict]]]] = [
    ("messages", {"messages"}, _from_messages),
    ("conversations (ShareGPT)", {"conversations"}, _from_sharegpt),
    ("prompt + completion", {"prompt", "completion"}, _from_completion),
    ("instruction + output (Alpaca)", {"instruction", "output"}, _ask("instruction", "output", "input")),
    ("instruction + response (Dolly)", {"instruction", "response"}, _ask("instruction", "response", "context")),
    ("question + answer", {"question", "answer"}, _ask("question", "answer")),
    ("prompt + response", {"prompt", "response"}, _ask("prompt", "response")),
]


def shape_of(table: Table) -> tuple[str, Callable[[dict], list[dict]]]:
    """The name of the table's shape and its converter, found by the columns of its first row."""
    columns = set(table.rows[0])
    for name, needed, convert in SHAPES:
        if needed <= columns:
            return name, convert
    given = ", ".join(sorted(map(str, columns)))
    if "text" in columns:
        raise DataError(
            f"{table.source} has plain text (columns: {given}). Without roles it cannot be told what to answer "
            "and what to read, so there is nothing to supervise.",
            "Give messages, or a question and an answer column. Raw text is for pretraining.",
        )
    known = "; ".join(" + ".join(sorted(needed)) for _, needed, _ in SHAPES)
    raise DataError(
        f"{table.source}: no shape is known with the columns {given}.", f"Rename the columns to one of: {known}."
    )


def conversations(table: Table) -> Iterator[Row]:
    """A verdict for every row, in order."""
    _, convert = shape_of(table)
    for index in range(len(table.rows)):
        yield _convert_row(table, index, convert)


def _convert_row(table: Table, index: int, convert: Callable[[dict], list[dict]]) -> Row:
    row, place = table.rows[index], table.place(index)
    try:
        messages = convert(row)
        tools = _json_cell(row, "tools") if row.get("tools") not in (None, "") else None  # CSV writes "" for none
    except KeyError as error:
        return Row(place, None, (f"has no column {error.args[0]!r}, which the first row has",))
    except _JsonProblem as problem:
        return Row(place, None, (problem.said,))
    if isinstance(messages, list):
        messages = [_without_nulls(message) for message in messages]
    found = problems(messages, for_training=True) + tools_problems(tools)
    if found:
        return Row(place, None, tuple(found))
    return Row(place, Conversation(messages, tools or None, place))


def _without_nulls(message):
    """Columnar formats give every message every key; a template must not see those that are only padding."""
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def _json_cell(row: dict, column: str):
    """CSV has no lists: there a list of messages or tools is a cell of JSON text."""
    value = row[column]
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return _loads(value)
    except _JsonProblem as problem:
        raise _JsonProblem(f"{column} is not valid JSON: {problem.said}", problem.line) from None


def _messages_or_text(value):
    """A prompt or completion is text even where it looks like JSON, unless it is messages and nothing else."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        parsed = _loads(value)
    except _JsonProblem:
        return value
    return parsed if parsed and all(isinstance(item, dict) and "role" in item for item in parsed) else value


# ---- a run's data ----


@dataclass(frozen=True)
class Split:
    """Training and held-out conversations, which share no row, and what was left out on the way."""

    train: list[Conversation]
    held_out: list[Conversation]
    warnings: list[str]


def usable(table: Table, on_bad_rows: str = "stop") -> tuple[list[Conversation], list[str]]:
    """All conversations of a table, and the problems of the rows that were skipped.

    Raises DataError where rows break a rule and `on_bad_rows` is 'stop', or where no row is left.
    """
    kept, bad = [], []
    for row in conversations(table):
        if row.conversation is None:
            bad += [f"{row.place}: {problem}" for problem in row.problems]
        else:
            kept.append(row.conversation)
    broken = len(table.rows) - len(kept)
    if bad and (on_bad_rows == "stop" or not kept):
        raise DataError(
            f"{table.source}: {broken} of {len(table.rows)} rows cannot be trained on:\n{listed(bad)}",
            "Mend these rows" + (", or set on_bad_rows to skip." if kept else "."),
        )
    return kept, bad


def load_split(config: TrainConfig) -> Split:
    """The conversations that a run trains on and those that it is measured on.

    `eval_share` draws by the run's seed. A held-out row that also occurs in training would be no test, so it is
    left out of the held-out part, with a warning.
    """
    table = read_table(config.dataset, config.dataset_config, config.train_split)
    train, bad = usable(table, config.on_bad_rows)
    held_out, warnings = [], _left_out(table, train, bad)
    if config.eval_dataset or config.eval_split:
        source = config.eval_dataset or config.dataset
        held_out_table = read_table(source, config.dataset_config, config.eval_split or "train")
        held_out, bad = usable(held_out_table, config.on_bad_rows)
        warnings += _left_out(held_out_table, held_out, bad)
    elif config.eval_share:
        train, held_out = _share(train, config.eval_share, config.seed)
    seen = {_key(conversation) for conversation in train}
    fresh = [conversation for conversation in held_out if _key(conversation) not in seen]
    if len(fresh) < len(held_out):
        warnings.append(f"{len(held_out) - len(fresh)} held-out rows also occur in training and were left out")
    return Split(train, fresh, warnings)


def _left_out(table: Table, kept: list[Conversation], bad: list[str]) -> list[str]:
    """The warning about rows that were skipped, if any were. One row may break several rules, so rows are counted."""
    broken = len(table.rows) - len(kept)
    if not broken:
        return []
    said = f"{broken} of {len(table.rows)} rows left out because they break a rule ({table.source})"
    return [f"{said}:\n{listed(bad)}"]


def _share(rows: list[Conversation], share: float, seed: int) -> tuple[list, list]:
    if len(rows) < 2:
        raise DataError(f"eval_share {share} of one row leaves no row to hold out.", "Give more rows.")
    count = min(max(1, round(len(rows) * share)), len(rows) - 1)  # however few there are, some of each
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [rows[index] for index in sorted(chosen)]


def _key(conversation: Conversation) -> str:
    # Parquet cells may hold dates and other values that JSON has no word for
    return json.dumps([conversation.messages, conversation.tools], sort_keys=True, default=str)

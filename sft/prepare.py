"""A run's conversations → rows of `input_ids` and `labels` on the disk, training and held-out.

Rows pass through memory a batch at a time. They are kept: the next run with the same data, settings and chat format
finds them.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset

from sft import data
from sft.chat_format import ChatFormat
from sft.config import TrainConfig
from sft.errors import DataError, TemplateError, listed
from sft.files import Tick
from sft.messages import Conversation
from sft.row_cache import cached
from sft.row_file import RowFile, read_rows

EXAMPLES = 50  # conversations to find questions among, see samples.py
# What of a config decides which rows there are, besides where they come from.
SETTINGS = ("columns", "eval_share", "on_bad_rows", "max_length", "max_eval_samples")


@dataclass(frozen=True)
class Prepared:
    """Rows with the columns `input_ids` and `labels`, lists of one length; they stay on the disk.

    `fingerprint` is another one where the rows are others. `examples` are the first conversations behind them, held out
    if any are.
    """

    train: Dataset
    held_out: Dataset | None
    fingerprint: str
    examples: Sequence[Conversation] = ()

    def sample(self) -> list[dict]:
        """The longest rows and the two shortest to train on: what there is to know of lengths before training."""
        lengths = _lengths(self.train)
        chosen = [*np.argsort(lengths, kind="stable")[:2], lengths.argmax()]
        held_out = [self.held_out[int(_lengths(self.held_out).argmax())]] if self.held_out else []
        return [*(self.train[int(index)] for index in chosen), *held_out]

    def largest_token(self) -> int:
        """The largest token id in any row."""
        from pyarrow import compute

        columns = [rows.data.column("input_ids") for rows in (self.train, self.held_out) if rows]
        return max(compute.max(compute.list_flatten(column)).as_py() for column in columns)


def _lengths(rows: Dataset) -> np.ndarray:
    from pyarrow.compute import list_value_length

    return list_value_length(rows.data.column("input_ids")).to_numpy()


def prepare(
    config: TrainConfig,
    chat_format: ChatFormat,
    warn: Callable[[str], None],
    progress: Callable[[float, str], None] = lambda share, said: None,
    check_stop: Callable[[], None] = lambda: None,
) -> Prepared:
    """Training and held-out rows; rows without a trained token are left out, aloud.

    `progress` is told twice a second how much (0 to 1) of what is done. `check_stop` is called all along, and stops
    the work by raising. Several processes may prepare the same rows: one does it while the others wait.
    """
    tick = _ticking(progress, check_stop)
    tick(0.0, "Looking for prepared rows")
    folder = cached(
        _key(config, chat_format),
        lambda folder: _build(config, chat_format, folder, tick),
        lambda: tick(0.0, "Waiting for another run that prepares the same rows"),
    )
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    for warning in about["warnings"]:
        warn(warning)
    train, held_out = read_rows(folder / "training.arrow"), read_rows(folder / "held-out.arrow")
    if not held_out and config.eval_strategy == "steps":
        warn("no rows are held out, so the held-out loss is not measured")
    examples = [Conversation(**example) for example in about["examples"]]
    return Prepared(train, held_out, about["fingerprint"], examples)


def _ticking(progress: Callable[[float, str], None], check_stop: Callable[[], None]) -> Tick:
    told = 0.0

    def tick(share: float, said: str) -> None:
        nonlocal told
        check_stop()
        if time.monotonic() - told >= 0.5:
            told = time.monotonic()
            progress(share, said)

    return tick


def _key(config: TrainConfig, chat_format: ChatFormat) -> str:
    """Equal keys mean equal rows and warnings."""
    settings = [getattr(config, name) for name in SETTINGS] + [config.seed if config.eval_share else None]
    parts = [data.identity(config), settings, chat_format.hash, _code()]
    return sha256(json.dumps(parts).encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def _code() -> str:
    """A digest of what makes rows of data: with another version of it, rows are prepared anew."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for package in ("transformers", "tokenizers", "jinja2"):
        digest.update(version(package).encode())
    return digest.hexdigest()


def _build(config: TrainConfig, chat_format: ChatFormat, folder: Path, tick: Tick) -> None:
    """Writes the rows of both parts, what was said about them and their fingerprint."""
    split = data.load_split(config, tick)
    warnings, fingerprints = list(split.warnings), []
    parts = {"training": split.train, "held-out": list(islice(split.held_out, config.max_eval_samples))}
    for part, conversations in parts.items():
        with RowFile(folder / f"{part}.arrow") as rows:
            encoded = chat_format.encode_all(conversations, config.max_length)
            warnings += _write(encoded, conversations, rows, part, config, tick)
        if part == "training" and not rows.count:
            raise DataError(
                f"No row of {config.dataset} has a token to train on within {config.max_length} tokens.",
                "Raise max_length, or look at the rows with `python -m sft check`.",
            )
        fingerprints.append(rows.fingerprint)
    examples = [vars(example) for example in islice(parts["held-out"] or parts["training"], EXAMPLES)]
    about = {"warnings": warnings, "fingerprint": "-".join(fingerprints), "examples": examples}
    text = json.dumps(about, indent=1, ensure_ascii=False, default=str)  # cells of Parquet may be dates
    (folder / "about.json").write_text(text, encoding="utf-8")


def _write(
    encoded: Iterable,
    conversations: Sequence[Conversation],
    rows: RowFile,
    part: str,
    config: TrainConfig,
    tick: Tick,
) -> list[str]:
    """Writes what can be trained on, and returns the warnings about the rest."""
    refused, verdicts = [], Counter()
    for index, row in enumerate(encoded):
        if index % 64 == 0:
            tick(index / len(conversations), f"Preparing {part} rows")
        if isinstance(row, TemplateError):
            refused.append(f"{conversations[index].place}: {row.message}")
            continue
        verdict = row.verdict
        verdicts[verdict] += 1
        if verdict != "dropped":
            rows.add(row.input_ids, row.labels)
    warnings = []
    if refused:
        problem = f"{len(refused)} {part} rows are refused by the model's chat template:\n{listed(refused)}"
        if config.on_bad_rows == "stop" and (part == "training" or data.names_held_out(config)):
            raise DataError(problem, "Mend these rows, or set on_bad_rows to skip.")
        warnings.append(problem)
    cut, dropped = verdicts["cut"], verdicts["dropped"]
    if cut:
        warnings.append(f"{cut} {part} rows were cut at {config.max_length} tokens, so they lose their stop token")
    if dropped:
        warnings.append(f"{dropped} {part} rows were left out: nothing to train on within {config.max_length} tokens")
    return warnings

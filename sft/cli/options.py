"""What several commands share: kinds of argument, options of the same meaning, and how results are printed."""

import argparse
import json
import sys
from datetime import date


def add_command(commands, name: str, command, help: str) -> argparse.ArgumentParser:
    """A parser for the command `name`, which is carried out by `command(options)`."""
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(command=command)
    return parser


def add_runs_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs-dir", metavar="DIR", help="where runs live (SFT_RUNS_DIR, else runs/)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")


def _number(kind: type, text: str):
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a {'whole ' if kind is int else ''}number, not {text}") from None


def day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a day such as 2024-07-26, not {text}") from None


def positive(text: str) -> int:
    number = _number(int, text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def count(text: str) -> int:
    number = _number(int, text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {number}")
    return number


def temperature(text: str) -> float:
    number = _number(float, text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"must be between 0 and 100, not {text}")
    return number


def seed(text: str) -> int:
    number = _number(int, text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"must be between 0 and 2^63 - 1, not {text}")
    return number


def format_of(model: str, template_kwargs: dict | None = None):
    """The chat format of a model's own tokenizer, for which no weights are fetched."""
    from sft import models
    from sft.chat_format import ChatFormat
    from sft.sandbox import guarded

    tokenizer = models.load_tokenizer(models.locate(model, to_stderr, weights=False))
    return guarded(ChatFormat.of(tokenizer, template_kwargs))


def print_json(value) -> None:
    print(json.dumps(value, ensure_ascii=False))


def to_stderr(stage: str, share: float) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    if sys.stderr.isatty() or share in (0.0, 1.0):
        print(f"{stage} {share:4.0%}", end=end, file=sys.stderr, flush=True)

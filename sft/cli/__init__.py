"""`python -m sft …`: the command line. Parses, calls, prints; knows nothing that the page does not know too.

One file a command: its options, then what it does. Heavy libraries are imported by what needs them, so that `--help`
answers at once.
"""

import argparse
import sys

from sft.cli import chat, check, evaluate, forecast, preview, runs, standby, train
from sft.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0 when it is done, 2 when the input was wrong."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft", description="See what a chat model reads, tune it, compare it with what it was."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (preview, check, forecast, train, runs, chat, evaluate, standby):
        command.add_to(commands)
    return parser

"""`standby`: waits, with what training needs imported, for one command line on standard input. See launch.py."""

import json
import os
import sys


def add_to(commands) -> None:
    commands.add_parser("standby").set_defaults(command=_standby)


def _standby(options) -> int:
    import sft.train  # noqa: F401  (the point of standing by)
    from sft.cli import main

    line = sys.stdin.readline()
    if not line:
        return 0
    task = json.loads(line)
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    return main(task["command"])

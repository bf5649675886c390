"""All runs: which there are, and how they are made, named and compared. A run folder is there whole or not at all."""

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from sft.config import TrainConfig
from sft.errors import RunError
from sft.run import LOCAL_OWNER, Run
from sft.runs_lock import locked

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def runs_dir(given: str | Path | None = None) -> Path:
    """Where run folders live: `--runs-dir`, else SFT_RUNS_DIR, else `runs`."""
    return Path(given or os.environ.get("SFT_RUNS_DIR") or "runs")


def create_run(config: TrainConfig, root: Path, name: str | None = None, owner: str = LOCAL_OWNER) -> Run:
    """A new run folder in state `queued`. Without a name one is made from data set and time.

    Raises RunError where the name is taken or is not a plain file name.
    """
    if name:
        _check_name(name)
    with locked(root) as aside:
        run = Run(root / (name or _new_name(config, root)))
        if run.folder.exists():
            raise RunError(f"There is already a run {run.name} in {root}.", "Give another --run-name.")
        aside.mkdir()
        if owner != LOCAL_OWNER:
            (aside / "owner.txt").write_text(owner)
        config.save(aside / "config.yaml")
        waiting = "Waiting for its process to start."
        Run(aside).set_status("queued", max_steps=config.max_steps, message=waiting, pid=0, queued=time.time())
        aside.rename(run.folder)
    return run


def rename(run: Run, name: str) -> Run:
    """The run under its new name. Raises RunError while it works, and where the name is taken or cannot be one."""
    _check_name(name)
    folder = run.folder.with_name(name)
    with locked(folder.parent):
        run.refuse_while_active()
        if folder.exists():
            raise RunError(f"There is already a run {name} in {folder.parent}.", "Give another name.")
        run.folder.rename(folder)
    return Run(folder)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise RunError(
            f"{name!r} cannot name a run.",
            "Use up to 100 letters, digits, dots, dashes and underscores, beginning with a letter or digit.",
        )


def _new_name(config: TrainConfig, root: Path) -> str:
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(config.dataset).name.split(".")[0]).strip("-")[:40] or "run"
    name = f"{stem}-{time.strftime('%m%d-%H%M%S')}"
    return name if not (root / name).exists() else f"{name}-{secrets.token_hex(2)}"


def find_run(name: str, root: Path, owner: str | None = None) -> Run:
    """The run of that name; RunError names the nearest when there is none, or when it is someone else's."""
    path = root / name
    if _NAME.fullmatch(name) and (path / "config.yaml").is_file():
        run = Run(path)
        if owner is None or run.owner == owner:
            return run
    names = ", ".join(run.name for run in list(list_runs(root, owner))[:5]) or "none yet"
    raise RunError(f"There is no run {name!r} in {root}.", f"Runs there: {names}.")


def list_runs(root: Path, owner: str | None = None) -> Iterator[Run]:
    """All runs, newest first; with `owner`, that visitor's alone."""
    made = {}
    for config in root.glob("*/config.yaml"):
        with suppress(FileNotFoundError):  # renamed or deleted just now
            made[config.parent] = config.stat().st_mtime
    for folder in sorted(made, key=made.get, reverse=True):
        run = Run(folder)
        if _NAME.fullmatch(run.name) and (owner is None or run.owner == owner):
            yield run


def training_in(root: Path) -> bool:
    """Whether any run there is at work on the weights, whoever's it is."""
    return any(run.written_status().state in ("training", "saving") and run.status().active for run in list_runs(root))


def differing(runs: list[Run]) -> dict[str, list]:
    """The settings in which the runs' configs differ → the value of each run, in their order."""
    configs = [asdict(run.config()) for run in runs]
    columns = {name: [config[name] for config in configs] for name in (configs[0] if configs else ())}
    return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}

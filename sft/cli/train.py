"""`train`: a run from its config to its adapter."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

from sft.cli.options import add_command, add_runs_dir
from sft.errors import ConfigError, RunError


def add_to(commands) -> None:
    train = add_command(commands, "train", _train, "tune a model as a config says")
    train.add_argument("config", metavar="CONFIG.yaml")
    train.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one setting")
    train.add_argument("--run-name", metavar="NAME", help="name of the run folder")
    add_runs_dir(train)


def _train(options) -> int:
    from sft.config import TrainConfig
    from sft.launch import wait_in_line
    from sft.runs import runs_dir

    root = runs_dir(options.runs_dir)
    config = TrainConfig.load(options.config, options.set)
    run = _run_to_train(config, root, options)
    with _log_to(run.log_file):
        if os.environ.get("RANK", "0") == "0":
            print(f"run {run.name} in {run.folder}", flush=True)
            run.set_status("queued", max_steps=config.max_steps)
            wait_in_line(run)
            run.set_status("preparing", max_steps=config.max_steps, message="Loading the libraries.")
        from sft.train import train

        train(config, run)
    return 0


def _run_to_train(config, root: Path, options):
    """A new run; or the folder that launch.py made for this process; or, in a further process of the same
    distributed training, the folder that the first process makes."""
    from sft.runs import Run, create_run

    run = Run(root / (options.run_name or ""))
    if options.run_name and Path(options.config) == run.folder / "config.yaml":
        status = run.status()
        if status.state == "queued" and status.pid == os.getpid():
            return run
        raise RunError(f"The run {run.name} is {status.state} already.", "Give another --run-name to train once more.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not options.run_name:
        raise ConfigError("Several processes train together and have no name for their run.", "Give --run-name NAME.")
    if os.environ.get("RANK", "0") != "0":
        return run
    return create_run(config, root, options.run_name)


@contextmanager
def _log_to(path: Path):
    """Everything printed goes to the log file too, unless it already goes there."""
    if os.environ.get("RANK", "0") != "0" or _is_open_as_output(path):
        yield
        return
    with path.open("a", encoding="utf-8") as log:
        out, err = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Tee(out, log), _Tee(err, log)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err


def _is_open_as_output(path: Path) -> bool:
    return path.exists() and os.path.samestat(path.stat(), os.fstat(1))


class _Tee:
    def __init__(self, shown, log):
        self._shown, self._log = shown, log

    def write(self, text: str) -> int:
        self._log.write(text)
        self._log.flush()
        return self._shown.write(text)

    def __getattr__(self, name):
        return getattr(self._shown, name)

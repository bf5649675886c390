"""`train`: a run from its config to its adapter."""

import os
import sys
import traceback
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from sft.cli.options import add_command, add_runs_dir
from sft.errors import ConfigError, RunError, UserError, listed


def add_to(commands) -> None:
    train = add_command(commands, "train", _train, "tune a model as a config says")
    train.add_argument("config", metavar="CONFIG.yaml")
    train.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="change one setting")
    train.add_argument("--run-name", metavar="NAME", help="name of the run folder")
    train.add_argument("--resume", action="store_true", help="go on with a run that was interrupted, stopped or failed")
    add_runs_dir(train)


def _train(options) -> int:
    from sft.config import TrainConfig
    from sft.runs import runs_dir

    root = runs_dir(options.runs_dir)
    config = TrainConfig.load(options.config, options.set)
    run = _run_to_train(config, root, options)
    with _log_to(run.log_file):
        if not _may_begin(run):
            print(f"the run {run.name} was withdrawn from the line", flush=True)
            return 0
        from sft.train import train

        train(config, run)
    return 0


def _may_begin(run) -> bool:
    """Waits until it is this run's turn; False where it is withdrawn before."""
    from sft.launch import wait_for_main, wait_in_line

    if os.environ.get("RANK", "0") != "0":
        return os.environ.get("GROUP_RANK", "0") != "0" or wait_for_main(run)
    print(f"run {run.name} in {run.folder}", flush=True)
    run.set_status("queued")
    return wait_in_line(run)


def _run_to_train(config, root: Path, options):
    """A new run or one to resume; or the folder that launch.py handed over to this process; or, in a further process
    of the same distributed training, the folder of the first process."""
    from sft.run import Run
    from sft.runs import create_run

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not options.run_name:
        raise ConfigError("Several processes train together and have no name for their run.", "Give --run-name NAME.")
    run = Run(root / (options.run_name or ""))
    if os.environ.get("RANK", "0") != "0":
        return run
    if options.resume:
        return _run_to_resume(config, root, options.run_name)
    if options.run_name and Path(options.config) == run.folder / "config.yaml":
        status = run.written_status()
        if status.state == "queued" and status.pid == os.getpid():
            return run
        hint = "Give another --run-name to train once more, or --resume to go on."
        raise RunError(f"The run {run.name} is {run.status().state} already.", hint)
    return create_run(config, root, options.run_name)


def _run_to_resume(config, root: Path, name: str | None):
    """The run of that name, else the newest of the same config that can be resumed; it has joined the line."""
    from sft.runs import find_run, list_runs

    if name:
        run = find_run(name, root)
        _refuse_other_settings(run, config)
    else:
        run = next((run for run in list_runs(root) if run.resumable and run.config() == config), None)
        if not run:
            raise RunError(
                f"No run in {root} has this config and was interrupted, stopped or failed.",
                "Leave out --resume to start one, or give --run-name NAME.",
            )
    run.enter_line()
    return run


def _refuse_other_settings(run, config) -> None:
    begun = asdict(run.config())
    changes = [
        f"{name}: {begun[name]} then, {value} now" for name, value in asdict(config).items() if value != begun[name]
    ]
    if changes:
        raise RunError(
            f"The run {run.name} began with other settings:\n{listed(changes, 20)}",
            f"Resume it with its own: python -m sft train {run.folder}/config.yaml --run-name {run.name} --resume",
        )


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
        except Exception as error:  # told on the terminal by whoever catches it
            print(f"error: {error}" if isinstance(error, UserError) else traceback.format_exc(), file=log)
            raise
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

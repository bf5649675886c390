"""Two processes, each with half of every batch, give the losses of one process with all of it; stopped and resumed."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest

from sft.config import TrainConfig
from sft.run import Run
from sft.runs import create_run
from sft.train import train

ROWS = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}" + "!" * (n % 5)} for n in range(25)]
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--nproc_per_node", "2"],
    # its switch for several processes on one machine, which works without a GPU too
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
}


@pytest.fixture(scope="module")
def config(tiny_model, tmp_path_factory):
    """20 rows to train on, which make whole batches, and 5 held out, which cannot be shared out evenly."""
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows.write_text("".join(f"{row}\n".replace("'", '"') for row in ROWS))
    values = {"model": str(tiny_model), "dataset": str(rows), "eval_share": 0.2, "max_steps": 15, "eval_steps": 3}
    return TrainConfig.from_dict({**values, "learning_rate": 0.01, "lora_r": 4, "per_device_train_batch_size": 4})


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    run = create_run(config, tmp_path_factory.mktemp("runs"), "alone")
    train(config, run)
    return run


def losses(run: Run) -> list[tuple]:
    """Every loss of a run: its step, the loss, that of the stop tokens, and the length of the gradient."""
    events = run.events("log", "eval")
    return [(event["step"], event["loss"], event["stop_loss"], event.get("grad_norm", 0)) for event in events]


def launched(launcher: str, config: TrainConfig, run: Run, *more: str) -> subprocess.Popen:
    """The command that trains the run, in two processes."""
    path = run.folder.with_name("config.yaml")
    config.save(path)
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "sft", "train", path, *more]
    where = ["--runs-dir", run.folder.parent, "--run-name", run.name]
    return subprocess.Popen([*command, *where], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_processes_give_the_losses_of_one_also_stopped_and_resumed(config, alone, tmp_path):
    shared = replace(config, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    both = Run(tmp_path / "both")
    torchrun = launched("torchrun", shared, both)
    while torchrun.poll() is None and not both.events("log"):
        time.sleep(0.005)
    both.ask_to_stop()
    said, _ = torchrun.communicate()
    assert both.status().state == "stopped", said[-3000:]
    assert both.has_result and both.checkpoint
    said, _ = launched("accelerate", shared, both, "--resume").communicate()
    assert both.status().state == "finished", said[-3000:]
    assert said.count("step 15/15  loss") == 1  # only the main process speaks and writes
    assert len(losses(both)) == len(losses(alone))
    for one, other in zip(losses(alone), losses(both), strict=True):
        assert other == pytest.approx(one, abs=1e-4)
    tokens = [[event["tokens"] for event in run.events("log")] for run in (alone, both)]
    assert tokens[0] == tokens[1]

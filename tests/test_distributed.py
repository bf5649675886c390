"""Two processes, each with half of every batch, give the losses of one process with all of it."""

import subprocess
import sys

import pytest

from sft.config import TrainConfig
from sft.runs import Run, create_run
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
    values = {"model": str(tiny_model), "dataset": str(rows), "eval_share": 0.2, "max_steps": 7, "eval_steps": 3}
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


@pytest.mark.parametrize(
    ("launcher", "batch", "accumulated"), [("torchrun", 1, 2), ("accelerate", 2, 1)], ids=["torchrun", "accelerate"]
)
def test_two_processes_give_the_losses_of_one(launcher, batch, accumulated, config, alone, tmp_path):
    config.save(tmp_path / "config.yaml")
    shares = [f"per_device_train_batch_size={batch}", f"gradient_accumulation_steps={accumulated}"]
    done = subprocess.run(
        [
            sys.executable, "-m", *LAUNCHERS[launcher], "-m", "sft", "train", tmp_path / "config.yaml",
            "--runs-dir", tmp_path, "--run-name", "both", *(word for share in shares for word in ("--set", share)),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step 7/7  loss") == 1  # only the main process speaks and writes
    both = Run(tmp_path / "both")
    assert both.status().state == "finished"
    assert len(losses(both)) == len(losses(alone))
    for one, other in zip(losses(alone), losses(both), strict=True):
        assert other == pytest.approx(one, abs=1e-4)
    tokens = [[event["tokens"] for event in run.events("log")] for run in (alone, both)]
    assert tokens[0] == tokens[1]

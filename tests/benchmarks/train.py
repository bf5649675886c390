"""Our trainer against TRL's SFTTrainer with its defaults: same model, rows, labels and batches.

    python tests/benchmarks/train.py [--workload tickets] [--steps 3] [--batch-size 8] [--rank 16] [--json]

Two processes hold one trainer each and take their steps in turn, so that only one of them computes at any time. Prints
real tokens (no padding, no token counted twice) a second of both, their ratio (median over the steps, the first one
left out), the peak memory of both processes and its ratio, the largest difference of the losses, and how much of the
machine's measured matrix-multiply rate our trainer uses for work that cannot be left out.

TRL's defaults on a CPU: `use_cpu`, no bf16, all else as SFTConfig has it, LoRA of the same rank on the same layers.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
WORKLOADS = {  # rows, and how many of them make a batch: 8 is TRL's default; long rows take minutes a step in eights
    "tickets": ("support-json.jsonl", 8),
    "mixed": ("assistant.jsonl", 8),
    "long": ("assistant.jsonl", 2),
}
LONG = 1024  # tokens
RULES = (
    "You file support tickets for Northwind Home. Answer with one JSON object and nothing else: product; category, one "
    "of fault, delivery, return or question; priority, urgent or normal; and order, its number or null."
)


def rows_of(workload: str) -> list[dict]:
    """Rows of `input_ids` and `labels`, as training would make them of the examples."""
    from sft import data, models
    from sft.chat_format import ChatFormat
    from sft.messages import Conversation
    from sft.tables import read_table

    chat_format = ChatFormat.of(models.load_tokenizer(models.locate("embedded")))
    conversations = list(data.usable(read_table(str(ROOT / "examples" / WORKLOADS[workload][0])))[0])
    if workload == "tickets":
        conversations = [_with_rules(conversation, Conversation) for conversation in conversations]
    if workload == "long":
        conversations = [_joined(conversations, start, Conversation) for start in range(0, len(conversations), 5)]
    encoded = [chat_format.encode(conversation, LONG) for conversation in conversations]
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in encoded if row.trained]


def _with_rules(conversation, kind):
    """The ticket with a system message that says what is wanted: about half of the row's tokens, the same in all."""
    system = {"role": "system", "content": RULES}
    return kind([system, *conversation.messages[1:]], None, conversation.place)


def _joined(conversations: list, start: int, kind):
    """Many conversations as one of many turns, longer than `LONG` tokens."""
    wrapped = [*conversations[start:], *conversations[:start]]
    turns = [
        message for conversation in wrapped[:60] for message in conversation.messages if message["role"] != "system"
    ]
    return kind(turns, None, f"from row {start + 1}")


# ---- one process: a trainer that takes a step whenever it is told to ----


def serve(arm: str, workload: str, options) -> None:
    """Waits for a line on standard input before each step; prints seconds, real tokens and loss after it."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from sft import models
    from sft.trainer import Trainer, collator_for, device_arguments

    class InTurn(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            sys.stdin.readline()
            self.began = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            self.seconds = time.perf_counter() - self.began

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                print("STEP " + json.dumps({"seconds": self.seconds, "loss": logs["loss"], "peak": peak}), flush=True)

    torch.manual_seed(0)
    rows = rows_of(workload)
    model = models.load_base(models.locate("embedded"))
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear"
    )
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder, "use_cpu": True, "bf16": False, "max_steps": options.steps + 1, "report_to": "none",
            "per_device_train_batch_size": options.batch_size or WORKLOADS[workload][1], "logging_steps": 1,
            "disable_tqdm": True, "save_strategy": "no", "max_length": LONG, "learning_rate": 5e-4,
        }  # fmt: skip
        if arm == "ours":
            common |= device_arguments() | {"max_length": None, "remove_unused_columns": False}
        trainer = (Trainer if arm == "ours" else SFTTrainer)(
            model=model,
            args=SFTConfig(**common),
            train_dataset=Dataset.from_list(rows),
            peft_config=adapter,
            processing_class=models.load_tokenizer(models.locate("embedded")),
            **({"data_collator": collator_for(model, rows)} if arm == "ours" else {}),
        )
        trainer.add_callback(InTurn())
        trainer.train()


# ---- the two in turn ----


def compare(workload: str, options) -> dict:
    command = [sys.executable, __file__, "--workload", workload, "--steps", str(options.steps)]
    command += ["--rank", str(options.rank), "--batch-size", str(options.batch_size or WORKLOADS[workload][1])]
    arms = {
        arm: subprocess.Popen([*command, "--arm", arm], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for arm in ("ours", "trl")
    }
    steps = {arm: [] for arm in arms}
    for _ in range(options.steps + 1):
        for arm, process in arms.items():
            steps[arm].append(_step(process))
    for process in arms.values():
        process.wait()
    return _summary(workload, steps, options)


def _step(process: subprocess.Popen) -> dict:
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("STEP "):
            return json.loads(line[5:])
    raise SystemExit("a trainer ended before its last step")


def _summary(workload: str, steps: dict, options) -> dict:
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in zip(steps["ours"], steps["trl"], strict=True)][1:]
    losses = [abs(ours["loss"] - theirs["loss"]) for ours, theirs in zip(steps["ours"], steps["trl"], strict=True)]
    peaks = {arm: taken[-1]["peak"] for arm, taken in steps.items()}
    return {
        "speedup": statistics.median(ratios),
        "memory_ratio": peaks["ours"] / peaks["trl"],
        "loss_difference": max(losses),
        "seconds": {arm: statistics.median(step["seconds"] for step in taken[1:]) for arm, taken in steps.items()},
        "peak_bytes": peaks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--arm", choices=("ours", "trl"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        serve(options.arm, options.workload, options)
        return
    found = {name: compare(name, options) for name in ([options.workload] if options.workload else WORKLOADS)}
    print(json.dumps({"workloads": found}, indent=None if options.json else 1))


if __name__ == "__main__":
    main()

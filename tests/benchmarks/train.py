"""Our trainer against TRL's SFTTrainer with its defaults: same model, rows, labels and batches.

    python tests/benchmarks/train.py [--workload tickets] [--steps 2] [--batch-size 8] [--rank 16] [--json]

Two processes hold one trainer each and take their steps in turn, so that only one of them computes at any time. Prints
real tokens (no padding, and each as often as it stands in a row) a second of both, their ratio (median over the steps,
the first one left out), the peak memory of both processes and its ratio, the largest difference of the losses, and our
share of the machine's measured matrix-multiply rate, counting only multiplications that no exact training can leave
out of our batches.

TRL's defaults on a CPU: `use_cpu`, no bf16, all else as SFTConfig has it; on a GPU all is as SFTConfig has it. LoRA of
the same rank on the same layers. The peak of memory is that of the process, and on a GPU what it held there.
"""

import argparse
import json
import os
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
TURNS = (1, 2, 1, 1, 4, 1, 2, 1, 3, 1, 1, 2, 1, 6, 1, 2)  # of mixed rows: most are short, a few are not
RULES = (
    "You file support tickets for Northwind Home. Answer with one JSON object and nothing else: product; category, one "
    "of fault, delivery, return or question; priority, urgent or normal; and order, its number or null."
)


def rows_of(workload: str) -> list[dict]:
    """Rows of `input_ids` and `labels`, as training would make them of the examples."""
    from sft import data, models
    from sft.chat_format import ChatFormat
    from sft.tables import read_table

    chat_format = ChatFormat.of(models.load_tokenizer(models.locate("embedded")))
    given = list(data.usable(read_table(str(ROOT / "examples" / WORKLOADS[workload][0])))[0])
    if workload == "tickets":
        conversations = [_with_rules(conversation) for conversation in given]
    elif workload == "mixed":
        conversations = [_joined(given, start, TURNS[start % len(TURNS)]) for start in range(len(given))]
    else:
        conversations = [_joined(given, start, 60) for start in range(0, len(given), 5)]
    encoded = [chat_format.encode(conversation, LONG) for conversation in conversations]
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in encoded if row.trained]


def _with_rules(conversation):
    """The ticket with a system message that says what is wanted: about half of the row's tokens, the same in all."""
    from sft.messages import Conversation

    system = {"role": "system", "content": RULES}
    return Conversation([system, *conversation.messages[1:]], None, conversation.place)


def _joined(conversations: list, start: int, count: int):
    """Some conversations, from the one at `start` on, as one of many turns."""
    from sft.messages import Conversation

    wrapped = [*conversations[start:], *conversations[:start]]
    messages = [message for conversation in wrapped[:count] for message in conversation.messages]
    turns = [message for message in messages if message["role"] != "system"]
    return Conversation(turns, None, f"from row {start + 1}")


# ---- one process: a trainer that takes a step whenever it is told to ----


def serve(arm: str, workload: str, options) -> None:
    """Waits for a line on standard input before each step; prints its seconds, loss and tokens after it."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from sft import models
    from sft.trainer import Trainer, collator_for, device_arguments

    class InTurn(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            sys.stdin.readline()
            self.began = _now()

        def on_step_end(self, args, state, control, **kwargs):
            self.seconds = _now() - self.began

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                said = {"seconds": self.seconds, "loss": logs["loss"], "peak": _peak()}
                if arm == "ours":
                    said |= batches[state.global_step - 1] | {"rate": _matmul_rate(model)}
                print("STEP " + json.dumps(said), flush=True)

    def noted(rows):
        batch = collate(rows)
        flat = sum(part["input_ids"].numel() for part in batch["parts"])
        labels = int((batch["labels"] != -100).sum())
        batches.append({"tokens": int(batch["num_tokens"]), "flops": _flops(trainer.model, flat, labels)})
        return batch

    rows, batches = rows_of(workload), []
    model = models.load_base(models.locate("embedded"))
    adapter = LoraConfig(
        task_type="CAUSAL_LM", r=options.rank, lora_alpha=2 * options.rank, target_modules="all-linear"
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder, "max_steps": options.steps + 1, "report_to": "none",
            "per_device_train_batch_size": options.batch_size, "logging_steps": 1, "disable_tqdm": True,
            "save_strategy": "no", "learning_rate": 5e-4,
        }  # fmt: skip
        shared = {
            "model": model, "train_dataset": Dataset.from_list(rows), "peft_config": adapter,
            "processing_class": models.load_tokenizer(models.locate("embedded")),
        }  # fmt: skip
        if arm == "ours":
            collate = collator_for(model, rows)
            settings |= {**device_arguments(), "max_length": None, "remove_unused_columns": False}
            trainer = Trainer(args=SFTConfig(**settings), data_collator=noted, **shared)
        else:
            on_cpu = {"use_cpu": True, "bf16": False} if model.device.type == "cpu" else {}
            trainer = SFTTrainer(args=SFTConfig(**settings, **on_cpu), **shared)
        trainer.add_callback(InTurn())
        trainer.train()


def _flops(model, flat: int, labels: int) -> float:
    """Floating-point operations of the multiplications of one step: forward and the gradient of what goes in for frozen
    weights, and the gradient of the weights too for LoRA's; the head where there is a label."""
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    head = model.get_output_embeddings().weight.numel()
    frozen = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2) - trained - head
    return flat * (4 * frozen + 6 * trained) + labels * 4 * head


def _matmul_rate(model) -> float:
    """Floating-point operations a second of the model's largest layer, right after the step. On 512 tokens on a CPU; on
    a GPU on as many as keep it busy."""
    import torch

    config, like = model.config, {"device": model.device, "dtype": model.dtype}
    x = torch.randn(512 if model.device.type == "cpu" else 32768, config.hidden_size, **like)
    weight = torch.randn(config.intermediate_size, config.hidden_size, **like)
    taken = []
    for _ in range(20):
        began = _now()
        x @ weight.t()
        taken.append(_now() - began)
    return 2 * x.numel() * len(weight) / min(taken)


def _now() -> float:
    """Seconds, when all that a GPU was told to do is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak() -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- the two in turn ----


def compare(workload: str, options) -> dict:
    size = str(options.batch_size or WORKLOADS[workload][1])
    command = [sys.executable, __file__, "--workload", workload, "--steps", str(options.steps), "--batch-size", size]
    command += ["--rank", str(options.rank)]
    # The app lets threads sleep while they wait; TRL's process gets the system's default.
    plain = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | {"OMP_WAIT_POLICY": ""}
    arms = {
        "ours": subprocess.Popen([*command, "--arm", "ours"], stdin=-1, stdout=-1, text=True),
        "trl": subprocess.Popen([*command, "--arm", "trl"], stdin=-1, stdout=-1, text=True, env=plain),
    }
    steps = {arm: [] for arm in arms}
    for _ in range(options.steps + 1):
        for arm, process in arms.items():
            process.stdin.write("\n")
            process.stdin.flush()
            steps[arm].append(_said(process))
    for process in arms.values():
        process.communicate()
    return _summary(steps)


def _said(process: subprocess.Popen) -> dict:
    for line in process.stdout:
        if line.startswith("STEP "):
            return json.loads(line.removeprefix("STEP "))
    raise SystemExit("a trainer ended before its last step")


def _summary(steps: dict[str, list[dict]]) -> dict:
    pairs = list(zip(steps["ours"], steps["trl"], strict=True))
    peaks = {arm: taken[-1]["peak"] for arm, taken in steps.items()}
    return {
        "speedup": statistics.median(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs[1:]),
        "memory_ratio": peaks["ours"] / peaks["trl"],
        "loss_difference": max(abs(ours["loss"] - theirs["loss"]) for ours, theirs in pairs),
        "matmul_share": statistics.median(ours["flops"] / ours["seconds"] / ours["rate"] for ours, _ in pairs[1:]),
        "tokens_per_second": {
            arm: statistics.median(pair[0]["tokens"] / pair[number]["seconds"] for pair in pairs[1:])
            for number, arm in enumerate(("ours", "trl"))
        },
        "peak_bytes": peaks,
        "matmul_flops_per_second": statistics.median(ours["rate"] for ours, _ in pairs[1:]),
    }


def _line(name: str, result: dict) -> str:
    speed, peak = result["tokens_per_second"], result["peak_bytes"]
    return (
        f"{name:8} {result['speedup']:.2f} times as fast ({speed['ours']:.0f} against {speed['trl']:.0f} tokens/s); "
        f"memory {result['memory_ratio']:.2f} ({peak['ours'] / 1e9:.2f} of {peak['trl'] / 1e9:.2f} GB); losses differ "
        f"by {result['loss_difference']:.1e}; {result['matmul_share']:.0%} of the matrix-multiply rate "
        f"({result['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--arm", choices=("ours", "trl"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        serve(options.arm, options.workload, options)
        return
    found = {}
    for name in [options.workload] if options.workload else WORKLOADS:
        found[name] = compare(name, options)
        if not options.json:
            print(_line(name, found[name]), flush=True)
    if options.json:
        print(json.dumps({"workloads": found}))


if __name__ == "__main__":
    main()

"""How fast a data set becomes training rows, and in how much memory: ours against TRL's own, with the same template.

    python tests/benchmarks/prepare.py [--rows 10000] [--more 100000] [--rounds 3] [--json]

Both begin with a JSONL file of conversations and end with rows of ids and labels on the disk, cut at 512 tokens. TRL's
way is `load_dataset` and SFTTrainer's defaults with `assistant_only_loss`; the template, our chatml, says by its marks
what the assistant writes. Each preparation is a process of its own that finds nothing kept; the two are taken in turn,
and the figures are medians. Seconds go from the file to the rows, without imports. Memory is what a process takes at
its peak beyond what it has after the imports, without files that are only mapped.

Ours then prepares the file with the embedded model's own template in the sandbox, and with chatml again from what it
kept, and `--more` rows, to show whether memory grows with them.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

MAX_LENGTH = 512
WORDS = (ROOT / "README.md").read_text(encoding="utf-8").split()


def write_conversations(path: Path, rows: int) -> None:
    """Conversations of one to three turns, 30 to 500 tokens."""
    draw = random.Random(0)

    def said(role: str, most: int) -> dict:
        return {"role": role, "content": " ".join(draw.choices(WORDS, k=draw.randint(5, most)))}

    with path.open("w", encoding="utf-8") as file:
        for _ in range(rows):
            turns = [said("system", 10)]
            for _ in range(draw.randint(1, 3)):
                turns += [said("user", 30), said("assistant", 60)]
            file.write(json.dumps({"messages": turns}) + "\n")


# ---- one preparation, in a process of its own ----


class Memory(threading.Thread):
    """Watches how much memory of its own this process takes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.before = self.most = self._now()
        self.start()

    def run(self) -> None:
        while True:
            time.sleep(0.02)
            self.most = max(self.most, self._now())

    def _now(self) -> int:
        return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) * 1024


def prepare_ours(path: Path, cache: Path, sandboxed: bool) -> dict:
    from sft.chat_format import ChatFormat, preset
    from sft.config import TrainConfig
    from sft.messages import Conversation
    from sft.models import load_tokenizer, locate
    from sft.prepare import prepare
    from sft.sandbox import run

    tokenizer = load_tokenizer(locate("embedded"))
    chat_format = ChatFormat.of(tokenizer, run=run) if sandboxed else ChatFormat(tokenizer, preset("chatml"))
    chat_format.encode(Conversation([{"role": "user", "content": "a"}]))
    os.environ["SFT_CACHE_DIR"] = str(cache)
    config = TrainConfig(dataset=str(path), max_length=MAX_LENGTH, eval_strategy="no")
    memory, began = Memory(), time.perf_counter()
    rows = prepare(config, chat_format, lambda warning: None).train
    return figures(rows, began, memory)


def prepare_trl(path: Path, cache: Path) -> dict:
    import datasets
    from tiny_models import save_tiny_model
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from sft.chat_format import preset
    from sft.models import load_tokenizer, locate

    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(locate("embedded"))
    tokenizer.chat_template = preset("chatml")
    tokenizer.apply_chat_template([{"role": "user", "content": "a"}])
    model = AutoModelForCausalLM.from_pretrained(save_tiny_model(cache / "model", None))

    class Timed(SFTTrainer):
        def _prepare_dataset(self, *arguments, **options):
            began = time.perf_counter() - loading
            rows = super()._prepare_dataset(*arguments, **options)
            self.figures = figures(rows, began, memory)
            return rows

    memory, began = Memory(), time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    loading = time.perf_counter() - began
    arguments = SFTConfig(
        output_dir=str(cache), use_cpu=True, bf16=False, max_length=MAX_LENGTH, assistant_only_loss=True
    )
    return Timed(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer).figures


def figures(rows, began: float, memory: Memory) -> dict:
    """`tokens` are all and those trained on: equal counts show that both did the same work."""
    seconds = time.perf_counter() - began
    tokens = [sum(map(len, rows["input_ids"])), sum(label != -100 for row in rows[:1000]["labels"] for label in row)]
    return {"seconds": seconds, "rows": len(rows), "bytes": memory.most - memory.before, "tokens": tokens}


# ---- the comparison ----


def measured(arm: str, path: Path, cache: Path) -> dict:
    """The figures of one preparation."""
    command = [sys.executable, __file__, "--arm", arm, "--path", str(path), "--cache", str(cache)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def compare(rows: int, more: int, rounds: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "rows.jsonl"
        write_conversations(path, rows)
        ours = [measured("ours", path, folder / f"ours-{number}") for number in range(1)]
        trl = []
        for number in range(rounds):
            trl.append(measured("trl", path, folder / f"trl-{number}"))
            ours.append(measured("ours", path, folder / f"ours-{number + 1}"))
        ours = ours[1:]  # the first warmed up
        if trl and trl[0]["tokens"] != ours[0]["tokens"]:
            raise SystemExit(f"The rows are not the same: {trl[0]['tokens']} and {ours[0]['tokens']} tokens.")
        found = {
            "ours": middle(ours),
            "trl": middle(trl),
            "kept": middle([measured("ours", path, folder / "ours-0")]),
            "sandbox": middle([measured("sandbox", path, folder / "sandbox")]),
        }
        if more:
            write_conversations(path, more)
            found["more"] = middle([measured("ours", path, folder / "more")])
        speedups = [theirs["seconds"] / mine["seconds"] for theirs, mine in zip(trl, ours, strict=True)]
        return {"speedup": statistics.median(speedups), "memory_ratio": ratio(found, "bytes"), **found}


def ratio(found: dict, name: str) -> float:
    return found["ours"][name] / found["trl"][name]


def middle(measurements: list[dict]) -> dict:
    seconds = statistics.median(each["seconds"] for each in measurements)
    rows = measurements[0]["rows"]
    return {
        "rows": rows,
        "rows_per_second": rows / seconds,
        "bytes": statistics.median(each["bytes"] for each in measurements),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--more", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    for name in ("--arm", "--path", "--cache"):  # of a child
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        path, cache = Path(options.path), Path(options.cache)
        cache.mkdir(exist_ok=True)
        arm = options.arm
        print(json.dumps(prepare_trl(path, cache) if arm == "trl" else prepare_ours(path, cache, arm == "sandbox")))
        return
    found = compare(options.rows, options.more, options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    said = {"ours": "ours", "trl": "TRL", "kept": "ours, kept", "sandbox": "ours, in the sandbox", "more": "ours"}
    for name, words in said.items():
        if name in found:
            figure = found[name]
            speed, memory = figure["rows_per_second"], figure["bytes"] / 2**20
            print(f"{words}: {figure['rows']:,} rows at {speed:,.0f} a second, {memory:,.0f} MB at the peak")
    print(f"{found['speedup']:.1f} times as fast as TRL, in {found['memory_ratio']:.2f} of the memory")


if __name__ == "__main__":
    main()

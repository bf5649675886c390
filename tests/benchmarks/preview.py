"""How long a preview takes to render, against transformers' own apply_chat_template, side by side in one run.

    python tests/benchmarks/preview.py [--rounds 15] [--json]

A conversation of 1,000 tokens, the embedded model's tokenizer; once with its own template, which has no marks, and once
with our chatml, which has. Prints milliseconds and their ratio; medians over the rounds, the two taken in turn.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from sft.chat_format import ChatFormat, preset
from sft.models import load_tokenizer, locate

TOKENS = 1000
WORDS = "The quick brown fox jumps over the lazy dog near the river bank while 12 birds sing in the old tree. "


def conversation(chat_format: ChatFormat) -> list[dict]:
    """Ten messages that render to some 1,000 tokens."""
    times = 1
    while True:
        messages = [{"role": ("user", "assistant")[at % 2], "content": WORDS * times} for at in range(10)]
        if len(chat_format.render(messages).token_ids) >= TOKENS:
            return messages
        times += 1


def milliseconds(action: Callable) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def render_times(chat_format: ChatFormat, rounds: int) -> tuple[float, float]:
    """Medians: ours, and transformers'."""
    messages, template = conversation(chat_format), chat_format.chat_template
    ours, theirs = [], []
    for _ in range(rounds + 1):  # the first warms up
        theirs.append(milliseconds(lambda: chat_format.tokenizer.apply_chat_template(messages, chat_template=template)))
        ours.append(milliseconds(lambda: chat_format.render(messages)))
    return statistics.median(ours[1:]), statistics.median(theirs[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tokenizer = load_tokenizer(locate("embedded"))
    formats = {"unmarked": ChatFormat.of(tokenizer), "marked": ChatFormat(tokenizer, preset("chatml"))}
    times = {name: render_times(chat_format, options.rounds) for name, chat_format in formats.items()}
    ratios = {name: ours / theirs for name, (ours, theirs) in times.items()}
    figures = {"render_ratio": max(ratios.values())}  # the worse of the two
    if options.json:
        print(json.dumps(figures))
        return
    for name, (ours, theirs) in times.items():
        print(f"{name}: apply_chat_template {theirs:.2f} ms, render {ours:.2f} ms, ratio {ratios[name]:.2f}")


if __name__ == "__main__":
    main()

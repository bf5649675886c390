"""How long until the page answers, against a hello-world of Gradio, side by side in one run.

    python tests/benchmarks/startup.py [--rounds 5] [--json]

Prints seconds until HTTP 200 and their ratio; medians over the rounds, the two taken in turn.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELLO = "import gradio as gr; gr.Interface(lambda name: name, 'text', 'text').launch()"


def seconds_to_page(command: list[str]) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - began < 120:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    if answer.status == 200:
                        return time.perf_counter() - began
            except OSError:
                time.sleep(0.02)
        raise SystemExit(f"{command} did not answer within two minutes")
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    hello, page = [], []
    for _ in range(options.rounds):
        hello.append(seconds_to_page([sys.executable, "-c", HELLO]))
        page.append(seconds_to_page([sys.executable, "app.py"]))
    ratio = statistics.median(ours / theirs for ours, theirs in zip(page, hello, strict=True))
    if options.json:
        print(json.dumps({"page_ratio": ratio}))
        return
    print(f"hello world {statistics.median(hello):.2f} s, page {statistics.median(page):.2f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()

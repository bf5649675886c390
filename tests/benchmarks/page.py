"""How quickly the page answers its own requests while a training is under way and many pages are connected.

python tests/benchmarks/page.py [--pages 20] [--seconds 30] [--json]

Starts the app and a training of the embedded model. Each page then asks what its open tab asks: every second for the
run, every five seconds for the list of runs. Prints the median and the 95th percentile in milliseconds.
"""

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "browser")]

from serving import App

from sft import launch
from sft.config import TrainConfig
from sft.run import Run

EVERY = {"run-picker": 1.0, "runs-table": 5.0}  # seconds between two ticks, by a component that the tick is about


class Page:
    """What a connected page sends, over one connection that stays open. `times` are in milliseconds."""

    def __init__(self, app: App, number: int, run: str):
        self.connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=30)
        self.session, self.run = f"page{number:06}", run
        self.times: list[float] = []

    def ask(self, tick: dict) -> None:
        body = {**tick, "session_hash": self.session, "event_data": None, "trigger_id": None}
        body["data"] = [self.run if value == "run" else None for value in tick["data"]]
        began = time.perf_counter()
        self.connection.request(
            "POST", "/gradio_api/run/predict", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = self.connection.getresponse()
        answer = response.read()
        self.times.append((time.perf_counter() - began) * 1000)
        assert response.status == 200, answer

    def stay(self, ticks: dict[str, dict], seconds: float, offset: float) -> None:
        """Asks at the pace of the page's own timers; `offset` is when it was opened."""
        began = time.perf_counter() + offset
        due = dict.fromkeys(ticks, began)
        while (name := min(due, key=due.get)) and due[name] < began + seconds:
            time.sleep(max(0.0, due[name] - time.perf_counter()))
            self.ask(ticks[name])
            due[name] += EVERY[name]


def calls_of(app: App, event: str) -> dict[str, dict]:
    """The page's calls at an event, by the component that each is about: the function, and what it is given."""
    connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=30)
    connection.request("GET", "/config")
    config = json.loads(connection.getresponse().read())
    names = {each["id"]: each["props"].get("elem_id") for each in config["components"]}
    found = {}
    for each in config["dependencies"]:
        about = [names[at] for at in [*each["inputs"], *each["outputs"]] if names[at] in EVERY]
        if about and any(name == event for _, name in each["targets"]):
            data = ["run" if names[at] == "run-picker" else None for at in each["inputs"]]
            found[about[0]] = {"fn_index": each["id"], "data": data}
    return found


def measure(app: App, run: Run, pages: int, seconds: float) -> list[float]:
    """The times of all requests, in milliseconds, sorted."""
    arrive, ticks = calls_of(app, "load")["run-picker"], calls_of(app, "tick")
    assert ticks.keys() == EVERY.keys(), ticks
    opened = [Page(app, number, run.name) for number in range(pages)]
    for page in opened:
        page.ask(arrive)
        page.times.clear()
    step = run.status().step
    threads = [
        threading.Thread(target=page.stay, args=(ticks, seconds, number / pages)) for number, page in enumerate(opened)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.status().state == "training", run.status()
    assert run.status().step > step
    return sorted(took for page in opened for took in page.times)


def started(app: App, deadline: float = 180) -> Run:
    """A training of the embedded model that has taken some steps, in the app's own folder of runs."""
    config = replace(TrainConfig.load(ROOT / "examples" / "support-json.yaml"), max_steps=100_000)
    run = launch.start(config, app.runs)
    until = time.monotonic() + deadline
    while run.status().step < 3:
        assert run.status().active and time.monotonic() < until, run.log_tail()
        time.sleep(0.2)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    app = App(Path(tempfile.mkdtemp()))
    app.start()
    run = started(app)
    try:
        times = measure(app, run, options.pages, options.seconds)
    finally:
        launch.stop(run)
        app.stop()
    median, late = (times[int(len(times) * share)] for share in (0.5, 0.95))
    figures = {"pages": options.pages, "requests": len(times), "median_ms": median, "p95_ms": late}
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"{len(times)} requests of {options.pages} pages: median {median:.0f} ms, p95 {late:.0f} ms")


if __name__ == "__main__":
    main()

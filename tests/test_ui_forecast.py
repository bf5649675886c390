"""The forecast on the page: what is said while it is made and after, when it starts by itself, and what it forbids."""

import asyncio
import dataclasses
import json
import sys
import time
from pathlib import Path

import psutil
import pytest

from sft.config import TrainConfig
from sft.errors import ConfigError
from sft.run import duration
from sft.runs import create_run
from sft.ui import forecasts, settings

TOLD = {
    "seconds": 162.0, "parts": {"start": 9.0, "training": 153.0}, "memory_bytes": 1.6e9, "free_bytes": 16e9,
    "finetuning_type": "lora", "lora_bytes": 1.6e9, "full_bytes": 3.2e9, "disturbed": False,
}  # fmt: skip
FORM = ["embedded", False, *settings.example_settings("support-json"), "Example", "support-json", None, "", "", "train"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Puts a program of a test's own in the place of `python -m sft forecast`."""
    monkeypatch.setenv("SFT_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(forecasts, "SETTLED", 0.1)
    monkeypatch.setattr(forecasts, "_measured", set())

    def put(code):
        monkeypatch.setattr(forecasts, "COMMAND", [sys.executable, "-c", f"import sys, time, pathlib\n{code}"])

    put(f"print({json.dumps(json.dumps(TOLD))})")
    return put


def cards(steps):
    """All that a handler shows, in turn; a skip is None."""

    async def collect():
        return [None if isinstance(card, dict) else card async for card in steps]

    return asyncio.run(collect())


def test_a_forecast_tells_time_memory_and_what_is_free(command):
    waiting, card = cards(forecasts.asked(forecasts.Page(), *FORM))
    assert forecasts.MEASURING in waiting
    assert "about 2 min 40 s" in card
    assert "start 9 s, training 2 min 30 s" in card
    assert "1.6 GB</b> of 16.0 GB free" in card
    assert card.index("LoRA") < card.index("full")
    assert 'style="width:20.0%"' in card
    assert forecasts.RECKONING in cards(forecasts.asked(forecasts.Page(), *FORM))[0]


def test_the_command_gets_the_form_as_a_config(command, tmp_path):
    command(f"pathlib.Path({str(tmp_path / 'seen')!r}).write_text(pathlib.Path(sys.argv[1]).read_text())\nsys.exit(3)")
    cards(forecasts.asked(forecasts.Page(), *FORM))
    assert TrainConfig.load(tmp_path / "seen") == TrainConfig.load("examples/support-json.yaml")


def test_what_does_not_fit_is_refused_in_words_and_start_is_too(command):
    said = "Loading 100%\\nerror: It takes <31> GB.\\n→ Take batches of 2."
    command(f"print('{said}', file=sys.stderr)\nsys.exit(2)")
    page = forecasts.Page()
    *_, card = cards(forecasts.asked(page, *FORM))
    assert "It takes &lt;31&gt; GB." in card
    assert "Take batches of 2." in card
    assert "Loading" not in card
    with pytest.raises(ConfigError, match=r"^It takes <31> GB"):
        page.check(settings.config_of(*FORM))
    page.check(settings.config_of(*["embedded", True, *FORM[2:]]))  # other settings may fit
    command(f"print({json.dumps(json.dumps(TOLD))})")
    cards(forecasts.asked(page, *FORM))
    page.check(settings.config_of(*FORM))  # there is room again


def test_wrong_settings_and_a_command_that_breaks_are_told(command):
    *_, card = cards(forecasts.asked(forecasts.Page(), "", *FORM[1:]))
    assert "No model is chosen" in card
    command("1 / 0")
    *_, card = cards(forecasts.asked(forecasts.Page(), *FORM))
    assert "The forecast broke off." in card
    assert "ZeroDivisionError" in card


def test_nothing_is_measured_while_a_training_is_under_way(command, tmp_path):
    create_run(settings.config_of(*FORM), tmp_path / "runs", "hers", owner="alice")
    *_, card = cards(forecasts.asked(forecasts.Page(), *FORM))
    assert "A training was under way when you asked" in card
    assert "hers" not in card


def test_changes_start_a_forecast_only_where_it_is_cheap(command):
    page = forecasts.Page()
    assert cards(forecasts.changed(page, *FORM)) == [None]
    cards(forecasts.asked(page, *FORM))
    assert "about 2 min 40 s" in cards(forecasts.changed(page, *FORM))[-1]
    other = ["embedded", True, *FORM[2:]]  # never measured
    assert forecasts.CHANGED in cards(forecasts.changed(page, *other))[-1]


async def collect(steps):
    return [card async for card in steps]


def test_typing_starts_one_forecast(command, tmp_path):
    started = tmp_path / "started"
    code = f"with open({str(started)!r}, 'a') as file: file.write('x')\n"
    command(f"{code}print({json.dumps(json.dumps(TOLD))})")
    page = forecasts.Page()
    cards(forecasts.asked(page, *FORM))

    async def typed():
        steps = [collect(forecasts.changed(page, *FORM)) for _ in range(10)]
        return await asyncio.gather(*steps)

    shown = asyncio.run(typed())
    assert sum(isinstance(each[0], dict) for each in shown) == 9  # skips: only the last change is followed
    assert "about 2 min 40 s" in shown[-1][-1]
    assert started.read_text() == "xx"


@pytest.mark.parametrize("what", ["a change", "a training"])
def test_a_forecast_under_way_ends_with_all_that_it_wrote(command, tmp_path, what):
    scratch = tmp_path / "scratch"
    command(f"import tempfile\npathlib.Path({str(scratch)!r}).write_text(tempfile.mkdtemp())\ntime.sleep(60)")
    page = forecasts.Page()

    async def interrupted():
        slow = asyncio.ensure_future(collect(forecasts.asked(page, *FORM)))
        while not (scratch.is_file() and scratch.read_text()):
            await asyncio.sleep(0.05)
        if what == "a change":
            return await collect(forecasts.changed(page, "embedded", True, *FORM[2:])), await slow
        create_run(settings.config_of(*FORM), tmp_path / "runs", owner="alice")  # on whichever page Start is pressed
        return (await slow,)

    began = time.monotonic()
    shown, *slow = asyncio.run(interrupted())
    assert time.monotonic() - began < 10
    assert (forecasts.CHANGED if what == "a change" else forecasts.BUSY) in shown[-1]
    assert all(len(cards) == 1 for cards in slow)  # what was given up does not paint over what came after
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert not [child for child in children if "time.sleep(60)" in " ".join(child.cmdline())]
    assert not Path(scratch.read_text()).exists()


def test_the_command_tells_what_the_card_shows():
    from sft.forecast import Forecast

    assert {item.name for item in dataclasses.fields(Forecast)} == TOLD.keys()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(8.4, "8 s"), (59.9, "1 min"), (162, "2 min 40 s"), (299, "5 min"), (3599, "1 h"), (12_000, "3 h 20 min")],
)
def test_durations_are_told_as_exactly_as_they_are_known(seconds, words):
    assert duration(seconds) == words

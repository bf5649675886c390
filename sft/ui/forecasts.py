"""The forecast above Start: how long a run will take and how much memory, before it starts.

`python -m sft forecast` tells it, in a process of its own: it imports what training needs, and the first time it
trains a few steps to measure the machine. That costs seconds of a whole core, so there is one such process at a time.
It starts when it is asked for; by itself only where the machine was measured for such a training already.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import gradio as gr
import psutil

from sft.calibration import SECONDS, SETTINGS
from sft.config import TrainConfig
from sft.errors import ConfigError, UserError
from sft.runs import list_runs, runs_dir
from sft.ui import paint
from sft.ui.forecast_card import told
from sft.ui.settings import config_of

SETTLED = 1.5  # seconds without a change before a forecast starts by itself
COMMAND = [sys.executable, "-m", "sft", "forecast", "--json"]
EMPTY = "How long will it take, and will it fit into memory? Ask before you start: it takes some seconds."
MEASURING = f"Measuring this machine, about {SECONDS} s the first time …"
RECKONING = "Reckoning time and memory …"
CHANGED = "The settings have changed. Ask again."
BUSY = (
    "A training was under way when you asked, so this machine could not be measured. Ask again when it has ended; "
    "until then yours would wait in line."
)
_NICENESS = 10
_QUIET = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None, "trigger_mode": "multiple"}
_one = asyncio.Semaphore(1)
_measured: set[tuple] = set()  # the kinds of training that were forecast since the app started


class Page:
    """What one visitor's page asked last. It is not exchanged but changed, so that a process that runs sees it."""

    number = 0  # of the request; an older one is given up
    shown = False  # whether the card tells something that becomes old
    refused: tuple[TrainConfig, str, str] | None = None  # a config, why it will not do, and what to change

    def next(self) -> int:
        self.number += 1
        return self.number

    def check(self, config: TrainConfig) -> None:
        """Raises ConfigError for a config that the forecast refused."""
        if self.refused and self.refused[0] == config:
            _, message, hint = self.refused
            raise ConfigError(message, f"{hint} Where that has changed since, ask for the forecast again.")


def build(whole_form: list, changes: list[Callable]) -> dict:
    """Builds and wires the card. `changes` are the events by which a person changes the form."""
    page_st = gr.State(Page())
    card_html = gr.HTML(paint.empty(EMPTY), elem_id="forecast")
    ask_btn = gr.Button("Forecast time and memory", size="sm", elem_id="ask-forecast")
    about = {"inputs": [page_st, *whole_form], "outputs": card_html, **_QUIET}
    ask_btn.click(asked, **about)
    gr.on(changes, changed, **about)
    return {"page_st": page_st, "changed": {"fn": changed, **about}}


async def asked(page: Page, *values) -> AsyncIterator[str]:
    """The card while the forecast is made, and then what it says."""
    mine, page.refused, page.shown = page.next(), None, True
    try:
        config = await asyncio.to_thread(config_of, *values)
        yield paint.loading(RECKONING if _kind(config) in _measured else MEASURING)
        async with _one:
            card = await _forecast(page, mine, config)
    except UserError as error:
        card = paint.problem("No forecast", error.message, error.hint)
    if page.number == mine:
        yield card


async def changed(page: Page, *values) -> AsyncIterator:
    """A forecast by itself once the form rests, where that is cheap; else a word that the last one is old."""
    mine = page.next()
    await asyncio.sleep(SETTLED)
    if page.number != mine:
        yield gr.skip()
        return
    try:
        cheap = _kind(await asyncio.to_thread(config_of, *values)) in _measured
    except UserError:
        cheap = False  # what is wrong is told by Start, and to those who ask
    if cheap:
        async for card in asked(page, *values):
            yield card
    else:
        yield paint.empty(CHANGED) if page.shown else gr.skip()


async def _forecast(page: Page, mine: int, config: TrainConfig) -> str:
    """The card that says what is to be expected. Raises UserError where the command refuses for another reason."""
    if await asyncio.to_thread(_training):
        return paint.empty(BUSY)
    status, said, complaint = await _run(page, mine, config)
    if status < 0 and await asyncio.to_thread(_training):
        return paint.empty(BUSY)
    if status == 0:
        _measured.add(_kind(config))
        return told(json.loads(said))
    if status == 2:  # after its progress, the command says what is wrong as every command does
        message, _, hint = f"\n{complaint}".partition("\nerror: ")[2].strip().partition("\n→ ")
        page.refused = (config, message, hint)
        return paint.problem("This cannot be started", message, hint)
    raise UserError("The forecast broke off.", (complaint.strip().splitlines() or [""])[-1])


async def _run(page: Page, mine: int, config: TrainConfig) -> tuple[int, str, str]:
    """Exit status, output and complaint of the command. It is ended when the page asks for something else, and when a
    training begins, beside which the machine would be measured as slower than it is: that would be kept."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path, said, complaint = (Path(folder) / name for name in ("config.yaml", "said", "complaint"))
        config.save(path)
        with said.open("wb") as output, complaint.open("wb") as errors:
            # A session of its own, so that what it starts to measure with ends with it.
            process = subprocess.Popen(
                [*COMMAND, path],
                stdout=output,
                stderr=errors,
                env={**os.environ, "TMPDIR": folder},  # checkpoints that it writes are gone too where it is ended
                start_new_session=True,
            )
        psutil.Process(process.pid).nice(_NICENESS)
        try:
            while process.poll() is None and page.number == mine and not await asyncio.to_thread(_training):
                await asyncio.sleep(0.5)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return process.returncode, said.read_text(), complaint.read_text()


def _training() -> bool:
    return any(run.status().active for run in list_runs(runs_dir()))


def _kind(config: TrainConfig) -> tuple:
    """What a measurement of the machine is kept for."""
    return config.model, config.lora_dropout > 0, *(getattr(config, name) for name in SETTINGS)

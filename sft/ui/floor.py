"""Whose turn it is to speak on a page: one reply at a time, until it ends or is told to be quiet."""

from collections.abc import Generator, Iterator
from contextlib import closing
from threading import Event

import gradio as gr

ANSWERS = 1.0  # seconds within which a reply that was told to be quiet has shown what it had begun to show


class Floor:
    """Of one page; the same object in all its events. Whoever has lost the floor shows nothing more."""

    def __init__(self):
        self._ended: Event | None = None  # of the reply that has the floor

    def speak(self, steps: Generator) -> Iterator:
        """The steps of a reply, as long as it has the floor. It takes it from nobody."""
        if self.taken:
            return
        self._ended = mine = Event()
        try:
            with closing(steps):
                for step in steps:
                    if self._ended is not mine:
                        return
                    yield step
        finally:
            mine.set()
            if self._ended is mine:
                self._ended = None

    @property
    def taken(self) -> bool:
        return self._ended is not None

    def quiet(self) -> None:
        """Takes the floor from the reply that has it. What it was about to show is shown when this returns; one that
        is busy with anything longer, such as loading a model, had nothing to show."""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.wait(ANSWERS)


def quiet(floor_st: gr.State) -> dict:
    """The event that lets nobody speak on the page, for whatever comes next."""
    return {
        "fn": Floor.quiet, "inputs": floor_st, "concurrency_limit": None, "trigger_mode": "always_last",
        "show_progress": "hidden", "api_visibility": "private",
    }  # fmt: skip

"""Whose turn it is to speak on a page: one reply at a time, until it ends or is told to be quiet."""

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from threading import Event, Lock

import gradio as gr

PATIENCE = 2.0  # seconds for what is being shown to reach the page; a page that is gone never takes it
TURNS = 10.0  # seconds in which a page has turned, or never will; only data sets that are slow to read take longer


class Floor:
    """Of one page; the same object in all its events. Whoever has lost the floor shows nothing more."""

    def __init__(self):
        self._speaker: _Speaker | None = None
        self._lock = Lock()
        self._turning_since = -TURNS
        self.stopped = False  # by hand, since the page began to turn

    def __deepcopy__(self, memo) -> "Floor":
        """Gradio copies a state's first value for each page."""
        return Floor()

    @property
    def taken(self) -> bool:
        return self._speaker is not None

    @property
    def turning(self) -> bool:
        """Whether the page is about to turn to somebody else: nobody is asked until it has."""
        return time.monotonic() - self._turning_since < TURNS

    def begin_turning(self) -> None:
        self._turning_since, self.stopped = time.monotonic(), False
        self.quiet()

    def end_turning(self) -> None:
        self._turning_since = -TURNS

    def speak(self, steps: Generator) -> Iterator | None:
        """The steps of a reply, tuples, as long as it has the floor. None where another one has it."""
        with self._lock:
            if self.taken:
                return None
            self._speaker = _Speaker()
            return self._steps(self._speaker, steps)

    def _steps(self, mine: "_Speaker", steps: Generator) -> Iterator:
        try:
            with closing(steps):
                for step in steps:
                    if not mine.begins_to_show():
                        yield tuple(gr.skip() for _ in step)  # Gradio shows the last step once more at the end
                        return
                    yield step
                    mine.has_shown.set()  # the page asks for the next step when it has this one
        finally:
            mine.has_shown.set()
            with self._lock:
                if self._speaker is mine:
                    self._speaker = None

    def stop(self) -> None:
        """Somebody wants silence: nor is a question asked by itself when the page has turned."""
        self.stopped = True
        self.quiet()

    def quiet(self) -> None:
        """Takes the floor from the reply that has it. Whatever it shows is shown when this returns."""
        with self._lock:
            speaker, self._speaker = self._speaker, None
        if speaker:
            speaker.hush()


class _Speaker:
    def __init__(self):
        self.has_shown = Event()
        self.has_shown.set()
        self._hushed, self._lock = False, Lock()

    def begins_to_show(self) -> bool:
        with self._lock:
            if not self._hushed:
                self.has_shown.clear()
            return not self._hushed

    def hush(self) -> None:
        with self._lock:
            self._hushed = True
        self.has_shown.wait(PATIENCE)


def quiet(floor_st: gr.State) -> dict:
    """The event that lets nobody speak on the page, for whatever comes next."""
    return {
        "fn": Floor.stop, "inputs": floor_st, "concurrency_limit": None, "trigger_mode": "always_last",
        "show_progress": "hidden", "api_visibility": "private",
    }  # fmt: skip

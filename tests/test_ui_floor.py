"""Who may speak on a page: one reply, until it ends or is told to be quiet; then it shows nothing more."""

import threading
import time

import gradio as gr

from sft.ui import floor
from sft.ui.floor import Floor


def steps(said, count=3):
    try:
        for number in range(count):
            said.append(number)
            yield (number,)
    finally:
        said.append("closed")


def test_a_reply_speaks_to_its_end_and_then_the_next_one_may():
    said, page = [], Floor()
    assert list(page.speak(steps(said))) == [(0,), (1,), (2,)]
    assert not page.taken
    assert list(page.speak(steps(said))) == [(0,), (1,), (2,)]


def test_while_one_speaks_no_other_does():
    said, page = [], Floor()
    first = page.speak(steps(said))
    next(first)
    assert page.taken
    assert page.speak(steps([])) is None
    assert list(first) == [(1,), (2,)]


def test_one_that_was_told_to_be_quiet_shows_nothing_more_and_is_closed(monkeypatch):
    monkeypatch.setattr(floor, "PATIENCE", 0.01)  # here nobody takes what is shown
    said, page = [], Floor()
    first = page.speak(steps(said))
    next(first)
    page.quiet()
    assert not page.taken
    second = page.speak(steps([]))
    assert next(second) == (0,)  # which does not wait for the first to notice
    assert list(first) == [(gr.skip(),)]
    assert said == [0, 1, "closed"]
    assert page.taken
    assert list(second) == [(1,), (2,)]


def speaking(page, shown, begun, between=0.0, showing=0.0):
    """Shows a hundred steps, in a thread."""

    def works():
        for step in range(100):
            begun.set()
            time.sleep(between)
            yield (step,)

    def show():
        for step in page.speak(works()):
            time.sleep(showing)
            if step != (gr.skip(),):
                shown.append(step)

    threading.Thread(target=show).start()
    begun.wait()


def test_quiet_waits_until_what_is_being_shown_has_been():
    for _ in range(5):
        shown, page, begun = [], Floor(), threading.Event()
        speaking(page, shown, begun, showing=0.1)
        time.sleep(0.05)
        page.quiet()
        count = len(shown)
        time.sleep(0.25)
        assert len(shown) == count


def test_quiet_does_not_wait_for_work_that_has_nothing_to_show_yet():
    shown, page, begun = [], Floor(), threading.Event()
    speaking(page, shown, begun, between=0.5)
    began = time.monotonic()
    page.quiet()
    assert time.monotonic() - began < 0.3
    time.sleep(0.6)
    assert shown == []


def test_a_reply_that_breaks_gives_the_floor_back():
    page = Floor()

    def breaks():
        yield 1
        raise ValueError

    spoken = page.speak(breaks())
    next(spoken)
    try:
        next(spoken)
    except ValueError:
        assert not page.taken
    else:
        raise AssertionError

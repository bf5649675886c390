"""Draws losses over steps as SVG: the curve of a run, those of several over each other, and a small one for a list.

Lines are stretched to the width there is; words and marks around them are HTML and are not, so that they stay legible
on a telephone.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from sft.ui.paint import escape

POINTS = 240  # of one line; more cannot be told apart
_SIDE = 1000  # of the drawing, before it is stretched

Points = list[tuple[float, float]]


class Line(NamedTuple):
    """`points` are (step, loss); `look` is a class of the style sheet, which knows its colour and its dashes."""

    name: str
    look: str
    points: Points


def lines_of(events: Iterable[dict]) -> list[Line]:
    """Train loss, held-out loss and the train loss on stop tokens alone, as far as they were measured."""
    found = {"train": [], "held-out": [], "stop token": []}
    for event in events:
        if event["kind"] == "log":
            _add(found["train"], event, "loss")
            _add(found["stop token"], event, "stop_loss")
        elif event["kind"] == "eval":
            _add(found["held-out"], event, "loss")
    return [Line(name, name.replace(" ", "-"), points) for name, points in found.items() if points]


def _add(points: Points, event: dict, what: str) -> None:
    loss = event.get(what)
    if loss is not None and math.isfinite(loss):
        points.append((event["step"], loss))


def curve(lines: list[Line], last_step: int, marked: Iterable[int] = ()) -> str:
    """All lines in one drawing with its axes. `marked` steps have a small mark: there the model was asked.

    The upright line stands where the element's `--at` says, a share of the width; the strip of answers sets it.
    """
    last_step = max(last_step, 1)
    top = max((loss for line in lines for _, loss in line.points), default=0) or 1
    drawn = "".join(_path(line, last_step, top) for line in lines)
    levels = "".join(f'<path class="level" d="M0 {_up(level, top)}H{_SIDE}"/>' for level in _ticks(top))
    marks = "".join(f'<i class="asked" style="left:{step / last_step:.2%}"></i>' for step in marked)
    heights = "".join(f'<span class="y" style="bottom:{level / top:.1%}">{level:g}</span>' for level in _ticks(top))
    along = [(step / last_step, step) for step in _ticks(last_step)]
    steps = "".join(f'<span class="x" style="left:{share:.1%}">{step:g}</span>' for share, step in along)
    keys = "".join(f'<li class="{line.look}">{escape(line.name)}</li>' for line in lines)
    return (
        f'<figure class="curve"><ul class="keys">{keys}</ul><div class="plot">'
        f'<svg viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none" role="img" aria-label="{_words(lines)}">'
        f"{levels}{drawn}</svg>{heights}{steps}{marks}"
        '<i class="cursor"></i></div><figcaption>loss per trained token, over steps</figcaption></figure>'
    )


def spark(points: Points) -> str:
    """A curve as small as a word; its figures stand beside it."""
    if not points:
        return ""
    line = Line("", "train", thinned(points, 40))
    drawn = _path(line, max(step for step, _ in line.points), max(loss for _, loss in line.points) or 1, dotted=1)
    box = f'viewBox="0 0 {_SIDE} {_SIDE}" preserveAspectRatio="none"'
    return f'<svg class="spark" {box} aria-hidden="true">{drawn}</svg>'


def thinned(points: Points, most: int = POINTS) -> Points:
    """About `most` of the points, evenly; the last one stays."""
    stride = max(1, -(-len(points) // most))
    return [*points[:-1:stride], *points[-1:]]


def _path(line: Line, last_step: float, top: float, dotted: int = 24) -> str:
    points = [f"{step / last_step * _SIDE:.0f} {_up(loss, top)}" for step, loss in thinned(line.points)]
    # Lines of up to `dotted` points have dots, which are lines without length: one point alone would not be seen.
    dots = f'<path class="dots" d="{"".join(f"M{point}h0" for point in points)}"/>' if len(points) <= dotted else ""
    return f'<g class="{line.look}"><path d="M{"L".join(points)}"/>{dots}</g>'


def _up(loss: float, top: float) -> str:
    return f"{(1 - loss / top) * _SIDE:.0f}"


def _ticks(most: float) -> list[float]:
    """Two to five round numbers from 0 to `most`."""
    rough = most / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [number * step for number in range(int(most / step) + 1)]


def _words(lines: list[Line]) -> str:
    """What somebody hears who does not see the drawing."""
    said = [
        f"{line.name} from {line.points[0][1]:.3f} at step {line.points[0][0]} to {line.points[-1][1]:.3f} at step "
        f"{line.points[-1][0]}"
        for line in lines
        if line.points
    ]
    return escape(f"Loss by step: {'; '.join(said)}.")

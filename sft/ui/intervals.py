"""Paints a share and the interval in which it may lie, as a small bar with whiskers and as words."""

Interval = tuple[float, float]  # both from 0 to 1


def bar(share: float, interval: Interval | None = None, half: bool = False) -> str:
    """The bar alone, for the eye; the words beside it say the same. `half` marks one half, where nothing is told."""
    whisker = ""
    if interval:
        low, high = interval
        whisker = f'<b style="left:{low:.1%};width:{high - low:.1%}"></b>'
    mark = "<u></u>" if half else ""
    return f'<span class="interval" aria-hidden="true"><i style="width:{share:.1%}"></i>{mark}{whisker}</span>'


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def between(interval: Interval) -> str:
    """An interval in per cent."""
    low, high = interval
    return f"{100 * low:.0f} to {percent(high)}"

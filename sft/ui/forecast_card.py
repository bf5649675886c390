"""Paints a forecast: time, memory beside what is free, and LoRA's memory beside that of full fine-tuning."""

from sft.ui.paint import escape
from sft.ui.run_card import gigabytes


def told(forecast: dict) -> str:
    """The card of a forecast as `python -m sft forecast --json` prints it."""
    need, free = forecast["memory_bytes"], forecast["free_bytes"]
    kinds = "".join(
        f'<li class="{"chosen" if kind == forecast["finetuning_type"] else ""}"><span>{name}</span>{_bar(size, free)}'
        f"<b>{gigabytes(size)}</b></li>"
        for kind, name, size in (("lora", "LoRA", forecast["lora_bytes"]), ("full", "full", forecast["full_bytes"]))
    )
    parts = [f"{escape(name)} {duration(seconds)}" for name, seconds in forecast["parts"].items() if seconds >= 1]
    return (
        f'<div class="card forecast" role="status"><p><b>about {duration(forecast["seconds"])}</b> · '
        f"<b>{gigabytes(need)}</b> of {gigabytes(free)} free</p>"
        f'<p class="hint">{", ".join(parts)}</p>'
        f'<ul class="needs" aria-label="Memory at its peak">{kinds}</ul></div>'
    )


def duration(seconds: float) -> str:
    """Seconds in words, as exactly as a forecast can be: 42 s, 2 min 40 s, 3 h 20 min."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    tens, minutes = round(seconds / 10), round(seconds / 60)
    if tens < 360:
        return _both(tens // 6, "min", tens % 6 * 10, "s")
    return _both(minutes // 60, "h", minutes % 60, "min")


def _both(large: int, unit: str, small: int, part: str) -> str:
    return f"{large:,} {unit} {small} {part}" if small else f"{large:,} {unit}"


def _bar(size: float, free: float) -> str:
    """A bar as long as the share of free memory; what does not fit is hatched."""
    return f'<i class="{"fits" if size <= free else "too-much"}"><i style="width:{min(size / free, 1):.1%}"></i></i>'

"""Paints a forecast: time, memory beside what is free, and LoRA's memory beside that of full fine-tuning."""

from sft.run import duration, gigabytes
from sft.ui.paint import escape

DISTURBED = ". Measured while other programs worked: alone it is quicker."


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
        f'<p class="hint">{", ".join(parts)}{DISTURBED if forecast["disturbed"] else ""}</p>'
        f'<ul class="needs" aria-label="Memory at its peak">{kinds}</ul></div>'
    )


def _bar(size: float, free: float) -> str:
    """A bar as long as the share of free memory; what does not fit is hatched."""
    return f'<i class="{"fits" if size <= free else "too-much"}"><i style="width:{min(size / free, 1):.1%}"></i></i>'

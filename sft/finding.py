"""A finding of the doctor's: what it says, what to do about it, and where it is."""

from dataclasses import dataclass

LEVELS = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something that a person should know. `level` is 'error', 'warning' or 'note'.

    `start` and `end` are characters of the rendered text, `message` the index of a message; None where it has no
    place of that kind.
    """

    level: str
    code: str
    message: str
    remedy: str
    start: int | None = None
    end: int | None = None
    message_index: int | None = None

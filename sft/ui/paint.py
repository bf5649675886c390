"""Paints what goes wrong, what is going on, and parts of other views as HTML. All that a person wrote is escaped."""

import html
import re

TEXT_SHOWN = 100_000  # characters of a text; a template may write five times as many
_ESCAPED = {ord(letter): html.escape(letter) for letter in "&<>\"'"}
_SPACE = 0xE002  # a private-use character that stands for a space to be seen
_VISIBLE = {
    **_ESCAPED,
    _SPACE: '<i class="ws">·</i>',
    ord("\n"): '<i class="ws">↵</i>\n',
    ord("\t"): '<i class="ws">⇥</i>\t',
}
_SPACES = re.compile("^ +| +$|  +", re.MULTILINE)  # the spaces that one would overlook


def escape(text: str) -> str:
    return html.escape(str(text), quote=True)


def visible(text: str) -> str:
    """Escaped text in which line breaks, tabs and the spaces that one would overlook are seen."""
    return _SPACES.sub(lambda spaces: chr(_SPACE) * len(spaces[0]), text).translate(_VISIBLE)


def shown(text: str) -> str:
    """The same of as much as a browser takes at once."""
    rest = len(text) - TEXT_SHOWN
    return visible(text[:TEXT_SHOWN]) + (f"<b> … and {rest:,} more characters</b>" if rest > 0 else "")


def problem(title: str, text: str, hint: str = "") -> str:
    """A card for the user's mistake: what is wrong, and what to change."""
    hint = f"<p class='hint'>→ {escape(hint)}</p>" if hint else ""
    return f'<div class="card problem" role="alert"><h4>{escape(title)}</h4><pre>{escape(text)}</pre>{hint}</div>'


def empty(text: str) -> str:
    return f'<div class="card empty-state">{escape(text)}</div>'


def loading(text: str) -> str:
    return f'<div class="card empty-state reading" role="status">{escape(text)}</div>'


def panel(title: str, about: str, inside: str) -> str:
    """A part of a view that scrolls by itself, also with keys. `inside` is HTML."""
    title, about = escape(title), escape(about)
    small, label = (f" <small>{about}</small>", f"{title}: {about}") if about else ("", title)
    return (
        f'<section class="panel"><h3>{title}{small}</h3>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{inside}</div></section>'
    )


def parted(text: str, at: int, kind: str) -> str:
    """A text with all from `at` on marked; of a very long one the part around `at`."""
    first = max(0, at - TEXT_SHOWN)
    before = ("… " if first else "") + visible(text[first:at])
    rest = f'<mark class="{kind}">{shown(text[at:]) or "▮"}</mark>'
    return f'<div class="text-view"><span class="same">{before}</span>{rest}</div>'


def progress_bar(share: float, label: str) -> str:
    share = min(max(share, 0.0), 1.0)
    return (
        f'<div class="bar" role="progressbar" aria-label="{escape(label)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share * 100:.0f}"><div style="width:{share:.1%}"></div></div>'
    )


def clock(seconds: float) -> str:
    """Seconds as 0:42 or 1:02:03."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"

"""Paints a reply whose tokens are coloured by what tuning did to their probability, and the numbers behind it.

Colour is never the only sign: what became likelier is underlined, what became less likely is underlined in dashes.
"""

from collections.abc import Iterable
from math import exp, log
from typing import TYPE_CHECKING

from sft.ui.paint import escape
from sft.ui.proof_view import percent

if TYPE_CHECKING:  # torch takes seconds to import
    from sft.compare import Shift

STRONGEST = 8  # shifts that are listed
FACTORS = (1.5, 3, 10, 100)  # a shade for each: the probability changed at least so many times
_SIGNS = str.maketrans({"\n": "↵\n", "\t": "⇥\t", "\r": "␍"})


def painted(found: list["Shift"], tuned: str, parts: int | None, other: str) -> str:
    """The reply in colours, where it parts from what others wrote or would have written, and the strongest shifts.

    `tuned` is the name of the pane whose model is compared with the base model. `parts` is the place at which the reply
    parts from that of the pane `other`.
    """
    from sft.compare import choices_part, strongest  # torch takes seconds to import

    if not found:
        return '<p class="empty">This reply has no tokens.</p>'
    apart = choices_part(found)
    tokens = "".join(_token(at, shift, at == apart) for at, shift in enumerate(found))
    return (
        f'{_legend(tuned)}<div class="shifts"><div class="text-view" role="group" aria-label="The reply">{tokens}</div>'
        f'<p class="pointed" aria-hidden="true">Point at a token for its numbers.</p></div>'
        f"{_parting(found, apart, parts, other)}"
        f"{_table(found, strongest(found, STRONGEST), 'The strongest shifts')}"
        f'<details class="every-shift"><summary>Every token in order</summary>'
        f"{_table(found, range(len(found)), 'Every token')}</details>"
    )


def _legend(tuned: str) -> str:
    return (
        '<p class="how">A token is <span class="shift more-3">blue</span> where the '
        f'{escape(tuned.lower())} finds it likelier than the base model does, <span class="shift less-3">orange</span> '
        f"where less likely, and the stronger the further apart they are, from {FACTORS[0]} to {FACTORS[-1]} times and "
        'more; <span class="shift first-apart">framed</span> is the first where they would have chosen differently.</p>'
    )


def _token(at: int, shift: "Shift", first_apart: bool) -> str:
    numbers = (
        f"token {at + 1}: base {percent(exp(shift.base))}, tuned {percent(exp(shift.tuned))}, {_change(shift)}; "
        f"likeliest here: base {_quoted(shift.base_choice)}, tuned {_quoted(shift.tuned_choice)}"
    )
    kinds = f"shift{_shade(shift.difference)}" + " first-apart" * first_apart
    return f'<span class="{kinds}">{escape(shift.text.translate(_SIGNS))}<small>{escape(numbers)}</small></span>'


def _shade(difference: float) -> str:
    shade = sum(abs(difference) >= log(factor) for factor in FACTORS)
    return f" {'more' if difference > 0 else 'less'}-{shade}" if shade else ""


def _change(shift: "Shift") -> str:
    """How many times likelier or less likely, and the same in nats."""
    factor = exp(min(abs(shift.difference), 700))
    times = f"{factor:,.0f}" if 10 <= factor < 1e6 else f"{factor:.3g}"
    return f"{times} times {'likelier' if shift.difference >= 0 else 'less likely'} ({shift.difference:+.2f} nats)"


def _quoted(text: str) -> str:
    return f"“{text.translate(_SIGNS)}”"


def _parting(found: list["Shift"], apart: int | None, parts: int | None, other: str) -> str:
    said = []
    if all(not _shade(shift.difference) for shift in found):
        said.append(f"No token became {FACTORS[0]} times likelier or less likely.")
    if apart is None:
        said.append("At every token both would have chosen the same.")
    else:
        base, tuned = (_quoted(text) for text in (found[apart].base_choice, found[apart].tuned_choice))
        said.append(f"First different choice: token {apart + 1}, base {base}, tuned {tuned}.")
    if parts is None:
        said.append(f"The reply of the {other.lower()} is the same, token for token.")
    else:
        said.append(f"The reply of the {other.lower()} parts from this one at token {parts + 1}.")
    return f'<p class="parting">{escape(" ".join(said))}</p>'


def _table(found: list["Shift"], places: Iterable[int], title: str) -> str:
    rows = "".join(
        f'<tr><td>{at + 1}</td><th scope="row"><code>{escape(found[at].text.translate(_SIGNS))}</code></th>'
        f"<td>{escape(percent(exp(found[at].base)))}</td><td>{escape(percent(exp(found[at].tuned)))}</td>"
        f"<td>{_change(found[at])}</td>"
        f"<td><code>{escape(found[at].base_choice.translate(_SIGNS))}</code></td>"
        f"<td><code>{escape(found[at].tuned_choice.translate(_SIGNS))}</code></td></tr>"
        for at in places
    )
    heads = ("place", "token", "base", "tuned", "change", "base’s choice", "tuned’s choice")
    columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f'<div class="shift-table" tabindex="0" role="region" aria-label="{title}"><table><caption>{title}</caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table></div>"
    )

"""Paints a blind vote: two replies without names, the names after the vote, and what all votes say together.

The replies are painted from their texts in the order shown, so that nothing in the page can tell whose they are.
"""

from sft.ui import intervals, paint
from sft.ui.answering import TRAINING
from sft.votes import FEWEST, Tally, Vote

NAMES = {"base": "the base model", "tuned": "the tuned model"}
WAITING = "Both are answering. The replies appear together, in random order, when both have ended."
_AGREED = "Both replies are the same, word for word. Only a tie or both bad can be said."
_TOOK = {"tie": "a tie", "bad": "both bad"}


def waiting(share: float, training: bool) -> str:
    """While they answer. `share` is how far the longer reply is at most; `training`: beside a training."""
    beside = f'<p class="hint">{TRAINING}</p>' if training else ""
    return f'<div role="status">{paint.loading(WAITING)}{paint.progress_bar(share, "Replies")}{beside}</div>'


def replies(first: str, second: str) -> str:
    """The two texts as A and B."""
    same = f'<p class="hint">{_AGREED}</p>' if first == second else ""
    return f'<div class="pair ballot">{_reply("A", first)}{_reply("B", second)}</div>{same}'


def revealed(vote: Vote) -> str:
    """The same after the vote, with names."""
    order = ("base", "tuned") if vote.first == "base" else ("tuned", "base")
    titles = [f"{letter}: {NAMES[who]}" for letter, who in zip("AB", order, strict=True)]
    texts = [getattr(vote, who) for who in order]
    shown = "".join(_reply(*each) for each in zip(titles, texts, strict=True))
    took = _TOOK.get(vote.choice) or f"{NAMES[vote.choice]} is better"
    return f'<p class="revealed" role="status">Your vote: <b>{took}</b>.</p><div class="pair ballot">{shown}</div>'


def _reply(title: str, text: str) -> str:
    return (
        f'<article><h4>{title}</h4><div class="reply-text" tabindex="0" role="region" aria-label="{title}">'
        f"{paint.escape(text[: paint.TEXT_SHOWN]) or '∅ nothing'}</div></article>"
    )


def tally(votes: Tally, unreadable: int, earlier: int) -> str:
    """What the votes of a run say; how many lines hold none, and how many votes are about an earlier step of it."""
    left_out = [
        f"{_count(unreadable, 'line')} of votes.jsonl could not be read: a process ended while it wrote."
        if unreadable else "",
        f"{_count(earlier, 'vote')} from before the run was trained on {'is' if earlier == 1 else 'are'} not counted."
        if earlier else "",
    ]  # fmt: skip
    notes = "".join(f'<p class="hint">{said}</p>' for said in left_out if said)
    besides = f"Besides, {_count(votes.tie, 'tie')}, and {votes.bad} both bad. " if votes.tie or votes.bad else ""
    return (
        f'<section class="card tally" aria-label="Votes so far">{_share(votes)}'
        f'<p class="hint">{besides}{needed(votes)}</p>{notes}</section>'
    )


def _share(votes: Tally) -> str:
    if not votes.decided:
        return "<p>No vote has decided between the two yet.</p>"
    return (
        f"<p><b>{intervals.percent(votes.share)}</b> of {_count(votes.decided, 'deciding vote')} for the tuned model; "
        f"95 % interval: {intervals.between(votes.interval)}.</p>"
        f"{intervals.bar(votes.share, votes.interval, half=True)}"
    )


def needed(votes: Tally) -> str:
    """How many votes it takes still. The rule is Tally.needed."""
    if not votes.decided:
        return f"It takes {FEWEST} to tell, if all go to the same; more, if they do not."
    if votes.needed is None:
        return "Both have as many: divided like this, no number of votes tells them apart."
    if votes.needed:
        more = _count(votes.needed, "more deciding vote")
        return f"This may be chance still. Divided as they are now, {more} would tell."
    return f"Enough to tell: people prefer {NAMES['tuned' if votes.tuned > votes.base else 'base']}."


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"

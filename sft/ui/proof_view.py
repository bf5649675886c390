"""Paints the proof: a column for each pane's reply, the prompts where they part, and the two distributions."""

from collections.abc import Sequence
from math import exp
from typing import TYPE_CHECKING

from sft import models
from sft.contest import Contest, Contestant
from sft.ui.paint import escape, shown, visible
from sft.ui.talk import PROMPTED, Pane, Talk, Who
from sft.ui.who import stages

if TYPE_CHECKING:  # torch takes seconds to import
    from sft.chat import Reply, Sampling
    from sft.compare import Proof

BASE, TUNED, PROMPTED_BASE, ANOTHER = "Base model", "Tuned model", "Prompted base model", "Another run"
TEMPLATES = {"right": "the model’s own", "none": "none, the bare text", "wrong": "a wrong one, on purpose"}


def names(who: Who) -> list[str]:
    """What each pane is called."""
    third = PROMPTED_BASE if who.third == PROMPTED else ANOTHER
    return [BASE, *[TUNED] * bool(who.run), *[third] * bool(who.third)]


def tuned_panes(who: Who) -> list[int]:
    """The panes in which a run's weights answer."""
    return [at for at, name in enumerate(names(who)) if name in (TUNED, ANOTHER)]


# ---- what made each reply ----


def made(contest: Contest, talk: Talk) -> str:
    """A table with a column for each pane: from which model, under which settings, and how its reply ended."""
    panes, count = talk.panes, len(talk.panes)
    stops = contest.chat_format.tokenizer
    rows = {
        "Model": [escape(models.title(contest.model_name))] * count,
        "Adapter": [escape(_adapter(contestant, talk.who)) for contestant in contest.contestants],
        "Chat format": [_hash(talk.format_hash)] * count,
        "Template": [TEMPLATES[talk.template]] * count,
        "Sampling": [_sampling(talk.sampling)] * count,
        "Seed": [_seed(talk.sampling)] * count,
        "Ended": [_ended(pane.reply, stops) for pane in panes],
        "Tokens": [_tokens(pane) for pane in panes],
        "Speed": [_speed(pane.reply) for pane in panes],
    }
    heads = "".join(f'<th scope="col">{name}</th>' for name in names(talk.who))
    body = "".join(
        f'<tr><th scope="row">{title}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for title, cells in rows.items()
    )
    return (
        '<div class="made" tabindex="0" role="region" aria-label="What made each reply">'
        f"<table><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _adapter(contestant: Contestant, who: Who) -> str:
    run = contestant.run
    if run is None:
        return "none"
    if contestant.in_full:
        return f"none: the weights that {run.name} tuned in full"
    if contestant.step is not None:
        return f"{run.name}, as after step {contestant.step:,}"
    return f"{run.name}, {stages(run)[-1]:,} steps"


def _hash(sha256: str) -> str:
    """The first of its figures; all of them to see on hover, and to open with keys."""
    if not sha256:
        return "–"
    return f'<details class="hash"><summary title="{sha256}"><code>{sha256[:12]}</code></summary>{sha256}</details>'


def _sampling(sampling: "Sampling | None") -> str:
    if sampling is None:
        return "–"
    room = f"at most {sampling.max_new_tokens} tokens"
    if not sampling.temperature:
        return f"greedy, {room}"
    return f"temperature {sampling.temperature:g}, top p {sampling.top_p:g}, {room}"


def _seed(sampling: "Sampling | None") -> str:
    if sampling is None:
        return "–"
    return f"{sampling.seed}" if sampling.temperature else f"{sampling.seed}, not used: greedy"


def _ended(reply: "Reply | None", tokenizer) -> str:
    if reply is None:
        return "–"
    if reply.stopped:
        return f"by itself, with <code>{escape(tokenizer.decode(reply.token_ids[-1:]))}</code>"
    return "cut at the limit" if reply.cut else "stopped from outside"


def _tokens(pane: Pane) -> str:
    return f"{len(pane.prompt):,} read, {len(pane.reply.token_ids) if pane.reply else 0:,} written"


def _speed(reply: "Reply | None") -> str:
    return f"{len(reply.token_ids) / reply.seconds:.1f} tokens/s" if reply and reply.seconds else "–"


# ---- the exact prompts ----


def prompts(talk: Talk) -> str:
    """What each model read, as text and token ids, with everything marked from where a prompt parts from the first."""
    title, panes = names(talk.who), talk.panes
    first = panes[0]
    others = [at for at in range(1, len(panes)) if panes[at].prompt != first.prompt]
    if others:
        places = [f"{title[at].lower()} from token {_common(first.prompt, panes[at].prompt) + 1:,} on" for at in others]
        said = f"▲ Not what the base model read: {', '.join(places)}"
        views = "".join(_prompt(title[at], panes[at], first) for at in (0, *others))
    else:
        who = ("It", "Both models", "All models")[len(panes) - 1]
        said = (
            f"✓ {who} read the same {len(first.prompt):,} token ids"
            if panes[1:]
            else f"{len(first.prompt):,} token ids"
        )
        views = _prompt("What they read", first, first)
    return (
        f'<details class="prompts"><summary>The prompts, token by token. {said}</summary>'
        f'<div class="beside">{views}</div></details>'
    )


def _common(one: Sequence, other: Sequence) -> int:
    """How long the beginning is that two have in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (this, that) in pairs if this != that), min(len(one), len(other)))


def _prompt(name: str, pane: Pane, first: Pane) -> str:
    letters, at = _common(pane.text, first.text), _common(pane.prompt, first.prompt)
    same, rest = (" ".join(map(str, ids)) for ids in (pane.prompt[:at], pane.prompt[at:]))
    text, ids = (
        f'<mark class="parts">{marked}</mark>' if marked else "" for marked in (shown(pane.text[letters:]), rest)
    )
    return (
        f"<section><h4>{name}</h4>"
        f'<div class="text-view scroll" {_box(name, "text")}>{shown(pane.text[:letters])}{text}</div>'
        f'<pre class="ids" {_box(name, "token ids")}>{same} {ids}</pre></section>'
    )


def _box(name: str, what: str) -> str:
    return f'tabindex="0" role="group" aria-label="{escape(name)}: {what}"'


# ---- how far apart ----


def measured(name: str, proof: "Proof", causes: list[str], parted: bool = False) -> str:
    """The verdict on one pane beside the base model, its numbers, and the likeliest next tokens of both. `parted` says
    that the base pane has read something else."""
    hint = '<p class="hint">Both are measured on what this pane read; the base pane has read its own replies.</p>'
    return (
        f'<section class="measured"><h4>{escape(name)} against base model</h4>{hint if parted else ""}'
        f"{_verdict(proof, causes)}{_numbers(proof)}{_candidates(proof)}</section>"
    )


def _verdict(proof: "Proof", causes: list[str]) -> str:
    if proof.measurable:
        return (
            '<p class="good"><b>✓ On here, off in the base pane.</b> After this prompt this model finds its own next '
            f"token, on average, {_times(proof.divergence)} as likely as the base model does.</p>"
        )
    items = "".join(f"<li>{escape(cause)}</li>" for cause in causes)
    return f'<div class="bad"><p><b>✖ No measurable change at this prompt.</b> Likely why:</p><ul>{items}</ul></div>'


def _times(nats: float) -> str:
    factor = exp(min(nats, 700))
    return f"{factor:,.0f} times" if 10 <= factor < 1e6 else f"{factor:.3g} times"


def _numbers(proof: "Proof") -> str:
    change = proof.change
    matrices = f"{change.matrices:,} {'matrix' if change.matrices == 1 else 'matrices'}"
    return (
        '<dl class="numbers">'
        f"<div><dt>KL divergence, tuned from base</dt><dd>{proof.divergence:.3g} nats</dd></div>"
        f"<div><dt>norm of the change of {matrices}</dt><dd>{change.norm:.3g}</dd></div></dl>"
    )


def _candidates(proof: "Proof") -> str:
    rows = "".join(
        f'<tr><th scope="row"><code>{visible(each.text) or "∅"}</code></th>'
        f'<td class="base-bar">{_bar(each.base)}</td><td class="tuned-bar">{_bar(each.tuned)}</td></tr>'
        for each in proof.candidates
    )
    return (
        '<table class="candidates"><caption>The likeliest next tokens after this prompt, five of each</caption>'
        f'<thead><tr><th scope="col">token</th><th scope="col">base</th><th scope="col">tuned</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _bar(share: float) -> str:
    return f'<span>{escape(percent(share))}</span><i style="--share:{share:.4f}"></i>'


def percent(share: float) -> str:
    """A probability, never rounded to none or all."""
    if share < 0.0001:
        return "< 0.01 %"
    return "> 99.99 %" if share > 0.9999 else f"{share:.2%}".replace("%", " %")

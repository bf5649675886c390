"""Why an adapter may have changed nothing that can be measured: each cause is looked for, none is guessed."""

import json
from math import isfinite

from sft.compare import Proof, proof
from sft.contest import Contest, Contestant
from sft.run import Run

SURE = 0.99  # a token with this probability is as good as settled
LOWERED = 0.95  # training that leaves more than this share of its first loss has hardly begun to learn


def likely_causes(contest: Contest, prompt_ids: list[int], shown: Proof) -> list[str]:
    """Sentences, the likeliest first, about a pair whose `shown` proof at this prompt is not measurable."""
    tuned = contest.contestants[-1]
    if tuned.run is None:
        return ["No adapter is on: this is the model before its first training step."]
    if not isfinite(shown.change.norm):
        return ["The adapter holds numbers that are none: training diverged, or its file is damaged."]
    if shown.change.norm == 0:
        return [_untouched(tuned)]
    found = (
        _other_format(contest, tuned.run),
        _other_ending(contest, prompt_ids),
        _settled(shown),
        _familiar(contest),
    )
    return [cause for cause in found if cause] or [
        f"The weights have changed, by a norm of {shown.change.norm:.3g}: too little to show at this prompt."
    ]


def _untouched(tuned: Contestant) -> str:
    steps = tuned.run.status().step if tuned.step is None else tuned.step
    if tuned.in_full:
        return f"The weights are those of the base model, after {_steps(steps)} of training."
    if not steps:
        return "The run ended before its first step: every B matrix of the adapter is still zero, as it was made."
    rate = tuned.run.config().learning_rate
    return (
        f"The adapter adds exactly zero to every matrix, after {_steps(steps)} at a learning rate of {rate:g}: "
        "nothing was learned, or its file is not what training wrote."
    )


def _other_format(contest: Contest, run: Run) -> str:
    about = json.loads((run.folder / "chat_format.json").read_text(encoding="utf-8"))
    if about["sha256"] == contest.chat_format.hash:
        return ""
    return (
        f"The prompt is written in another chat format ({contest.chat_format.hash[:12]}) than {run.name} was trained "
        f"in ({about['sha256'][:12]}): the adapter never learned to answer it."
    )


def _other_ending(contest: Contest, prompt_ids: list[int]) -> str:
    """A prompt of the chat format ends as all do: with the end of the user's turn and the assistant's header."""
    one, other = (contest.chat_format.prompt_ids([{"role": "user", "content": text}]) for text in ("a", "b"))
    ending = []
    while one and one[-1] == other[-1]:
        ending.insert(0, one.pop())
        other.pop()
    if not ending or prompt_ids[-len(ending) :] == ending:
        return ""
    ending = contest.chat_format.tokenizer.decode(ending)
    return f"The prompt does not end as in training, in {json.dumps(ending, ensure_ascii=False)}: its template differs."


def _settled(shown: Proof) -> str:
    first = shown.candidates[0]
    if min(first.base, first.tuned) < SURE:
        return ""
    return (
        f"Both are sure of this first token ({first.base:.2%} and {first.tuned:.2%}); they may still part later in the "
        "reply, see What changed."
    )


def _familiar(contest: Contest) -> str:
    """The same measured at a prompt that the run itself was asked while it learned."""
    tuned = contest.contestants[-1]
    asked = next((reply["messages"] for event in tuned.run.events("sample") for reply in event["replies"]), None)
    if asked is None:
        return ""
    known = proof(contest, contest.chat_format.prompt_ids(asked))
    if known.measurable:
        return (
            f"The adapter works: at a prompt of its own data the two lie {known.divergence:.3g} nats apart. "
            "This prompt is unlike that data."
        )
    return (
        f"Nor do they differ at a prompt of the run's own data ({known.divergence:.1g} nats): it learned too little. "
        f"{_losses(tuned)}"
    ).strip()


def _losses(tuned: Contestant) -> str:
    last = tuned.run.status().step if tuned.step is None else tuned.step
    losses = [(event["step"], event["loss"]) for event in tuned.run.events("log") if event["step"] <= last]
    if not losses:
        return ""
    (first, before), (last, after) = losses[0], losses[-1]
    went = f"Its loss went from {before:.3f} at step {first} to {after:.3f} at step {last}"
    if after < LOWERED * before:
        return f"{went}."
    return f"{went}: the learning rate, {tuned.run.config().learning_rate:g}, is too low, or the steps are too few."


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"

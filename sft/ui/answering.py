"""Lets everybody answer a question, and says what came of it. Yields the conversation as it grows."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from sft import models
from sft.contest import Contest
from sft.errors import UserError
from sft.prompts import fitting, wrong_family
from sft.runs import runs_dir, training_in
from sft.ui.talk import PROMPTED, Pane, Talk, contest_of

TRAINING = "A training is under way on the same machine: replies are slower until it ends."


def answer(owner: str, talk: Talk, question: str, temperature, top_p, max_new_tokens, seed) -> Iterator[Talk]:
    """Streams the replies to `question`, asked after `talk`. Raises UserError where there can be none.

    The first one yielded has the question without replies, while models load; keep none of it before a reply begins.
    """
    asked = {"role": "user", "content": question}
    waiting = [Pane([*pane.history, asked], note="loading the model …", turns=pane.turns) for pane in talk.panes]
    talk = replace(talk, panes=waiting, said=TRAINING if training_in(runs_dir()) else "")
    yield talk
    contest = contest_of(owner, talk.who)
    from sft import chat  # takes seconds the first time, and who cannot answer is told sooner

    sampling = chat.Sampling(float(temperature), float(top_p), int(max_new_tokens), int(seed or 0))
    talk = replace(talk, sampling=sampling, format_hash=contest.chat_format.hash)
    read, left_out = _prompts(talk, contest)
    for replies in chat.stream(contest, [pane.prompt for pane in read], sampling):
        panes = [
            replace(
                pane,
                history=[*pane.history, {"role": "assistant", "content": reply.text}],
                reply=replace(reply, token_ids=[*reply.token_ids]),  # the one that streams still grows
                note=_note(reply, talk, contest, left),
                turns=[*pane.turns, (pane.prompt, [*reply.token_ids])],
            )
            for pane, reply, left in zip(read, replies, left_out, strict=True)
        ]
        yield replace(talk, panes=panes)


def get_ready(owner: str, talk: Talk) -> None:
    """Loads who answers before anything is asked. A base model alone is left: it may have to be downloaded."""
    if not talk.who.run:
        return
    from sft import chat

    with suppress(UserError):  # the page has told it
        chat.get_ready(contest_of(owner, talk.who), _head(talk.system))


def _head(system: str) -> list[dict]:
    return [{"role": "system", "content": system}] if system.strip() else []


def _prompts(talk: Talk, contest: Contest) -> tuple[list[Pane], list[int]]:
    """The panes with what each model reads, and how many of the earlier turns had to be left out."""
    length = models.context_length(contest.folder)
    room = None if length is None else length - talk.sampling.max_new_tokens
    panes, left_out = [], []
    for at, pane in enumerate(talk.panes):
        told = talk.who.third_system if talk.who.third == PROMPTED and at == len(talk.panes) - 1 else talk.system
        ids, turns = fitting(contest.chat_format, [*_head(told), *pane.history], room, talk.template)
        panes.append(replace(pane, prompt=ids, text=contest.chat_format.tokenizer.decode(ids)))
        left_out.append(turns)
    return panes, left_out


def _note(reply, talk: Talk, contest: Contest, turns: int) -> str:
    """How a reply came about: length, speed, end, and what else made it what it is."""
    count = len(reply.token_ids)
    length = f"{count} token{'s' * (count != 1)}"
    parts = [f"{length}, {_ending(reply)}" if reply.stopped or reply.cut else f"{length} …"]
    if reply.seconds:
        parts.append(f"{count / reply.seconds:.1f} tokens/s")
    parts += [_drawn(talk.sampling), f"chat format {talk.format_hash[:8]}"]
    if talk.template == "none":
        parts.append("asked without any template")
    if talk.template == "wrong":
        parts.append(f"asked in the wrong template, {wrong_family(contest.chat_format)}")
    if turns:
        parts.append(f"{turns} earlier turn{'s' * (turns != 1)} no longer fit{'s' * (turns == 1)}: not read")
    return " · ".join(parts)


def _ending(reply) -> str:
    if not reply.stopped:
        return "cut at the limit: it did not stop"
    return "ended by itself" if reply.text.strip() else "ended by itself: it says nothing"


def _drawn(sampling) -> str:
    if not sampling.temperature:
        return "greedy"
    return f"temperature {sampling.temperature:g}, top p {sampling.top_p:g}, seed {sampling.seed}"


def broken_off(talk: Talk, why: str = "stopped by you") -> Talk:
    """The conversation after Stop, or as it is left: replies that had not ended say so."""
    panes = [replace(pane, note=pane.note.replace(" …", f", {why}", 1)) if pane.reply else pane for pane in talk.panes]
    return replace(talk, panes=panes, asked="", said="")

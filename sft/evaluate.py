"""Held-out rows through the arms base and tuned → a table.

Every arm answers the same prompts, greedily, in the run's own chat format. Knows nothing about the page.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch
from peft import PeftModel

from sft import chat, data
from sft.chat_format import ChatFormat
from sft.errors import DataError
from sft.messages import Conversation
from sft.run import Run
from sft.tables import read_table
from sft.trainer import collator_for, to_device, token_losses

BATCH = 16  # prompts answered at once


@dataclass(frozen=True)
class Arm:
    """How one contestant did. Rates are shares of the rows, from 0 to 1; `loss` is per trained token.

    `valid_format` is the share of replies that are JSON, where all wanted answers are; else None. Prompt and reply
    tokens are means per row.
    """

    loss: float
    exact_match: float
    valid_format: float | None
    stop_rate: float
    prompt_tokens: float
    reply_tokens: float
    rows: int
    replies: list[str]


def held_out_rows(run: Run, path: str | None = None, limit: int | None = None) -> list[Conversation]:
    """The run's own held-out rows, or those of the data at `path`."""
    config = run.config()
    rows = data.usable(read_table(path), columns=config.columns)[0] if path else data.load_split(config).held_out
    rows = [row for row in rows if row.messages[-1]["role"] == "assistant" and row.messages[-1].get("content")][:limit]
    if not rows:
        raise DataError(
            f"The run {run.name} has no held-out rows that end in an answer.",
            "Name some with --data FILE; they must not be rows that it was trained on.",
        )
    return rows


def evaluate(
    run: Run, rows: list[Conversation], report: Callable[[str, float], None] = lambda stage, share: None
) -> dict[str, Arm]:
    """Both arms on `rows`: the last answer of each row is wanted, all before it is the prompt."""
    contest = chat.Contest.of_run(run)
    wanted = [row.messages[-1]["content"] for row in rows]
    prompts = [contest.chat_format.prompt_ids(row.messages[:-1], row.tools) for row in rows]
    arms = {}
    with chat.WEIGHTS.lock:
        loaded = chat.WEIGHTS.load(contest)
        for name, model, adapter in zip(("base", "tuned"), loaded, contest.adapters, strict=True):

            def progress(share: float, name=name):
                report(f"{name} model", share)

            replies = _replies(model, contest.chat_format, prompts, wanted, adapter, progress)
            loss = _loss(model, contest.chat_format, rows, adapter)
            arms[name] = _score(contest.chat_format, prompts, replies, wanted, loss)
    return arms


def _replies(model, chat_format: ChatFormat, prompts, wanted, adapter: str, progress) -> list[list[int]]:
    """Greedy replies. The room for them is half as long again as the longest wanted answer."""
    longest = max(len(chat_format.tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in wanted)
    sampling = chat.Sampling(max_new_tokens=longest + longest // 2 + 8)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # alike lengths, little padding
    replies: list[list[int]] = [[]] * len(prompts)
    for start in range(0, len(order), BATCH):
        progress(start / len(order))
        batch = order[start : start + BATCH]
        answers = chat.generate(
            model, chat_format, [prompts[index] for index in batch], [adapter] * len(batch), sampling
        )
        for index, answer in zip(batch, answers, strict=True):
            replies[index] = answer
    progress(1.0)
    return replies


def _loss(model, chat_format: ChatFormat, rows: list[Conversation], adapter: str) -> float:
    encoded = [chat_format.encode(row) for row in rows]
    encoded = [{"input_ids": row.input_ids, "labels": row.labels} for row in encoded if row.trained]
    if not encoded:
        return float("nan")
    collate = collator_for(model, encoded)
    total, count = 0.0, 0
    alone = isinstance(model, PeftModel) and adapter == chat.BASE
    with torch.inference_mode(), model.disable_adapter() if alone else nullcontext():
        for start in range(0, len(encoded), BATCH):
            for part in collate(encoded[start : start + BATCH])["parts"]:
                losses = token_losses(model, to_device(part, model.device))
                total, count = total + losses.sum().item(), count + losses.numel()
    return total / count


def _score(chat_format: ChatFormat, prompts, replies, wanted: list[str], loss: float) -> Arm:
    rows = len(wanted)
    texts = [chat.reply_text(reply, chat_format) for reply in replies]
    stopped = [bool(reply) and reply[-1] in chat_format.stop_token_ids for reply in replies]
    wants_json = all(map(is_json, wanted))
    return Arm(
        loss=loss,
        exact_match=sum(text.strip() == want.strip() for text, want in zip(texts, wanted, strict=True)) / rows,
        valid_format=sum(map(is_json, texts)) / rows if wants_json else None,
        stop_rate=sum(stopped) / rows,
        prompt_tokens=sum(map(len, prompts)) / rows,
        reply_tokens=sum(map(len, replies)) / rows,
        rows=rows,
        replies=texts,
    )


def is_json(text: str) -> bool:
    """Whether the whole text is one JSON object or list; a bare number or word does not count as a format."""
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def to_json(arms: dict[str, Arm]) -> dict:
    """What `evaluate --json` prints."""
    return {"arms": {name: asdict(arm) for name, arm in arms.items()}, "verdict": verdict(arms)}


def verdict(arms: dict[str, Arm]) -> str:
    """One sentence: on which measure the arms differ, with the numbers."""
    base, tuned = arms["base"], arms["tuned"]
    measure = "exact_match" if tuned.valid_format is None else "valid_format"
    words = {"exact_match": "answers exactly as wanted", "valid_format": "valid JSON"}[measure]
    before, after = getattr(base, measure), getattr(tuned, measure)
    return (
        f"Tuned: {after:.0%} {words} against the base model's {before:.0%}; "
        f"loss per answer token {tuned.loss:.3f} against {base.loss:.3f}."
    )

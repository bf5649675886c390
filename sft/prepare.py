"""A run's conversations → rows of `input_ids` and `labels`, training and held-out."""

from collections.abc import Callable

from sft import data
from sft.chat_format import ChatFormat
from sft.config import TrainConfig
from sft.errors import DataError, TemplateError, listed
from sft.messages import Conversation


def prepare(config: TrainConfig, chat_format: ChatFormat, warn: Callable[[str], None]) -> tuple[list[dict], list[dict]]:
    """Training and held-out rows as `input_ids` and `labels`; rows without a trained token are left out, aloud."""
    split = data.load_split(config)
    for warning in split.warnings:
        warn(warning)
    if not split.held_out and config.eval_strategy == "steps":
        warn("no rows are held out, so the held-out loss is not measured")
    rows = _encode(split.train, chat_format, config, "training", warn)
    if not rows:
        raise DataError(
            f"No row of {config.dataset} has a token to train on within {config.max_length} tokens.",
            "Raise max_length, or look at the rows with `python -m sft check`.",
        )
    measured = split.held_out[: config.max_eval_samples]
    return rows, _encode(measured, chat_format, config, "held-out", warn)


def _encode(
    conversations: list[Conversation],
    chat_format: ChatFormat,
    config: TrainConfig,
    part: str,
    warn: Callable[[str], None],
) -> list[dict]:
    rows, refused, cut, dropped = [], [], 0, 0
    for conversation in conversations:
        try:
            encoded = chat_format.encode(conversation, config.max_length)
        except TemplateError as error:
            refused.append(f"{conversation.place}: {error.message}")
            continue
        cut += encoded.verdict == "cut"
        dropped += encoded.verdict == "dropped"
        if encoded.verdict != "dropped":
            rows.append({"input_ids": encoded.input_ids, "labels": encoded.labels})
    if refused:
        problem = f"{len(refused)} {part} rows are refused by the model's chat template:\n{listed(refused)}"
        if config.on_bad_rows == "stop":
            raise DataError(problem, "Mend these rows, or set on_bad_rows to skip.")
        warn(problem)
    if cut:
        warn(f"{cut} {part} rows were cut at {config.max_length} tokens, so they lose their stop token")
    if dropped:
        warn(f"{dropped} {part} rows were left out: nothing to train on within {config.max_length} tokens")
    return rows

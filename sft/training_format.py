"""The chat format that a run trains with: the model's own, or the one that its config names.

A format that the model cannot learn costs a whole run, so that is refused, or told, before the run begins.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

from sft import models, token_findings
from sft.chat_format import ChatFormat, preset, presets
from sft.config import TrainConfig
from sft.errors import ConfigError, TemplateError
from sft.sandbox import guarded

_TALK = [{"role": "user", "content": "How heavy?"}, {"role": "assistant", "content": "Two kilos."}]


def training_format(config: TrainConfig, folder: Path, warn: Callable[[str], None]) -> ChatFormat:
    """The chat format for the model in `folder`; `warn` is told what the model will have trouble with.

    Raises ConfigError where the config names a template or a token that is not there, TemplateError where the
    template's markers are no tokens of this model.
    """
    chat_format = ChatFormat.of(models.load_tokenizer(folder))
    if config.chat_template:
        source = _source(config.chat_template)
        chat_format = replace(chat_format, chat_template=source, origin=config.chat_template)
    chat_format = guarded(chat_format.as_of(date.today()))
    _examine(chat_format, trained_token_ids(config, chat_format.tokenizer), warn)
    return chat_format


def trained_token_ids(config: TrainConfig, tokenizer) -> list[int]:
    """`trainable_token_indices` as numbers, in ascending order. Raises ConfigError for what is no token."""
    vocabulary, found = tokenizer.get_vocab(), set()
    for name in (config.trainable_token_indices or "").split(","):
        name = name.strip()
        token = int(name) if name.isdecimal() else vocabulary.get(name)
        if name and (token is None or token >= len(tokenizer)):
            raise ConfigError(
                f"trainable_token_indices: {name} is no token of {config.model}.",
                f"Write tokens as its tokenizer has them, or their numbers below {len(tokenizer)}.",
            )
        found |= {token} if name else set()
    return sorted(found)


def _source(name: str) -> str:
    if name in presets():
        return preset(name)
    try:
        return Path(name).read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a path that cannot be one
        raise ConfigError(
            f"chat_template: {name[:100]} is neither a preset nor a file that can be read as text: {error}",
            f"Give one of {', '.join(presets())}, or the path of a .jinja file.",
        ) from None


def _examine(chat_format: ChatFormat, learned: list[int], warn: Callable[[str], None]) -> None:
    try:
        rendered = chat_format.render(_TALK)
    except TemplateError:
        return  # it may take the rows all the same; where it does not, preparing them says so, with the row
    for finding in token_findings.markers(chat_format, rendered, learned):
        if finding.level == "error":
            raise TemplateError(finding.message, finding.remedy)
        warn(f"{finding.message} {finding.remedy}")
    for finding in token_findings.ends(chat_format, rendered):
        warn(f"{finding.message} {finding.remedy}")

"""What a visitor names on the page, models and templates, and how a mistake in it is told."""

from dataclasses import replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import gradio as gr

from sft import models
from sft.chat_format import ChatFormat, preset, presets
from sft.config import template_arguments
from sft.errors import ConfigError, UserError
from sft.layout import frozen
from sft.sandbox import guarded
from sft.ui import paint
from sft.ui.readiness import READINESS

DATA = {path.stem: path for path in sorted(Path("examples").glob("*.jsonl")) if ".eval" not in path.name}


def format_of(model: str) -> ChatFormat:
    """The chat format of a model, loaded once. Raises UserError while that model is still on its way."""
    guard_model(model)
    model = model.strip()
    check_ready(model)
    return _format_of(model, stamp(model))


@lru_cache(maxsize=8)
def _format_of(model: str, stamp: tuple) -> ChatFormat:
    return guarded(ChatFormat.of(models.load_tokenizer(models.locate(model, weights=False))))


def check_ready(model: str) -> None:
    """Raises UserError while that model is still on its way."""
    if READINESS.awaits(model):
        raise UserError(f"The model is being prepared: {READINESS.stage}.", "Wait for the bar at the top.")


def guard_model(name: str | None) -> None:
    """A model has to be named; on a public Space, strangers name Hub models only: no folder of the machine."""
    if not isinstance(name, str) or not name.strip():
        raise UserError("No model is chosen.", "Choose one from the list, or write a Hub id.")
    if models.on_a_space() and is_path(name.strip()):
        raise UserError(f"{name.strip()} names a folder.", "On this Space, choose from the list or give a Hub id.")


def is_path(name: str) -> bool:
    """Whether `name` is a file or folder of this machine, or can only be one. UserError where it can be no name."""
    try:
        return name.startswith((".", "~", "/")) or Path(name).exists()
    except (OSError, ValueError):  # far too long, or with a null character
        raise UserError(
            f"{name[:60]!r} … cannot be a name.", "Give an id such as HuggingFaceTB/SmolLM2-135M."
        ) from None


def stamp(name: str) -> tuple:
    """What changes when a local file or folder changes, so that a cache notices; the same for all Hub ids."""
    try:
        path = Path(name).expanduser()
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        found = [(file.name, file.stat()) for file in files]
    except (OSError, RuntimeError, ValueError):
        return ()
    return tuple((name, about.st_mtime_ns, about.st_size) for name, about in found)


class Template(NamedTuple):
    """A template that was picked or written on the page, and in words where it comes from."""

    source: str
    origin: str


def preset_of(choice) -> Template:
    """Our own template that a choice such as 'preset:chatml' names. What is posted may name anything."""
    name = choice.removeprefix("preset:") if isinstance(choice, str) else choice
    if name not in presets():
        raise ConfigError(f"There is no preset {str(name)[:60]!r}.", "Choose a template from the list.")
    return Template(preset(name), f"our preset {name}")


def changed_format(model: str, template: Template | None, kwargs: str, day: str) -> ChatFormat:
    """The model's chat format with what was changed about it on the page."""
    return _changed(format_of(model), template, (kwargs or "").strip(), (day or "").strip())


@lru_cache(maxsize=16)
def _changed(chat_format: ChatFormat, template: Template | None, kwargs: str, day: str) -> ChatFormat:
    source, origin = chat_format.chat_template, chat_format.origin
    if template is not None and template.source != source:
        source, origin = template
    if day:
        source = frozen(source, _day(day))
    arguments = template_arguments(kwargs) if kwargs else {}
    return guarded(replace(chat_format, chat_template=source, origin=origin, template_kwargs=arguments))


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a date.", "Write it as 2024-07-26.") from None


def user_errors(handler):
    """Shows a UserError of `handler` on the page, in its own words."""

    def telling(*values):
        try:
            return handler(*values)
        except UserError as error:
            raise gr.Error(paint.escape(str(error)), duration=None, title="That does not work", print_exception=False)  # noqa: B904

    return telling

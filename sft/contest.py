"""Who answers: a base model, and beside it what runs made of it.

A contest is settled before any weights are loaded: which folders they come from, and that all of them read the same
chat format. Knows nothing about how replies are made.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from sft import models
from sft.chat_format import ChatFormat
from sft.errors import ModelError, RunError, TemplateError
from sft.run import Run
from sft.sandbox import guarded


@dataclass(frozen=True)
class Contestant:
    """The base model itself; or what a run made of it; or what it had made after `step`, where it kept a snapshot."""

    run: Run | None = None
    step: int | None = None

    @property
    def folder(self) -> Path | None:
        """Where its adapter is, or its whole model; None for the base model."""
        if self.run is None:
            return None
        return self.run.result if self.step is None else self.run.snapshot(self.step)

    @property
    def in_full(self) -> bool:
        """Whether it is a model with weights of its own, not an adapter."""
        return self.run is not None and not (self.folder / "adapter_config.json").is_file()

    @property
    def written(self) -> int:
        """When what the run made was written, in nanoseconds since 1970."""
        return max((path.stat().st_mtime_ns for path in self.folder.glob("*.safetensors")), default=0)

    @property
    def identity(self) -> str:
        """Tells contestants apart, also one from another that was trained later in a folder of the same name."""
        return f"{self.folder.resolve()}@{self.written}" if self.run else ""

    def check(self) -> None:
        """Raises RunError where the run has made nothing yet, ModelError where what it made cannot be used."""
        if self.run is None:
            return
        if not self.run.has_result:
            state = self.run.status().state
            if state == "finished":
                raise RunError(f"The run {self.run.name} is finished, but its files are gone.", "Train again.")
            raise RunError(f"The run {self.run.name} has no adapter; it is {state}.", "Choose a run that has finished.")
        if self.step is not None and self.step not in self.run.snapshots:
            kept = ", ".join(map(str, self.run.snapshots)) or "none"
            raise RunError(
                f"The run {self.run.name} kept no snapshot of step {self.step}.", f"It kept these: {kept}. Choose one."
            )
        if not self.in_full or self.folder == self.run.adapter:
            models.check_adapter(self.folder)
        elif not list(self.folder.glob("*.safetensors")):
            raise ModelError(f"There are no weights in safetensors in {self.folder}.", "Train again.")


@dataclass(frozen=True)
class Contest:
    """A base model, the chat format that all read, and who answers, in the order of the panes. The base is first."""

    model_name: str
    folder: Path
    chat_format: ChatFormat
    contestants: tuple[Contestant, ...] = (Contestant(),)

    @classmethod
    def of_base(cls, model_name: str) -> "Contest":
        folder = models.locate(model_name)
        return cls(model_name, folder, _loaded_format(folder, None, False, _stamp(folder)))

    @classmethod
    def of_run(cls, run: Run, step: int | None = None, other_format: bool = False) -> "Contest":
        """The base model and what the run made of it.

        Raises RunError for a run that made nothing yet; TemplateError for one whose chat format has changed since,
        unless `other_format` takes it as it is now; ModelError where base or adapter are no longer what they were.
        """
        tuned = Contestant(run, step)
        tuned.check()
        name = run.config().model
        folder = models.locate(name)
        _check_base(run, folder)
        return cls(name, folder, _format_of(run, other_format), (Contestant(), tuned))

    def with_contestant(self, contestant: Contestant, other_format: bool = False) -> "Contest":
        """The same with one more. All read this contest's chat format.

        Raises what `of_run` does, RunError for a run of another base model, and TemplateError for one that was trained
        with another chat format, unless `other_format` pairs them all the same.
        """
        contestant.check()
        if run := contestant.run:
            _check_same_base(self, run)
            _check_base(run, self.folder)
            if not other_format:
                _check_same_format(self, run)
        return replace(self, contestants=(*self.contestants, contestant))


def _format_of(run: Run, other_format: bool = False) -> ChatFormat:
    return _loaded_format(run.result, run.folder, other_format, _stamp(run.result, run.folder))


@lru_cache(maxsize=8)
def _loaded_format(folder: Path, saved: Path | None, changed: bool, stamp: tuple) -> ChatFormat:
    """The tokenizer in `folder` with its own template, or with the format in `saved`. Loading takes a second, so it is
    kept while `stamp` stays, and all share it, also several threads at once: nothing may change it."""
    tokenizer = models.load_tokenizer(folder)
    chat_format = guarded(ChatFormat.load(saved, tokenizer, changed=changed) if saved else ChatFormat.of(tokenizer))
    chat_format.tokenize("")  # ends what padding and truncation the tokenizer's file asks for, before others use it
    return chat_format


def _stamp(*folders: Path) -> tuple:
    """Changes when a file does that the chat format comes from."""
    names = ("*token*.json", "*token*.model", "vocab*", "merges.txt", "config.json", "chat_format.json", "*.jinja")
    paths = sorted({path for folder in folders for name in names for path in folder.glob(name)})
    return tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths)


def _check_same_base(contest: Contest, run: Run) -> None:
    if models.locate(run.config().model) != contest.folder:
        raise RunError(
            f"The run {run.name} was tuned from {models.title(run.config().model)}, not from "
            f"{models.title(contest.model_name)}, so it cannot answer beside it.",
            "Choose a run of the same base model.",
        )


def _check_same_format(contest: Contest, run: Run) -> None:
    theirs = _format_of(run)
    if theirs.hash != contest.chat_format.hash:
        raise TemplateError(
            f"The run {run.name} was trained with another chat format (hash {theirs.hash[:12]}, not "
            f"{contest.chat_format.hash[:12]}): it would read markers that it never learned.",
            "Choose a run of the same chat format, or pair them anyway and expect odd replies.",
        )


def _check_base(run: Run, folder: Path) -> None:
    """The adapter's numbers mean something beside the very weights alone that they were trained on."""
    if run.base_fingerprint not in (None, models.fingerprint(folder)):
        raise ModelError(
            f"The base model in {folder} is not the one that {run.name} was tuned from: its weights have changed.",
            "Put the old weights back, or train again.",
        )

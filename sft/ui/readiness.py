"""Gets the default model ready in the background, and says how far it is. One for the whole process."""

import threading
import traceback

from sft import launch, models, sandbox
from sft.errors import UserError
from sft.ui import paint


class Readiness:
    """`model` is the one on its way or ready; None until it is known which model to begin with."""

    def __init__(self):
        self.model: str | None = None
        self.why = ""
        self.stage = "Looking for a model to begin with"
        self.share = 0.0
        self.ready = False
        self.error: UserError | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def settled(self) -> bool:
        """Whether there is nothing left to wait for: the model is ready, or there will be none."""
        return self.ready or self.error is not None

    def awaits(self, model: str) -> bool:
        """Whether `model` is the one still on its way; until that one is known, it may be any."""
        return not self.settled and self.model in (None, model)

    def begin(self) -> None:
        """Starts the work if it is neither done nor going on; a failed start is tried again."""
        with self._lock:
            if self.ready or (self._thread and self._thread.is_alive()):
                return
            self.error = None
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def _work(self) -> None:
        try:
            self._prepare_default()
            self.ready = True
        except UserError as error:
            self.error = error
        except Exception as error:  # a defect of ours, but a person must not wait for a bar that never moves
            traceback.print_exc()
            self.error = UserError(f"{type(error).__name__}: {error}", "Reload the page to try again.")
        if self.ready:
            sandbox.warm()
            launch.stand_by()  # what training takes seconds to import is imported while the page is being read

    def _prepare_default(self) -> None:
        self.model, self.why = models.default_model()
        try:
            self._prepare(self.model)
        except UserError as error:
            if self.model == "embedded":
                raise
            self.why = f"{self.model} could not be had, so the embedded model is used. {error.message}"
            self.model = "embedded"
            self._prepare(self.model)

    def _prepare(self, model: str) -> None:
        folder = models.locate(model, self._report)
        self._report("Loading the tokenizer", 1.0)
        models.load_tokenizer(folder)

    def _report(self, stage: str, share: float) -> None:
        self.stage, self.share = stage, share

    def banner(self) -> str:
        if self.error:
            return paint.problem("No model yet", self.error.message, self.error.hint)
        if self.ready:
            name = paint.escape(models.title(self.model))
            assistant = any(entry.name == self.model and entry.kind == "instruct" for entry in models.CATALOGUE)
            already = " It is an assistant already; “base” means it without your adapter." if assistant else ""
            return f'<div class="banner ready"><b>{name}</b> is ready. {paint.escape(self.why + already)}</div>'
        bar = paint.progress_bar(self.share, self.stage)
        return f'<div class="banner" role="status">{paint.escape(self.stage)} … {self.share:.0%}{bar}</div>'


READINESS = Readiness()

"""Gets the default model ready in the background, and says how far it is. One for the whole process."""

import threading

from sft import launch, models
from sft.errors import UserError
from sft.ui import paint


class Readiness:
    """`model` is None until it is known which model to begin with."""

    def __init__(self):
        self.model: str | None = None
        self.why = ""
        self.stage = "Looking for a model to begin with"
        self.share = 0.0
        self.ready = False
        self.error: UserError | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

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
            model, self.why = models.default_model()
            folder = models.locate(model, self._report)
            self._report("Loading the tokenizer", 1.0)
            models.load_tokenizer(folder)
            self.model, self.ready = model, True
            launch.stand_by()  # what training takes seconds to import is imported while the page is being read
        except UserError as error:
            self.error = error

    def _report(self, stage: str, share: float) -> None:
        self.stage, self.share = stage, share

    def banner(self) -> str:
        if self.error:
            return paint.problem("No model yet", self.error.message, self.error.hint)
        if self.ready:
            name = paint.escape(models.title(self.model))
            return f'<div class="banner ready"><b>{name}</b> is ready. {paint.escape(self.why)}</div>'
        bar = paint.progress_bar(self.share, self.stage)
        return f'<div class="banner" role="status">{paint.escape(self.stage)} … {self.share:.0%}{bar}</div>'


READINESS = Readiness()

"""What the process holds in memory: the last contest's models, their adapters, and what conversations have read.

All of it is shared between visitors, and none of it is theirs: a past is found by its tokens and its adapter alone.
"""

import gc
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from weakref import WeakValueDictionary

import torch
from transformers import PreTrainedModel

from sft import models
from sft.contest import Contest, Contestant
from sft.lora import Adapter, load_adapter
from sft.passes import Reader, Row

KEPT_ADAPTERS = 6  # of a model; small beside it, but not free
KEPT_PASTS = 300_000_000  # bytes; SmolLM2-135M keeps 46 kB for each token
FEW = 8  # tokens that a kept row may lose to another conversation: they are read again at once


class Model(Reader):
    """A model in memory, and what is kept beside it: all of that goes when the model goes."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(model)
        self.adapters: OrderedDict[str, Adapter] = OrderedDict()
        self.rows: list[tuple[str, Row]] = []  # by the contestant's identity, the last used at the end
        self.returned: SimpleQueue[tuple[str, Row]] = SimpleQueue()

    def file(self) -> None:
        """Puts what came back among the rows, if it is of use still."""
        while not self.returned.empty():
            name, row = self.returned.get()
            if row.token_ids and self.together and (row.adapter is None or self.adapters.get(name) is row.adapter):
                self.rows.append((name, row))

    def forget(self) -> None:
        """Lets go of all that is kept. A conversation under way goes on with what it has."""
        self.file()
        self.rows.clear()
        self.adapters.clear()


@dataclass(frozen=True)
class Voice:
    """One contestant in memory: the model that it speaks with, and its adapter, if it has one."""

    reader: Model
    adapter: Adapter | None
    identity: str


class Weights:
    """Loads what a contest needs, and keeps it for the next. Hold `lock` around every use, also around each pass; only
    `keep` may be called by anybody at any time, also by the garbage collector that ends a stream."""

    def __init__(self):
        self.lock = threading.Lock()
        self._held: dict[tuple[Path, str], Model] = {}  # those of the last contest, by folder and fingerprint
        # These, and those that only a conversation under way holds: whoever asks for one gets it, and no second copy.
        self._living: WeakValueDictionary[tuple[Path, str], Model] = WeakValueDictionary()

    def load(self, contest: Contest) -> list[Voice]:
        """One voice a contestant: those that differ by an adapter alone share a model. Raises what `Contestant.check`
        does: a run may have been deleted since the contest was settled."""
        for contestant in contest.contestants:
            contestant.check()
        folders = [contestant.folder if contestant.in_full else contest.folder for contestant in contest.contestants]
        keys = {folder: (folder, models.fingerprint(folder)) for folder in [contest.folder, *folders]}
        self._let_go_of_all_but(set(keys.values()))  # first: there may be room for these alone
        for key in keys.values():
            self._held[key] = self._living.get(key) or Model(models.load_base(key[0]))
            self._living[key] = self._held[key]
        return [
            self._voice(self._held[keys[folder]], contestant)
            for folder, contestant in zip(folders, contest.contestants, strict=True)
        ]

    def _voice(self, model: Model, contestant: Contestant) -> Voice:
        name = contestant.identity
        if contestant.run is None or contestant.in_full:
            return Voice(model, None, name)
        if name not in model.adapters:
            model.adapters[name] = load_adapter(contestant.folder, model.model)
        model.adapters.move_to_end(name)
        while len(model.adapters) > KEPT_ADAPTERS:
            gone, _ = model.adapters.popitem(last=False)
            model.rows = [kept for kept in model.rows if kept[0] != gone]
        return Voice(model, model.adapters[name], name)

    def row(self, voice: Voice, token_ids: list[int]) -> Row:
        """A row that has read as much of the beginning of `token_ids` as was kept, and not all of them: the last is
        left to read, for what follows it. One that has read more than a few others is left to its conversation, and
        copied."""
        best, shared = None, 0
        for row in self._rows(voice):
            same = min(_shared(row.token_ids, token_ids), len(token_ids) - 1)
            if same > shared or (best and same == shared and len(row.token_ids) < len(best.token_ids)):
                best, shared = row, same
        if best is None:
            return Row(voice.adapter)
        if len(best.token_ids) > shared + FEW:
            return best.copy(shared)
        voice.reader.rows = [kept for kept in voice.reader.rows if kept[1] is not best]
        best.take_back(shared)
        return best

    def has_read(self, voice: Voice, token_ids: list[int]) -> bool:
        """Whether a kept row begins with all of them."""
        return any(row.token_ids[: len(token_ids)] == token_ids for row in self._rows(voice))

    def _rows(self, voice: Voice) -> Iterator[Row]:
        self._file()
        return (row for name, row in voice.reader.rows if name == voice.identity)

    def keep(self, voice: Voice, row: Row) -> None:
        """For the next turn."""
        voice.reader.returned.put((voice.identity, row))

    def _file(self) -> None:
        """Files what came back. The oldest make room, those first of models that only a conversation still holds."""
        living = sorted(self._living.values(), key=lambda model: model in self._held.values())
        for model in living:
            model.file()
        size = sum(row.past.bytes for model in living for _, row in model.rows)
        for model in living:
            while size > KEPT_PASTS and model.rows:
                size -= model.rows.pop(0)[1].past.bytes

    def forget_rows(self) -> None:
        """Lets go of what conversations have read; the next ones read it again."""
        for model in self._living.values():
            model.file()
            model.rows.clear()

    def _let_go_of_all_but(self, wanted: set[tuple[Path, str]]) -> None:
        gone = self._held.keys() - wanted
        for key in gone:
            self._held.pop(key).forget()
        if gone:
            gc.collect()  # layers and model refer to each other in places
            torch.cuda.empty_cache()  # a training takes what this process keeps on a GPU for taken

    def forget(self) -> None:
        """Lets go of everything. A conversation under way goes on with what it has."""
        self._let_go_of_all_but(set())


def _shared(one: list[int], other: list[int]) -> int:
    return len(os.path.commonprefix([one, other]))  # noqa: RUF071 (it compares lists)


WEIGHTS = Weights()

"""What the process holds in memory: the base model last used, adapters for it, and what conversations have read.

All of it is shared between visitors, and none of it is theirs: a past is found by its tokens and its adapter alone.
"""

import gc
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from sft import models
from sft.contest import Contest, Contestant
from sft.lora import Adapter, load_adapter
from sft.passes import Reader, Row

KEPT_ADAPTERS = 6  # small beside the base model, but not free
KEPT_PASTS = 300_000_000  # bytes; SmolLM2-135M keeps 46 kB for each token


@dataclass(frozen=True)
class Voice:
    """One contestant in memory: the model that it speaks with, and its adapter, if it has one."""

    reader: Reader
    adapter: Adapter | None
    identity: str


class Weights:
    """Loads what a contest needs, and keeps it for the next. Hold `lock` around every use, also around each pass; only
    `keep` may be called by anybody at any time, also by the garbage collector that ends a stream."""

    def __init__(self):
        self.lock = threading.Lock()
        self._base: tuple[tuple[Path, str], Reader] | None = None  # with its folder and what the weights were
        self._full: dict[str, Reader] = {}  # models tuned in full, by identity: those of the last contest
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._rows: list[tuple[Reader, str, Row]] = []  # what was read, the last used at the end
        self._returned: SimpleQueue[tuple[Voice, Row]] = SimpleQueue()

    def load(self, contest: Contest) -> list[Voice]:
        """One voice a contestant: those that differ by an adapter alone share a model."""
        wanted_base = contest.folder, models.fingerprint(contest.folder)
        if self._base is None or self._base[0] != wanted_base:
            self.forget()
            self._base = wanted_base, Reader(models.load_base(contest.folder))
        wanted = {contestant.identity for contestant in contest.contestants}
        for name in self._full.keys() - wanted:
            self._let_go(self._full.pop(name))  # before the next is loaded: there may be room for one alone
        return [self._voice(contestant) for contestant in contest.contestants]

    def _voice(self, contestant: Contestant) -> Voice:
        name, base = contestant.identity, self._base[1]
        if contestant.run is None:
            return Voice(base, None, name)
        if contestant.in_full:
            if name not in self._full:
                self._full[name] = Reader(models.load_base(contestant.folder))
            return Voice(self._full[name], None, name)
        if name not in self._adapters:
            self._adapters[name] = load_adapter(contestant.folder, base.model)
        self._adapters.move_to_end(name)
        while len(self._adapters) > KEPT_ADAPTERS:
            gone, _ = self._adapters.popitem(last=False)
            self._rows = [kept for kept in self._rows if kept[1] != gone]
        return Voice(base, self._adapters[name], name)

    def row(self, voice: Voice, token_ids: list[int]) -> Row:
        """A row that has read as much of the beginning of `token_ids` as was kept, and not all of them: the last is
        left to read, for what follows it."""
        self._file()
        best, shared = None, 0
        for kept in self._rows:
            if kept[0] is voice.reader and kept[1] == voice.identity:
                common = os.path.commonprefix([kept[2].token_ids, token_ids])  # noqa: RUF071 (it compares lists)
                same = min(len(common), len(token_ids) - 1)
                best, shared = (kept, same) if same > shared else (best, shared)
        if best is None:
            return Row(voice.adapter)
        row = best[2]
        if shared < len(row.token_ids) / 2:  # another conversation, with the same beginning
            return row.copy(shared)
        self._rows.remove(best)
        row.take_back(shared)
        return row

    def keep(self, voice: Voice, row: Row) -> None:
        """For the next turn."""
        self._returned.put((voice, row))

    def _file(self) -> None:
        """Puts what came back among the rest, if it is of use still. The oldest make room."""
        while not self._returned.empty():
            voice, row = self._returned.get()
            known = voice.adapter is None or self._adapters.get(voice.identity) is voice.adapter
            if row.token_ids and voice.reader.together and known and voice.reader in self._readers():
                self._rows.append((voice.reader, voice.identity, row))
        while sum(kept.past.bytes for _, _, kept in self._rows) > KEPT_PASTS:
            del self._rows[0]

    def forget_rows(self) -> None:
        """Lets go of what conversations have read; the next ones read it again."""
        self._file()
        self._rows.clear()

    def _readers(self) -> list[Reader]:
        return [*([self._base[1]] if self._base else []), *self._full.values()]

    def _let_go(self, reader: Reader) -> None:
        self._rows = [kept for kept in self._rows if kept[0] is not reader]
        gc.collect()

    def forget(self) -> None:
        """Lets go of everything. A conversation under way goes on with what it has."""
        self.forget_rows()
        self._base = None
        self._full.clear()
        self._adapters.clear()
        gc.collect()  # layers and model refer to each other in places


WEIGHTS = Weights()

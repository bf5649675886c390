"""Renders a template that nobody vouches for: in a process of its own, with limits on time, memory and output.

A first process, the seed, imports what rendering needs, some second of work, and renders nothing. It forks a worker in
a few milliseconds when one is asked for. A worker serves one template, one call after the other, as long as it behaves;
then it is killed.

What comes from a worker is JSON and is checked, so that a template that breaks out of Jinja's sandbox gets no code into
the app. It holds nothing of the app's memory and environment, but it runs as the same user and reads what they may.
"""

import ctypes
import gc
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin, get_type_hints

from sft.chat_format import ChatFormat, preset, presets, run_here
from sft.errors import SandboxBusy, TemplateError
from sft.layout import lay_out, lay_out_all, render_text
from sft.origins import trace
from sft.traits import traits

SECONDS = 2.0  # for one call about a conversation of up to USUAL messages; each turn of it is rendered apart,
USUAL = 40  # so more messages may take longer in proportion,
LONGEST = 20.0  # up to so many seconds
MEMORY = 256 * 2**20  # bytes that a worker may take, besides what it has from the seed
CHARACTERS = 500_000  # of a rendered text: some 125,000 tokens
WORKERS = 4  # that work at a time; as many wait for their template to come again
_REPLY = 8 * CHARACTERS  # bytes: the origins of a text hold it twice
_PATIENCE = 0.75  # seconds to wait for another worker to end
_START = 30.0  # seconds that the seed may take to import
_FORKS = hasattr(os, "fork")  # Windows does not: there all templates render in this process, its user's own
_FUNCTIONS = {function.__name__: function for function in (lay_out, lay_out_all, trace, traits, render_text)}
_KEPT = ("LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ")  # of the environment; the rest may be secret
_EMBEDDED = "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"  # SHA-256 of its template


def guarded(chat_format: ChatFormat) -> ChatFormat:
    """The same chat format, rendering where its template may."""
    return replace(chat_format, run=run_for(chat_format.chat_template))


def run_for(template: str) -> Callable:
    """Where a template renders: in this process if it is one of ours or the embedded model's, else in the sandbox."""
    return run_here if _sha256(template) in _vouched() or not _FORKS else run


@lru_cache(maxsize=1)
def _vouched() -> set[str]:
    return {_EMBEDDED, *(_sha256(preset(name)) for name in presets())}


def _sha256(template: str) -> str:
    return hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()


def run(function: Callable, *arguments):
    """What `function(*arguments)` gives, in the sandbox. The first of the arguments, plain JSON data, is the template.

    Raises TemplateError where the function does and where the template goes beyond a limit.
    """
    return _pool.run(function, arguments)


def warm() -> None:
    """Starts the seed, so that the first call need not wait for it. Returns at once."""
    if _FORKS:
        _pool.warm()


# ---- the app's side ----


class _Pool:
    """The seed, and the workers that wait. Threads share it."""

    def __init__(self):
        self._lock = threading.Lock()
        self._seed: _Seed | None = None
        self._idle: list[_Worker] = []
        self._places = WORKERS  # that are free
        self._line: deque[threading.Event] = deque()  # who waits for one; a semaphore would not be fair

    def warm(self) -> None:
        with self._lock:
            self._living_seed()

    def run(self, function: Callable, arguments: tuple):
        if len(arguments[0]) > CHARACTERS:
            raise TemplateError(f"The chat template is longer than {CHARACTERS:,} characters.", "Shorten it.")
        # what is no JSON, transformers shows to a template in the same way
        plain = json.dumps([function.__name__, arguments], default=lambda value: f"<{type(value).__name__}>")
        request = plain.encode() + b"\n"
        self._enter()
        try:
            worker = self._take(arguments[0])
            try:
                kind, value = worker.answer(request, get_type_hints(function)["return"], _seconds(*arguments))
            except BaseException:
                worker.end()
                raise
            self._put_back(worker)
        finally:
            self._leave()
        if kind == "defect":
            raise RuntimeError(f"{function.__name__} failed in the sandbox:\n{value}")
        if kind == "refused":
            raise TemplateError(*value)
        return value

    def _enter(self) -> None:
        """Takes a place, in the order of coming."""
        with self._lock:
            if self._places:
                self._places -= 1
                return
            turn = threading.Event()
            self._line.append(turn)
        if not turn.wait(_PATIENCE):
            with self._lock:
                if turn in self._line:  # else it came just now
                    self._line.remove(turn)
                    raise SandboxBusy(
                        "The sandbox, where templates of unknown origin are rendered, is busy.",
                        "Try again in some seconds.",
                    )

    def _leave(self) -> None:
        """Gives the place to who waits longest."""
        with self._lock:
            if self._line:
                self._line.popleft().set()
            else:
                self._places += 1

    def _take(self, template: str) -> "_Worker":
        """A worker that nobody else has, and that has seen no other template."""
        with self._lock:
            seed = self._living_seed()
            for worker in self._idle:
                if worker.template == template:
                    self._idle.remove(worker)
                    return worker
            return seed.fork(template)

    def _put_back(self, worker: "_Worker") -> None:
        with self._lock:
            self._idle.append(worker)
            surplus = self._idle.pop(0) if len(self._idle) > WORKERS else None
        if surplus:
            surplus.end()

    def _living_seed(self) -> "_Seed":
        if self._seed and not self._seed.alive:
            while self._idle:  # they died with their seed
                self._idle.pop().end()
            self._seed.close()
            self._seed = None
        self._seed = self._seed or _Seed()
        return self._seed


class _Seed:
    """The process that forks workers. It ends when this process does, and so do they."""

    def __init__(self):
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sft.sandbox"],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                cwd=Path(__file__).parents[1],
                env={name: os.environ[name] for name in _KEPT if name in os.environ} | {"OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Without this channel the seed ends, and its workers."""
        self._channel.close()
        self._process.wait()

    def fork(self, template: str) -> "_Worker":
        channel, theirs = socket.socketpair()
        with theirs, self._lock:
            try:
                self._channel.settimeout(_START)
                socket.send_fds(self._channel, [_number(0)], [theirs.fileno()])
                pid = int.from_bytes(self._channel.recv(4))
            except OSError:
                pid = 0
        if not pid:
            self._process.kill()
            self._process.wait()  # so that the next call sees it dead
            raise RuntimeError("The sandbox's process does not start; what it said stands in the app's log.")
        return _Worker(self, pid, channel, template)

    def end(self, pid: int) -> None:
        """Kills a worker. The seed does it, whose child it is, so the number cannot be another process's by now."""
        with self._lock, suppress(OSError):  # if the seed is dead, so is the worker
            self._channel.sendall(_number(pid))


class _Worker:
    """A process that renders one template."""

    def __init__(self, seed: _Seed, pid: int, channel: socket.socket, template: str):
        self._seed, self.pid, self._channel, self.template = seed, pid, channel, template

    def end(self) -> None:
        self._seed.end(self.pid)
        self._channel.close()

    def answer(self, request: bytes, kind, seconds: float) -> tuple[str, object]:
        """'value' and what the function gave, 'refused' and a TemplateError's arguments, or 'defect' and a traceback.

        Raises TemplateError where no such answer comes.
        """
        try:
            said, value = json.loads(self._reply(request, time.monotonic() + seconds))
            return said, _rebuilt({"value": kind, "refused": _Refusal, "defect": str}[said], value)
        except TimeoutError:
            raise TemplateError(
                f"The chat template does not end within {seconds:.0f} seconds.",
                "Look for loops that go on or stand inside each other, or shorten the conversation.",
            ) from None
        except (OSError, EOFError):
            raise TemplateError(
                "The chat template broke the process that rendered it: it took too much memory or nested too deep.",
                "Let it build less text at once and call itself less often.",
            ) from None
        except (ValueError, LookupError, TypeError, RecursionError):
            raise TemplateError(
                "The process that rendered the chat template gave an answer that makes no sense.",
                "Choose another template: this one seems to be made to break out of its sandbox.",
            ) from None

    def _reply(self, request: bytes, deadline: float) -> bytes:
        self._channel.settimeout(SECONDS)
        self._channel.sendall(request)
        reply = bytearray()
        while not reply.endswith(b"\n"):
            if len(reply) > _REPLY:
                raise _too_much()
            self._channel.settimeout(max(deadline - time.monotonic(), 1e-6))
            part = self._channel.recv(2**16)
            if not part:
                raise EOFError
            reply += part
        return bytes(reply)


def _seconds(template: str, variables: dict, messages: list[dict] | None = None, *others) -> float:
    count = len(messages) if isinstance(messages, list) else 0
    return min(SECONDS * max(1, count / USUAL), LONGEST)


_Refusal = tuple[str, str, int | None, str]  # a TemplateError's arguments


def _rebuilt(kind, value):
    """JSON as what the annotation `kind` says. Raises ValueError where it is something else."""
    inner = get_args(kind)
    if is_dataclass(kind) and type(value) is dict and value.keys() == _fields(kind).keys():
        return kind(**{name: _rebuilt(inner, value[name]) for name, inner in _fields(kind).items()})
    if get_origin(kind) is list and type(value) is list:
        return [_rebuilt(inner[0], item) for item in value]
    if get_origin(kind) is tuple and type(value) is list and len(value) == len(inner):
        return tuple(map(_rebuilt, inner, value))
    if get_origin(kind) is UnionType:  # something or None
        return None if value is None else _rebuilt(inner[0], value)
    if type(value) is not kind:
        raise ValueError(f"{kind} expected")
    if kind is str and len(value) > CHARACTERS:
        raise _too_much()
    return value


@lru_cache
def _fields(kind: type) -> dict:
    return get_type_hints(kind)


def _too_much() -> TemplateError:
    return TemplateError(
        f"The chat template writes more than {CHARACTERS:,} characters.",
        "Let its loops write less, or shorten the conversation.",
    )


def _number(pid: int) -> bytes:
    return pid.to_bytes(4)


_pool = _Pool()


def _begin_anew() -> None:
    """A forked copy of the app must not read the answers to the app's questions."""
    global _pool
    _pool = _Pool()


if _FORKS:
    os.register_at_fork(after_in_child=_begin_anew)


# ---- the processes' side ----


def _be_seed() -> None:
    """Forks a worker for each descriptor that comes, kills a worker for each number, and all when the app is gone."""
    app = socket.socket(fileno=os.dup(0))
    traits("{{ messages }}", {})  # imports all that is imported on the way
    gc.freeze()  # what is here now is shared with the workers
    workers = set()
    while True:
        number, given, *_ = socket.recv_fds(app, 4, 1)
        if not number:
            break
        if given:
            pid = os.fork()
            if not pid:
                app.close()
                _be_worker(given[0])
            workers.add(pid)
            os.close(given[0])
            app.sendall(_number(pid))
        elif (pid := int.from_bytes(number)) in workers:
            workers.remove(pid)
            _kill(pid)
            os.waitpid(pid, 0)
    for pid in workers:
        _kill(pid)


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _be_worker(descriptor: int) -> None:
    """Answers line by line until the app closes the channel. Does not return."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(nothing, standard)
        os.close(nothing)
        _limit()
        with socket.socket(fileno=descriptor) as channel, channel.makefile("rwb") as stream:
            for request in stream:
                _limit_time()
                stream.write(_answer(request) + b"\n")
                stream.flush()
    finally:
        os._exit(1)


def _limit() -> None:
    import resource

    os.setpgid(0, 0)
    os.nice(5)  # the page goes first
    with suppress(AttributeError):  # macOS has no prctl, nor /proc: there a worker may outlive a seed that was killed
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a worker dies with the seed
    with suppress(OSError, ValueError):  # and may take more memory than it should
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    # no core dump, no files, hardly a descriptor, and (but for root) no further process
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NOFILE: 16, resource.RLIMIT_NPROC: 0}
    for limited, most in limits.items():
        with suppress(OSError, ValueError):
            resource.setrlimit(limited, (most, most))


def _limit_time() -> None:
    """The app kills a worker that is late; where it cannot, because it hangs, the system does soon after."""
    import resource

    most = int(time.process_time() + 2 * LONGEST)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _answer(request: bytes) -> bytes:
    try:
        name, arguments = json.loads(request)
        reply = ["value", _FUNCTIONS[name](*arguments)]
    except TemplateError as error:
        reply = ["refused", [error.message, error.hint, error.line, error.reason]]
    except MemoryError:
        raise  # ends this process, which tells enough
    except Exception:
        reply = ["defect", traceback.format_exc()]
    return json.dumps(reply, default=asdict, ensure_ascii=False).encode("utf-8", "surrogatepass")


if __name__ == "__main__":
    _be_seed()

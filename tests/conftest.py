"""Models to test with: a tiny random one made here in a second, and the embedded one for the truth. And how several
test workers get along on few cores."""

import json
import os
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
if "SFT_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # in bfloat16 a tiny model's tokens are a matter of rounding
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores are shared as they are
    os.nice(10)  # as trainings are: else those of one worker stand still while another computes

import pytest
from tiny_models import save_pretrained_base_model, save_tiny_model, save_tiny_run, tiny_tokenizer

from sft import embedded, models
from sft.chat_format import ChatFormat, preset

# The files that take longest are begun first, so that no worker is left alone with one of them at the end.
SLOWEST = (
    "browser/test_journey.py", "test_end_to_end.py", "browser/", "test_launch.py", "test_embedded.py",
    "test_distributed.py", "test_survival.py", "test_cli.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    def rank(item) -> int:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((at for at, name in enumerate(SLOWEST) if path.startswith(name)), len(SLOWEST))

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def users_cache(tmp_path_factory):
    """The user's cache folder, which only the embedded model is taken from: what tests prepare goes to another one."""
    theirs, ours = embedded.cache_dir(), tmp_path_factory.mktemp("cache")
    (ours / embedded.NAME).symlink_to(theirs / embedded.NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_CACHE_DIR", str(ours))
        yield theirs


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with a tiny random chat model (ChatML)."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-chat"), preset("chatml"))


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory):
    """A folder with a tiny random base model, which has no chat template."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-base"), None)


@pytest.fixture(scope="session")
def pretrained_base_model(tmp_path_factory):
    """A folder with a small base model that was really pretrained: it continues text, and does not stop."""
    return save_pretrained_base_model(tmp_path_factory.mktemp("pretrained-base"))


@pytest.fixture(scope="session")
def chatml():
    return ChatFormat.of(tiny_tokenizer(preset("chatml")))


@pytest.fixture(scope="session")
def embedded_model(users_cache):
    """The folder of the embedded model, fetched and converted the first time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_CACHE_DIR", str(users_cache))
        embedded.ensure()
    return models.locate("embedded")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty runs folder, which the page takes for its own."""
    monkeypatch.setenv("SFT_RUNS_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def two_runs_folder(tmp_path_factory, tiny_model):
    root = tmp_path_factory.mktemp("runs")
    save_tiny_run(root, "one", tiny_model, seed=1, snapshots=(2, 5))
    save_tiny_run(root, "two", tiny_model, seed=2)
    return root


@pytest.fixture
def two_runs(two_runs_folder, monkeypatch):
    """The page's runs folder, with two runs of the tiny model: `one`, which has snapshots, and `two`."""
    monkeypatch.setenv("SFT_RUNS_DIR", str(two_runs_folder))
    return two_runs_folder


@pytest.fixture
def write_rows(tmp_path):
    """Writes rows as JSONL and returns the path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write

"""Models to test with: a tiny random one made here in a second, and the embedded one for the truth."""

import json
import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
from tiny_models import save_pretrained_base_model, save_tiny_model, tiny_tokenizer

from sft.chat_format import ChatFormat, preset


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
def embedded_model():
    """The folder of the embedded model, fetched and converted the first time."""
    from sft import models

    return models.locate("embedded")


@pytest.fixture
def write_rows(tmp_path):
    """Writes rows as JSONL and returns the path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write

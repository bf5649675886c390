"""The order of DESIGN: a file imports only from files above it, and above the line nothing heavy is imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = [
    "sft.errors", "sft.failures", "sft.messages", "sft.json_text", "sft.reply_format", "sft.bootstrap", "sft.scores",
    "sft.verdict", "sft.config", "sft.text_files", "sft.stored_rows", "sft.files", "sft.tables", "sft.shapes",
    "sft.data", "sft.layout", "sft.origins", "sft.traits", "sft.chat_format", "sft.best_prompt", "sft.token_text",
    "sft.embeddings", "sft.finding", "sft.token_findings", "sft.doctor", "sft.mismatch", "sft.prompts",
    "sft.sandbox", "sft.check", "sft.embedded", "sft.calibration", "sft.row_cache", "sft.row_file",
    "sft.prepare", "sft.events",
    "sft.run_status", "sft.runs_lock", "sft.run", "sft.runs", "sft.evaluation", "sft.votes",
    "LINE",
    "sft.models", "sft.memory", "sft.training_format", "sft.attention", "sft.batches", "sft.layers",
    "sft.trainer", "sft.adapter", "sft.recorder", "sft.checkpoints", "sft.snapshots", "sft.greedy",
    "sft.samples", "sft.train", "sft.measure", "sft.forecast", "sft.contest", "sft.lora",
    "sft.passes", "sft.sampling", "sft.weights", "sft.chat", "sft.weight_change",
    "sft.compare", "sft.causes", "sft.answers", "sft.evaluate", "sft.launch",
]  # fmt: skip
FACES = {"sft.cli": "sft.ui", "sft.ui": "sft.cli"}
HEAVY = {"torch", "trl", "peft", "gradio"}
FILES = sorted((ROOT / "sft").rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def face(name: str) -> str:
    return ".".join(name.split(".")[:2])


def imports(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if name}


def test_every_file_has_its_place():
    known = {*ORDER, "sft", "sft.__main__"}
    assert {name for name in map(module, FILES) if face(name) not in FACES} == known - {"LINE"}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_imports_only_from_above(path):
    name, used = module(path), imports(path)
    if name in ORDER:
        below = ORDER[ORDER.index(name) :]
        assert not used & set(below), f"{name} imports {used & set(below)}"
    else:
        other = FACES.get(face(name))
        assert not [item for item in used if other and item.startswith(other)]
    if name in ORDER[: ORDER.index("LINE")] and name != "sft.embedded":  # its conversion is a program of its own
        assert not {item.split(".")[0] for item in used} & HEAVY


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a fresh Python has loaded after the statement."""
    code = f"{statement}\nimport sys; print('LOADED', *(name for name in sys.modules if '.' not in name))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(said.rpartition("LOADED")[2].split())


def test_what_is_above_the_line_loads_nothing_heavy():
    names = ", ".join(ORDER[: ORDER.index("LINE")])
    assert not loaded_by(f"import {names}") & HEAVY


def test_the_page_is_built_without_torch_and_transformers():
    assert not loaded_by("import app") & {"torch", "transformers", "trl", "peft"}


def test_help_loads_nothing_heavy():
    loaded = loaded_by("import contextlib, sft.cli\nwith contextlib.suppress(SystemExit): sft.cli.main(['--help'])")
    assert "argparse" in loaded
    assert not loaded & {*HEAVY, "transformers", "datasets", "yaml", "psutil"}


@pytest.mark.parametrize("command", ["forecast", "train", "evaluate", "chat --prompt Hi"])
def test_a_wrong_name_is_told_before_anything_heavy_loads(command, tmp_path):
    arguments = [*command.split(), str(tmp_path / "nothing")]
    assert not loaded_by(f"import sft.cli\nassert sft.cli.main({arguments}) == 2") & HEAVY

"""The README against reality: its two commands, file tree, commands, links and front matter."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_stand_alone_in_their_lines():
    assert re.findall(r"^pip install .*$", TEXT, re.MULTILINE) == [
        "pip install -r requirements.txt && python app.py",
        "pip install -r tests/requirements.txt && python -m pytest",
    ]


def test_the_file_tree_is_the_real_one():
    listed = set(re.findall(r"^((?:app\.py|sft|examples|docs|tests)\S*) {2,}\S", TEXT, re.MULTILINE))
    real = {"app.py", "examples/", "docs/", "tests/"}
    for path in (ROOT / "sft").iterdir():
        if path.is_dir() and path.name != "__pycache__":
            real.add(f"sft/{path.name}/")
        elif path.suffix == ".py" and path.name != "__init__.py":
            real.add(f"sft/{path.name}")
    assert listed == real


def test_every_command_exists():
    from sft.cli import _parser

    parser = _parser()
    for line in re.findall(r"^python -m sft (.*?)(?:\s+#.*)?$", TEXT, re.MULTILINE):
        import shlex

        parser.parse_args(shlex.split(line))


def test_files_that_are_linked_or_named_exist():
    for name in re.findall(r"\]\((\S+?)\)", TEXT) + re.findall(r"`((?:sft|examples|tests)/[\w./-]+)`", TEXT):
        assert (ROOT / name).exists(), name


def test_the_front_matter_is_what_a_space_takes():
    front = yaml.safe_load(TEXT.split("---")[1])
    pinned = re.search(r"^gradio==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    assert front["sdk_version"] == pinned
    assert front["app_file"] == "app.py"
    assert len(front["short_description"]) <= 60
    assert front["license"] == "apache-2.0"
    assert front["python_version"] >= "3.11"

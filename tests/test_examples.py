"""What the examples promise of tuning and prompting, on the embedded model: minutes each, so only on request.

SFT_EXAMPLES=1 python -m pytest tests/test_examples.py
"""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("SFT_EXAMPLES" not in os.environ, reason="trains and evaluates whole examples: SFT_EXAMPLES=1"),
]


def sft(*arguments) -> str:
    return subprocess.run(
        [sys.executable, "-m", "sft", *arguments], stdout=subprocess.PIPE, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("name", "kind", "begins"),
    [("support-json", "tune", "Tune: "), ("weekday", "prompt", "Prompting already does it: ")],
)
def test_the_verdict_on_an_example(embedded_model, tmp_path, name, kind, begins):
    where = ("--runs-dir", str(tmp_path))
    sft("train", f"examples/{name}.yaml", "--run-name", name, *where)
    document = json.loads(sft("evaluate", name, "--json", *where))
    for arm, told in document["arms"].items():
        print(arm, {key: told[key] for key in ("loss", "exact_match", "valid_format", "stop_rate", "prompt_tokens")})
    print(document["verdict"]["sentence"])
    assert document["verdict"]["kind"] == kind
    assert document["verdict"]["sentence"].startswith(begins)

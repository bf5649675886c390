"""A conversation as a file: nothing in an opened one is believed, and what was said can be kept whatever has gone."""

import json
from dataclasses import asdict, replace

import pytest

from sft.errors import RunError, UserError
from sft.ui import keeping, kept
from sft.ui.talk import PROMPTED, Pane, Talk, Who

SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TALK = Talk(Who(run="one"), [Pane(SAID)] * 2)
HALF = "\ud800"  # of a surrogate pair: JSON can say it, UTF-8 cannot


def changed(**about) -> bytes:
    return json.dumps({**json.loads(kept.to_json(TALK, ["", ""])), **about}).encode()


@pytest.mark.parametrize(
    "about",
    [
        {"system": HALF},
        {"panes": [{"messages": [SAID[0], {"role": "assistant", "content": HALF}]}] * 2},
        {"who": asdict(Who(run="one", third=PROMPTED, third_system=HALF))},
        {"who": asdict(Who(run="one", base="embedded"))},
        {"who": asdict(Who())},
        {"who": asdict(Who(run="one", step=True))},
    ],
)
def test_what_could_not_be_shown_or_answered_is_not_opened(about):
    assert kept.read(changed())[0].questions == ["a"]
    with pytest.raises(UserError, match="is not a conversation"):
        kept.read(changed(**about))


def test_a_conversation_of_a_run_that_has_gone_can_still_be_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_RUNS_DIR", str(tmp_path))
    with pytest.raises(RunError):
        keeping.models_of("local", TALK.who)
    text = keeping._writer(kept.to_markdown)("local", TALK)
    assert "**Tuned model**\n\n    b\n" in text
    assert kept.read(keeping._writer(kept.to_json)("local", TALK).encode())[0].who == TALK.who


def test_the_third_has_its_own_system_message_also_to_read():
    who = Who(run="one", third=PROMPTED, third_system="Know it all.")
    talk = replace(TALK, who=who, panes=[Pane(SAID)] * 3, system="Be brief.")
    text = kept.to_markdown(talk, ["x", "y", "z"])
    assert "**System message**\n\n    Be brief.\n" in text
    assert "**System message of the prompted base model**\n\n    Know it all.\n" in text

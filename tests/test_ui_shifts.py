"""A reply in colours: what is painted, listed and said, also of hostile text."""

import gradio as gr
import pytest

from sft.compare import Shift
from sft.ui import shifts, shifts_view
from sft.ui.talk import Pane, Talk, Who

NASTY = '<img src=x onerror="alert(1)">${alert(2)}`'


def shift(text: str, base: float, tuned: float, *choices: str) -> Shift:
    base_choice, tuned_choice = choices or (text, text)
    return Shift(text, base, tuned, base_choice, tuned_choice, base_choice != tuned_choice)


FOUND = [
    shift("{", -0.5, -0.3),
    shift("kettle", -12.0, -0.01, "The", "kettle"),
    shift("\n", -0.1, -3.0, "\n", "}"),
    shift("⟨F0⟩", -1.0, -1.6),
]


def test_each_token_has_the_colour_of_its_change_and_the_first_other_choice_is_framed():
    html = shifts_view.painted(FOUND, "Tuned model", 1, "Base model")
    reply = html.partition('aria-label="The reply">')[2].partition("</div>")[0]
    kinds = [part.partition('"')[0] for part in reply.split('<span class="')[1:]]
    assert kinds == ["shift", "shift more-4 first-apart", "shift less-3", "shift less-1"]
    assert "token 2: base &lt; 0.01 %, tuned 99.00 %, 161,135 times likelier (+11.99 nats)" in reply
    assert "likeliest here: base “The”, tuned “kettle”" in reply
    assert "↵\n" in reply
    assert "tabindex" not in reply


def test_the_strongest_are_listed_first_with_their_places():
    html = shifts_view.painted(FOUND, "Tuned model", 1, "Base model")
    listed = html.partition("The strongest shifts</caption>")[2].partition("</table>")[0]
    assert [row.partition("<td>")[2].partition("<")[0] for row in listed.split("<tr>")[2:]] == ["2", "3", "4", "1"]
    assert "18 times less likely (-2.90 nats)" in listed
    every = html.partition("Every token</caption>")[2]
    assert [row.partition("<td>")[2].partition("<")[0] for row in every.split("<tr>")[2:]] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("found", "parts", "said"),
    [
        (FOUND, 1, "First different choice: token 2, base “The”, tuned “kettle”."),
        (FOUND, 1, "The reply of the base model parts from this one at token 2."),
        (FOUND, None, "The reply of the base model is the same, token for token."),
        (FOUND[:1], None, "At every token both would have chosen the same."),
        (FOUND[:1], None, "No token became 1.5 times likelier or less likely."),
        ([], None, "This reply has no tokens."),
    ],
)
def test_what_is_said_of_where_they_part(found, parts, said):
    assert said in shifts_view.painted(found, "Tuned model", parts, "Base model")


def test_what_a_model_wrote_is_never_markup():
    html = shifts_view.painted([shift(NASTY, -9, -1, NASTY, f"{NASTY}2")], NASTY, 0, NASTY)
    assert "<img" not in html
    assert 'onerror="' not in html


def pane(*replies: int) -> Pane:
    """A pane with so many turns, each with a question of its own and a reply of one token."""
    history = [{"role": role, "content": f"{role} {n}"} for n in replies for role in ("user", "assistant")]
    return Pane(history, turns=[([1, n], [n]) for n in replies])


def last(steps):
    return list(steps)[-1][-1]


def test_nothing_is_coloured_while_closed_without_a_second_model_or_for_a_stranger(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_RUNS_DIR", str(tmp_path))
    talk = Talk(Who(base="embedded"), [pane(2)])
    assert [html for *_, html in shifts.coloured(False, "local", talk, 1, [])] == [""]
    assert "Ask something first" in last(shifts.coloured(True, "local", Talk(), 1, []))
    assert "Ask something first" in last(shifts.coloured(True, "local", Talk(panes=[Pane(turns=[None])]), 1, []))
    assert "It takes two models" in last(shifts.coloured(True, "local", talk, 1, []))
    talk.who = Who(run="hers")
    assert "There is no run" in last(shifts.coloured(True, "local", talk, 7, []))


def test_any_reply_can_be_coloured_the_last_one_first(monkeypatch):
    asked = []
    monkeypatch.setattr(shifts, "_painted", lambda owner, talk, at, turn, tuned: asked.append((at, turn)) or "")
    talk = Talk(Who(run="hers"), [pane(2, 3, 4), pane(2, 3, 5)])
    _, questions, _ = next(shifts.coloured(True, "local", talk, 1, []))
    assert questions["choices"] == [("1. user 2", 0), ("2. user 3", 1), ("3. user 4", 2)]
    assert questions["visible"] and questions["value"] == 2
    for turn in (None, 0, 9):
        list(shifts.coloured(True, "local", talk, 0, [], turn))
    assert asked == [(0, 2), (0, 0), (0, 2)]
    talk.panes[0].turns[0] = talk.panes[1].turns[0] = None  # from a file
    assert [value for _, value in next(shifts.coloured(True, "local", talk, 1, []))[1]["choices"]] == [1, 2]


def test_colours_that_a_later_event_has_overtaken_are_not_shown(monkeypatch):
    monkeypatch.setattr(shifts, "_painted", lambda *about: "COLOURED")
    talk, latest = Talk(Who(run="hers"), [pane(2)] * 2), []
    assert last(shifts.coloured(True, "local", talk, 1, latest)) == "COLOURED"
    slow = shifts.coloured(True, "local", talk, 1, latest)
    next(slow)
    next(shifts.coloured(True, "local", talk, 0, latest))  # another reply was chosen
    assert list(slow) == [(gr.skip(),) * 3]

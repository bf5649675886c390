"""The rows on the page: which source, which verdicts, which row comes next, what a cut leaves, what columns hold."""

import json
import re
import threading

import pytest

from sft import doctor
from sft.chat_format import Rendered
from sft.check import check
from sft.config import TrainConfig
from sft.errors import ConfigError, DataError, SandboxBusy, UserError
from sft.evaluate import rows_of
from sft.origins import Span
from sft.runs import create_run
from sft.shapes import shape_of
from sft.ui import checks, inputs, mapping, row_views, rows, settings, sources, who
from sft.ui.checks import Check, Progress, check_of
from sft.ui.inputs import format_of
from sft.ui.sources import Source, table_of

NASTY = '<img src=x onerror="alert(1)">'
LONG = "The quick brown fox jumps over the lazy dog. " * 8
ROWS = [
    {"question": "a", "answer": "b"},
    {"question": "a", "answer": LONG},  # cut
    {"question": "a", "answer": ""},  # wrong
    {"question": LONG, "answer": "b"},  # dropped
    {"question": "a", "answer": "c"},
    {"question": "a", "answer": LONG + "again"},  # cut
]
MAPPED = [{"Nr": "7", "Frage": f"Was ist {n}?", "Antwort": f"Das ist {n}.", "Zusatz": "Kurz bitte."} for n in range(3)]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def ask(tiny_model, write_rows, monkeypatch):
    """What a page asks that looks at these rows."""
    monkeypatch.setattr(inputs.READINESS, "ready", True)

    def asked(table=ROWS, max_length=64, columns=None, name="rows.jsonl"):
        return rows.wish(Source(str(write_rows(table, name))), str(tiny_model), max_length, columns)

    return asked


@pytest.fixture
def checked(ask):
    check = check_of(ask())
    check.advance(60)
    return check


# ---- sources ----


def test_an_upload_is_kept_under_its_content_so_no_visitor_meets_another(runs, tmp_path):
    kept = []
    for visitor, answer in (("alice", "hers"), ("bob", "his")):
        path = tmp_path / visitor / "mine.jsonl"
        path.parent.mkdir()
        path.write_text(json.dumps({"question": "a", "answer": answer}))
        kept.append(sources.chosen("Upload", None, str(path), "", "", ""))
        path.unlink()
    assert kept[0] != kept[1]
    assert [table_of(source).rows[0]["answer"] for source in kept] == ["hers", "his"]
    assert all(source.name.startswith(str(runs)) for source in kept)


def test_a_file_that_changed_is_read_and_checked_again(ask):
    one = check_of(ask(ROWS[:1]))
    assert check_of(one.asked) is one
    assert one.advance(60).total == 1
    other = check_of(ask(ROWS))
    assert other.asked == one.asked
    assert other.advance(60).total == len(ROWS)


def test_an_upload_that_could_not_be_copied_leaves_nothing_behind(runs, write_rows, monkeypatch):
    path = write_rows([{"question": "a", "answer": "b"}], "mine.jsonl")

    def half(source, target):
        target.write_text("{")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(sources.shutil, "copyfile", half)
        with pytest.raises(OSError, match="disk full"):
            sources.keep(path)
    assert not [file for file in (runs / ".uploads").rglob("*") if file.is_file()]
    assert sources.keep(path).read_text() == path.read_text()


# ---- the check ----


def test_the_verdicts_kept_are_those_of_check(checked: Check):
    asked = checked.asked
    truth = list(check(table_of(asked.source), format_of(asked.model), asked.max_length))
    assert checked.verdicts.decode() == "".join(verdict.verdict[0] for verdict in truth) == "kcwdkc"
    summary = checked.advance(1).summary
    assert (summary.kept, summary.cut, summary.dropped, summary.wrong) == (2, 2, 1, 1)
    assert summary.tokens == sum(verdict.tokens for verdict in truth)


def test_a_check_goes_on_where_it_broke_off_whoever_advances_it(ask):
    asked = ask([{"question": f"{n}?", "answer": "yes"} for n in range(400)])
    alone = check_of(asked)
    assert 0 < alone.advance(0).summary.rows < 400
    threads = [threading.Thread(target=lambda: [alone.advance(0.001) for _ in range(100)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    progress = alone.advance(60)
    assert progress.done
    assert bytes(alone.verdicts) == b"k" * 400
    assert sum(progress.summary.lengths.values()) == 400


def test_a_check_ends_when_the_page_asks_for_something_else(ask, monkeypatch):
    monkeypatch.setattr(rows, "STEP", 0)
    page = rows.Page()
    asked = page.ask(ask())
    first = rows.steps(page, asked)
    assert next(first)[1].summary.rows == 1
    again = page.ask(asked[0])  # the same once more: the work that is done stays
    assert list(first) == []
    assert [step.summary.rows for _, step in rows.steps(page, again)] == [2, 3, 4, 5, 6]
    assert list(rows.steps(page, None)) == []


def test_the_tally_says_how_far_it_is_and_what_the_cut_takes(checked: Check):
    progress = checked.advance(1)
    done = row_views.tally(NASTY, "question + answer", progress, 64)
    assert "<img" not in done
    assert "6 rows" in done
    assert "All rows checked" in done
    assert "progressbar" not in done
    assert "<dt>rows whose stop token is lost</dt><dd>2</dd>" in done
    cut = [line for line in done.split("<tr")[1:] if "✂ cut" in line]
    assert cut
    assert all("is-cut" in line for line in cut)
    assert "is-cut" not in row_views.tally("x", "y", progress, 10_000)
    half = row_views.tally("x", "y", Progress(progress.summary, 100_000, 0.01), 64)
    assert "6 of 100,000 rows, 600 a second, about 2:47 left" in half
    assert 'role="progressbar"' in half


def test_a_busy_sandbox_is_no_verdict_and_the_row_is_tried_again(ask, monkeypatch):
    begun, busy = check_of(ask()), [2, 3]

    def check_row(row, *about):
        if len(begun.verdicts) in busy:
            busy.remove(len(begun.verdicts))
            raise SandboxBusy("The sandbox is busy.", "Try again.")
        return check_one(row, *about)

    check_one = checks.check_row
    monkeypatch.setattr(checks, "check_row", check_row)
    assert [begun.advance(60).summary.rows for _ in range(3)] == [2, 3, 6]
    assert begun.verdicts.decode() == "kcwdkc"


def test_a_check_that_goes_on_reads_its_file_once_however_many_others_come(ask, monkeypatch):
    asked = [ask(name=f"{n}.jsonl") for n in range(6)]
    monkeypatch.setattr(sources, "_TABLES", sources.Kept(1, lambda key, table: 1))
    monkeypatch.setattr(checks, "_CHECKS", sources.Kept(1, lambda key, check: 1))
    monkeypatch.setattr(rows, "STEP", 0)
    read = []
    read_table = sources.read_table
    monkeypatch.setattr(sources, "read_table", lambda *source: read.append(source) or read_table(*source))
    pages = [rows.Page() for _ in asked]
    visitors = [rows.steps(page, page.ask(each)) for page, each in zip(pages, asked, strict=True)]
    for count in range(1, len(ROWS) + 1):
        assert [next(visitor)[1].summary.rows for visitor in visitors] == [count] * len(asked)
    assert len(read) == len(asked)


def test_what_is_kept_weighs_no_more_than_it_may_and_the_oldest_goes_first():
    class Thing:
        def __init__(self, size):
            self.size = size

    made = []
    kept = sources.Kept(10, lambda key, thing: thing.size)

    def get(size):
        return kept.get(size, lambda: made.append(size) or Thing(size)).size

    for size in (4, 5, 4, 3, 4, 5, 50, 50):  # 3 drives out 5, 5 drives out 3, and 50 all
        assert get(size) == size
    assert made == [4, 5, 3, 5, 50]
    assert get(4) == 4
    assert made[-1] == 4


def test_files_weigh_their_bytes(write_rows):
    path = write_rows([{"question": "a" * 100_000, "answer": "b"}])
    table = table_of(Source(str(path)))
    assert sources.weight(inputs.stamp(str(path)), table) > 100_000 > sources.weight((), table)


# ---- stepping ----


@pytest.mark.parametrize(
    ("at", "kind", "way", "expected"),
    [
        (0, "all", 1, 1), (5, "all", 1, "This is the last row."), (0, "all", -1, "This is the first row."),
        (0, "cut", 1, 1), (1, "cut", 1, 5), (5, "cut", -1, 1), (1, "cut", 0, 1),
        (0, "wrong", 0, 2), (5, "dropped", 0, 3),
        (5, "cut", 1, "No row after row 6 is cut."), (1, "cut", -1, "No row before row 2 is cut."),
    ],
)  # fmt: skip
def test_next_goes_to_the_next_row_of_the_kind(checked, at, kind, way, expected):
    index, why = rows.neighbour(checked, at, kind, way)
    assert (why if index is None else index) == expected


def test_what_is_not_checked_yet_is_not_said_to_be_missing(ask):
    begun = check_of(ask())
    begun.advance(0)
    assert "among the 1 checked so far" in rows.neighbour(begun, 0, "cut", 1)[1]


# ---- one row ----


def test_a_cut_row_shows_what_is_trained_on_and_what_is_lost(checked: Check):
    asked = checked.asked
    chat_format, row = format_of(asked.model), checked.row(1)
    whole = chat_format.render(row.conversation.messages)
    cut = row_views._cut(whole, asked.max_length)
    encoded = chat_format.encode(row.conversation, asked.max_length)
    assert cut.token_ids == encoded.input_ids
    assert sum(cut.assistant_mask) == encoded.trained
    lost = [each.text for each in cut.dropped[len(whole.dropped) :]]
    assert cut.text + "".join(lost) == whole.text
    assert (cut.dropped[-2].role, cut.dropped[-1].role) == ("assistant", "template")
    html = row_views.as_trained(checked, 1)
    assert "is-cut" in html
    assert "<del" in html
    assert "its stop token is lost" in html
    assert "<del" not in row_views.as_trained(checked, 0)
    placed = doctor.examine(chat_format, row.conversation.messages, None, whole, asked.max_length)
    within = row_views._within(placed, len(cut.text))
    assert all(item.end is None or item.end <= len(cut.text) for item in within)
    number = next(number for number, item in enumerate(within) if item.code == "stop_cut")
    assert "and with it the stop token of 1 assistant turn(s)" in html
    assert f'data-to-f="{number}"' in html
    assert re.search(f'<del [^>]*data-f="{number}"', html)  # the button leads to what is lost


def test_a_row_that_cannot_be_used_is_shown_as_it_is_and_escaped(ask):
    wrong = check_of(ask([ROWS[0], {"question": NASTY, "answer": ""}]))
    html = row_views.as_trained(wrong, 1)
    assert "cannot be used" in html
    assert "&lt;img src=x" in html
    assert "<img" not in html


def test_what_many_messages_lose_is_told_apart_in_one_pass(chatml):
    """As many as fit beside each other: a scan of all for each would take minutes."""
    spans = [Span(2 * n, 2 * n + 1, "user", n) for n in range(30_000)]
    rendered = Rendered("a-" * 30_000, [], [], spans, [], None, True)
    lost = row_views._lost(rendered, 10)
    assert [(each.text, each.role, each.message) for each in lost[:3]] == [
        ("a", "user", 5), ("-", "template", 5), ("a", "user", 6),
    ]  # fmt: skip
    assert len(lost) == 2 * (30_000 - 5)


# ---- columns ----


def test_the_form_guesses_and_its_setting_is_what_runs_read(write_rows):
    table = table_of(Source(str(write_rows(MAPPED))))
    with pytest.raises(DataError, match="no shape is known") as told:
        shape_of(table)
    assert "What do the columns hold?" in mapping.question(told.value)
    values = [update["value"] for update in mapping.offered(table)]
    assert values == [["Frage"], "Antwort", "", ""]
    assert "Was ist 0?" in mapping.first_row(table, values)
    text = mapping.setting(["Frage", "Zusatz"], "Antwort", "Nr", "")
    _, read = shape_of(table, text)
    assert read(MAPPED[1]) == [
        {"role": "system", "content": "7"}, {"role": "user", "content": "Was ist 1?\n\nKurz bitte."},
        {"role": "assistant", "content": "Das ist 1."},
    ]  # fmt: skip
    assert "Choose the columns" in mapping.first_row(table, [["Frage"], None, "", ""])


def test_a_column_of_whole_conversations_is_offered_and_needs_no_other(write_rows):
    table = table_of(Source(str(write_rows([{"dialog": [{"role": "user", "content": "a"}], "a,b": "x", " c": "y"}]))))
    user, _, _, messages = mapping.offered(table)
    assert messages["value"] == "dialog"
    assert user["choices"] == ["dialog"]  # the other names cannot be written in the setting
    assert mapping.setting(["dialog"], "dialog", "", "dialog") == "messages=dialog"


def test_a_run_is_started_with_the_columns_and_their_mistakes_are_told(runs, write_rows):
    upload = ("Upload", None, str(write_rows(MAPPED)), "", "", "")
    with pytest.raises(DataError, match="no shape is known"):
        settings.make_config("embedded", {"columns": ""}, *upload)
    columns = "user=Frage, assistant=Antwort"
    assert settings.make_config("embedded", {"columns": columns}, *upload).columns == columns
    with pytest.raises(ConfigError, match="there is no column 'Fragen'"):
        settings.make_config("embedded", {"columns": "user=Fragen, assistant=Antwort"}, *upload)


def test_columns_of_a_run_hold_for_its_system_message_and_for_other_held_out_rows(runs, write_rows):
    columns = "user=Frage, assistant=Antwort, system=Zusatz"
    config = TrainConfig.from_dict({"dataset": str(write_rows(MAPPED)), "columns": columns})
    run = create_run(config, runs, "mapped")
    assert who.suggested_system("local", "mapped") == "Kurz bitte."
    ((row,), _) = rows_of(run, str(write_rows(MAPPED[:1], "other.jsonl")))
    assert row.messages[-1]["content"] == "Das ist 0."


def test_columns_change_what_is_checked_and_a_wrong_max_length_is_told(ask):
    asked = ask(MAPPED, columns="user=Frage, assistant=Antwort")
    other = ask(MAPPED, columns="user=Zusatz, assistant=Antwort")
    assert check_of(asked) is not check_of(other)
    assert "Was ist 0?" in row_views.as_trained(check_of(asked), 0)
    assert "Was ist 0?" not in row_views.as_trained(check_of(other), 0)
    with pytest.raises(UserError, match="max_length: must be at least 8"):
        ask(max_length=2)
    with pytest.raises(UserError, match="max_length: needs a value"):
        ask(max_length=None)

"""A verdict for each row, the counts, and how long the rows are."""

import itertools
from dataclasses import replace

import pytest

from sft.check import Summary, Verdict, check
from sft.errors import SandboxBusy
from sft.tables import read_table


def test_verdicts_and_summary(chatml, write_rows):
    path = write_rows(
        [
            {"question": "Hi", "answer": "Hello."},
            {"question": "Hi", "answer": "Hello. " * 20},
            {"question": "Hi " * 60, "answer": "Hello."},
            {"question": "Hi", "answer": ""},
        ]
    )
    summary = Summary()
    verdicts = list(check(read_table(str(path)), chatml, max_length=60))
    for verdict in verdicts:
        summary.add(verdict)
    assert [verdict.verdict for verdict in verdicts] == ["kept", "cut", "dropped", "wrong"]
    assert [verdict.place for verdict in verdicts] == ["line 1", "line 2", "line 3", "line 4"]
    assert "stop token is lost" in verdicts[1].problems[0]
    assert "content is empty" in verdicts[3].problems[0]
    assert (summary.rows, summary.kept, summary.cut, summary.dropped, summary.wrong) == (4, 1, 1, 1, 1)
    assert summary.longest > 60
    assert 0 < summary.trained < summary.tokens


def test_a_row_that_the_template_refuses_is_wrong_not_a_crash(chatml, write_rows):
    from sft.chat_format import ChatFormat

    refusing = ChatFormat(chatml.tokenizer, "{{ raise_exception('never') }}")
    (verdict,) = check(read_table(str(write_rows([{"question": "a", "answer": "b"}]))), refusing)
    assert verdict.verdict == "wrong"
    assert "never" in verdict.problems[0]


def test_a_busy_sandbox_is_asked_again_and_is_no_verdict(chatml, write_rows, monkeypatch):
    busy = [1, 1]

    def run(function, *arguments):
        if busy:
            busy.pop()
            raise SandboxBusy("The sandbox is busy.", "Try again.")
        return function(*arguments)

    monkeypatch.setattr("sft.check.WAIT", 0)
    crowded = replace(chatml, run=run)
    table = read_table(str(write_rows([{"question": "a", "answer": "b"}] * 2)))
    assert [verdict.verdict for verdict in check(table, crowded)] == ["kept", "kept"]
    busy += [1] * 100
    with pytest.raises(SandboxBusy):
        list(check(table, crowded))


def test_what_a_cut_takes_is_counted(chatml, write_rows):
    path = write_rows([{"question": "Hi", "answer": "Hello. " * count} for count in (1, 20, 30)])
    whole = list(check(read_table(str(path)), chatml))
    limit = whole[1].tokens - 1  # the newline after the stop token: nothing is lost that is trained on
    kept, ended, torn = check(read_table(str(path)), chatml, limit)
    assert (kept.verdict, kept.cut_tokens, kept.lost_stop) == ("kept", 0, False)
    assert (ended.verdict, ended.cut_tokens, ended.lost_stop) == ("cut", 1, False)
    assert (torn.verdict, torn.cut_tokens, torn.lost_stop) == ("cut", torn.tokens - limit, True)
    assert "no token that is trained on is lost" in ended.problems[0]
    assert "its stop token is lost" in torn.problems[0]
    summary = Summary()
    for verdict in (kept, ended, torn):
        summary.add(verdict)
    assert (summary.cut_tokens, summary.lost_stops) == (1 + torn.tokens - limit, 1)


def test_rows_are_checked_one_by_one(chatml, write_rows):
    table = read_table(str(write_rows([{"question": "a", "answer": "b"}] * 3)))
    asked = []

    class Watched(list):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)

    verdicts = check(type(table)(table.source, Watched([*table.rows] * 100), "row"), chatml)
    next(verdicts)
    assert max(asked) < 20  # those that the shape is found by
    assert len(list(verdicts)) == 299


def summary_of(lengths) -> Summary:
    summary = Summary()
    for length in lengths:
        summary.add(Verdict("", "kept", length))
    return summary


@pytest.mark.parametrize(
    ("lengths", "max_length"),
    [
        ([1], None),
        ([100], 512),
        (range(1, 17), 8),
        (range(60, 92), 80),
        (range(900, 1100), 1000),
        ([5, 70, 700, 7000], 512),
        ([1, 131_072], 500),
        ([3, 3, 250], 3),
        (range(1000, 9000, 7), 10),
        (range(1000, 9000, 7), 100_000),
    ],
)
def test_a_histogram_counts_every_row_once(lengths, max_length):
    bars = summary_of(lengths).histogram(max_length)
    assert sum(rows for _, _, rows in bars) == len(lengths)
    for low, high, rows in bars:
        assert rows == sum(low <= length <= high for length in lengths)
    assert all(high + 1 == low for (_, high, _), (low, _, _) in itertools.pairwise(bars))
    assert len(bars) <= 17
    if max_length and min(lengths) <= max_length < max(lengths):
        assert max_length in [high for _, high, _ in bars]
    assert bars[-1][0] <= max(lengths) <= bars[-1][1]


def test_histograms_have_round_edges():
    assert [bar[1] for bar in summary_of(range(56, 92)).histogram()] == [60, 65, 70, 75, 80, 85, 90, 95]
    assert [bar[1] for bar in summary_of([20, 40, 3000]).histogram(600)] == [
        32,
        64,
        128,
        256,
        512,
        600,
        1024,
        2048,
        4096,
    ]
    assert Summary().histogram(512) == []


def test_a_wrong_row_has_no_length(chatml, write_rows):
    summary = Summary()
    for verdict in check(read_table(str(write_rows([{"question": "a", "answer": ""}]))), chatml):
        summary.add(verdict)
    assert (summary.wrong, summary.histogram()) == (1, [])

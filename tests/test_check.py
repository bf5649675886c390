"""A verdict for each row, and the counts."""

from sft.check import Summary, check
from sft.data import read_table


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

"""What the page paints: every character, no markup of what people wrote, and not too much of it."""

import random
import re
import time

from test_layout import CHATML, PROMPT

from sft import doctor
from sft.chat_format import ChatFormat, Rendered
from sft.check import Verdict
from sft.config import TrainConfig
from sft.finding import Finding
from sft.mismatch import mismatch
from sft.origins import Dropped, Span
from sft.runs import create_run
from sft.ui import (
    paint,
    panes,
    row_views,
    run_card,
    versus,
    views,
)  # fmt: skip

NASTY = '<img src=x onerror="alert(1)">${alert(2)}`'
CONFIG = TrainConfig.from_dict({"dataset": "examples/support-json.jsonl", "max_steps": 4})


def test_what_a_person_wrote_is_never_markup(chatml: ChatFormat, runs):
    talk = [{"role": "user", "content": NASTY}, {"role": "assistant", "content": NASTY}]
    rendered = chatml.render(talk)
    found = [Finding("error", "code", NASTY, NASTY, 0, 5, 0), *doctor.examine(chatml, talk, None, rendered)]
    run = create_run(CONFIG, runs, "one")
    run.log_file.write_text(NASTY)
    run.append_event("warning", message=NASTY)
    run.set_status("failed", message=NASTY)
    for html in (
        views.views(rendered, found), views.findings(found), views.prompt(rendered),
        versus.comparison([chatml, chatml], [rendered, rendered]),
        versus.what_if(mismatch(chatml, chatml, talk)),
        paint.problem(NASTY, NASTY, NASTY),
        row_views.said(Verdict(NASTY, "wrong", problems=(NASTY,))), run_card.run_card(run), paint.empty(NASTY),
    ):  # fmt: skip
        assert "<img" not in html
        assert 'onerror="' not in html


def test_text_and_tokens_show_every_character(chatml: ChatFormat):
    rendered = chatml.render([{"role": "user", "content": "a  b\tc\n日🎉"}])
    text, _, tokens = views.views(rendered, []).partition("<h3>Tokens")
    for seen in ("·", "⇥", "↵", "日", "🎉"):
        assert seen in text
    tokens = tokens.partition("<h3>Loss mask")[0]
    assert tokens.count('class="token ') == len(rendered.token_ids)
    for token_id in rendered.token_ids:
        assert f"<small>{token_id}</small>" in tokens
    assert "⟨F0⟩<small>" in tokens  # the first of the four bytes of the emoji, which the tokenizer takes one by one


def test_bubbles_keep_leading_spaces_and_lines():
    (bubble,) = panes.bubbles([{"role": "assistant", "content": "    if x:\n        y\n"}])
    assert bubble["content"] == [{"type": "text", "text": "    if x:\n        y\n"}]


def marked(html):
    """The framed words of each side."""
    return [re.findall('<mark class="differs">(.*?)</mark>', side, re.DOTALL) for side in html.split("<section")[1:]]


def compared(one, other):
    texts = [Rendered(text, [], [], [], [], None, True) for text in (one, other)]
    began = time.perf_counter()
    html = versus.comparison([ChatFormat(None, "", origin=name) for name in ("a", "b")], texts)
    return html, time.perf_counter() - began


def test_long_texts_are_compared_quickly_and_exactly():
    repeated = [start + "x " * 2000 + end for start, end in (("<|im_start|>u\n", "<|im_end|>"), ("<|u|>\n", "</s>"))]
    html, seconds = compared(*repeated)
    assert seconds < 0.3
    assert [len("".join(side)) < 80 for side in marked(html)] == [True, True]
    assert ["x" in "".join(side) for side in marked(html)] == [False, False]
    # words as frequent as in prose: the n-th occurs 1 / n as often as the first
    words = random.Random(0).choices([f"w{n}" for n in range(1, 500)], [1 / n for n in range(1, 500)], k=1000)
    prose = [" ".join(words[at : at + 50]) for at in range(0, 1000, 50)]
    html, seconds = compared(*(f"{mark}".join(prose) for mark in ("<|im_end|>\n", "</s>")))
    assert seconds < 0.3
    assert set(marked(html)[0]) == {'&lt;|im_end|&gt;<i class="ws">↵</i>\n'}
    assert set(marked(html)[1]) == {"&lt;/s&gt;"}


def test_texts_that_differ_over_too_many_words_have_no_marks_and_say_so():
    one, other = (" ".join(f"{name}{n}" for n in range(versus.LONGEST)) for name in "ab")
    html, seconds = compared(one, other)
    assert seconds < 0.3
    assert "Nothing is framed: they differ over too many words." in html
    assert "<mark" not in html
    long = "y" * (paint.TEXT_SHOWN + 7)
    assert compared(long, long + "z")[0].count("more characters</b>") == 2


def of_many(count, left_out=False):
    """A rendering of many messages of two characters, a token a character."""
    spans = [Span(2 * n, 2 * n + 1, "assistant" if n % 2 else "user", n) for n in range(count)]
    dropped = [Dropped(span.start, "gone", span.role, span.message) for span in spans] if left_out else []
    turns = [(span.start, span.end) for span in spans[1::2]]
    size = 2 * count
    mask = [int(at % 4 == 2) for at in range(size)]
    offsets = [(at, at + 1) for at in range(size)]
    roles = ["template"] * size
    return Rendered("a-" * count, turns, [], spans, dropped, None, True, [7] * size, ["a"] * size, offsets, roles, mask)


def test_thousands_of_pieces_are_painted_in_little_time_and_not_all():
    found = [Finding("note", "code", "said", "do", 0, 40_000, None)] * 4000
    began = time.perf_counter()
    html = views.views(of_many(20_000, left_out=True), found) + views.findings(found)
    assert time.perf_counter() - began < 4
    assert len(html) < 4_000_000
    assert html.count("more characters</p>") == 2
    assert "… and 36,000 more tokens" in html
    assert f"… and {4000 - views.FINDINGS_SHOWN:,} more</li>" in html
    text = html.partition("<h3>Tokens")[0]
    assert 0 < text.count('<span class="role-') <= views.PIECES_SHOWN


def test_one_very_long_text_is_painted_in_part():
    text = "ab" * paint.TEXT_SHOWN
    spans = [Span(0, len(text), "assistant", 0)]
    html = views.views(Rendered(text, [(0, len(text))], [], spans, [], None, True), [])
    assert len(html) < 3 * paint.TEXT_SHOWN
    assert html.count(f"… and {paint.TEXT_SHOWN:,} more characters") == 2
    assert f"learns {len(text):,} characters" in html  # the length is that of the whole
    parted = paint.parted(text, len(text) - 5, "parts")
    assert '<mark class="parts">babab</mark>' in parted
    assert len(parted) < 2 * paint.TEXT_SHOWN


def test_a_finding_about_words_left_out_leads_to_them(chatml):
    rendered = of_many(3, left_out=True)
    found = [Finding("warning", "code", "said", "do", each.at, each.at, each.message) for each in rendered.dropped]
    html = views.views(rendered, found)
    for number, each in enumerate(rendered.dropped):
        assert f'<del class="role-{each.role}" data-m="{each.message}" data-f="{number}"' in html


def test_a_progress_bar_tells_a_plain_number():
    assert 'aria-valuenow="50"' in paint.progress_bar(0.5, "x")


def test_where_nothing_is_trained_on_it_says_why(chatml: ChatFormat):
    asked = [{"role": "user", "content": "Hi"}]
    assert "there is no assistant turn to learn from" in views.views(chatml.render(asked), [])
    counting = ChatFormat(chatml.tokenizer, "{{ messages | length }}" + CHATML + PROMPT)  # moves what is before
    unsure = counting.render([*asked, {"role": "assistant", "content": "Hello."}])
    assert unsure.unsure and "no assistant turn whose place is certain" in views.views(unsure, [])

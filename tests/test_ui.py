"""The page's own logic without a browser: whose run it is, what is escaped, what settings become."""

import json
import random
import re
import time

import gradio as gr
import pytest
from tiny_models import tiny_tokenizer

from sft import doctor
from sft.chat_format import ChatFormat, Rendered, preset
from sft.check import Verdict
from sft.config import TrainConfig
from sft.errors import ConfigError, DataError, RunError, UserError
from sft.finding import Finding
from sft.mismatch import mismatch
from sft.origins import Dropped, Span
from sft.runs import create_run
from sft.tables import read_table
from sft.ui import (
    _refresh_chat,
    arrived,
    inputs,
    paint,
    panes,
    preview,
    readiness,
    row_views,
    run_card,
    run_view,
    settings,
    versus,
    views,
    visitors,
    watch,
    who,
)  # fmt: skip
from sft.ui.talk import Talk, Who, contest_of

NASTY = '<img src=x onerror="alert(1)">${alert(2)}`'
CONFIG = TrainConfig.from_dict({"dataset": "examples/support-json.jsonl", "max_steps": 4})


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SFT_RUNS_DIR", str(tmp_path))
    return tmp_path


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


def test_a_visitor_sees_and_touches_no_run_of_another(runs):
    run = create_run(CONFIG, runs, "hers", owner="alice")
    assert run_view.run_names("alice") == ["hers"]
    assert run_view.run_names("bob") == []
    assert "hers" not in str(run_view.show_run("bob", "hers"))
    assert "hers" in run_view.show_run("alice", "hers")[0]
    with pytest.raises(RunError, match="There is no run 'hers'"):
        contest_of("bob", Who(run="hers"))
    (runs / "hers/adapter").mkdir()
    (runs / "hers/adapter/adapter_model.safetensors").write_bytes(b"")
    assert ("hers", "hers") in who.choices("alice")
    assert ("hers", "hers") not in who.choices("bob")
    assert run.owner == "alice"
    assert who.suggested_system("bob", "hers") == ""
    assert who.suggested_system("alice", "hers") == "You file support tickets for Northwind Home."


def test_strangers_on_a_space_name_no_folder_of_the_machine(monkeypatch, tmp_path):
    inputs.guard_model(str(tmp_path))
    monkeypatch.setenv("SPACE_ID", "someone/space")
    inputs.guard_model("HuggingFaceTB/SmolLM2-135M")
    for name in (str(tmp_path), "./runs", "~/models", "examples", " /etc", "sft/ui"):
        with pytest.raises(UserError, match="names a folder"):
            inputs.guard_model(name)


def test_settings_become_the_config_of_the_run(runs):
    values = settings.example_settings("support-json")
    config = settings.config_of("embedded", False, *values, "Example", "support-json", None, "", "", "train")
    assert config == TrainConfig.load("examples/support-json.yaml")


def test_an_upload_is_kept_and_a_share_of_it_held_out(runs, write_rows):
    path = write_rows([{"question": "a", "answer": "b"}] * 20, "mine.jsonl")
    config = settings.make_config("embedded", {}, "Upload", None, str(path), "", "", "train")
    assert config.eval_share == 0.1
    assert config.dataset.startswith(str(runs))
    path.unlink()
    assert len(read_table(config.dataset).rows) == 20


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("Upload", None, None, "", "", ""), "No file is uploaded yet"),
        (("Hub", None, None, " ", "", ""), "No Hub id is given yet"),
        (("Hub", None, None, "examples", "", ""), "names a file of this machine"),
        (("Hub", None, None, "../secret.jsonl", "", ""), "names a file of this machine"),
    ],
)
def test_a_source_that_is_missing_or_not_the_visitors_is_told(runs, values, said):
    with pytest.raises(DataError, match=said):
        settings.make_config("embedded", {}, *values)


def test_bubbles_keep_leading_spaces_and_lines():
    (bubble,) = panes.bubbles([{"role": "assistant", "content": "    if x:\n        y\n"}])
    assert bubble["content"] == [{"type": "text", "text": "    if x:\n        y\n"}]


def test_the_examples_of_the_preview_are_conversations():
    from sft.messages import problems

    for name, messages in preview.EXAMPLES.items():
        assert not problems(messages), name
    assert json.loads(preview._dump(preview._example("One question", 1))) == preview.EXAMPLES["One question"]


# ---- tools ----


def test_tools_are_shown_as_they_are_trained_on(write_rows, tmp_path, monkeypatch):
    tools = [{"type": "function", "function": {"name": "weather"}}]
    row = {"messages": preview.EXAMPLES["One question"], "tools": tools}
    monkeypatch.setitem(inputs.DATA, "tooled", write_rows([row, {**row, "messages": []}]))
    conversation = preview._example("data: tooled", 1)
    assert conversation["tools"]
    assert json.loads(preview._dump(conversation)) == conversation
    telling = ChatFormat.of(tiny_tokenizer("{{ tools | tojson }}" + preset("chatml")))
    monkeypatch.setattr(preview, "changed_format", lambda *about: telling)
    assert "weather" in preview.show("any", None, "", "", None, None, conversation, False)[0]
    with pytest.raises(DataError, match="line 2 cannot be used"):
        preview._example("data: tooled", 2)


def test_a_row_that_is_not_there_is_told(write_rows, monkeypatch):
    rows = [{"question": f"{n}?", "answer": "Yes."} for n in range(1, 4)]
    monkeypatch.setitem(inputs.DATA, "three", write_rows(rows))
    assert preview._example("data: three", 3)["messages"][0]["content"] == "3?"
    for number in (0, 4, 99_999):
        with pytest.raises(DataError, match=f"There is no row {number:,}") as told:
            preview._example("data: three", number)
        assert "from 1 to 3" in told.value.hint


# ---- templates ----


@pytest.fixture
def shown(monkeypatch, tiny_model):
    """What the page shows of a conversation with these templates."""
    monkeypatch.setattr(inputs.READINESS, "ready", True)
    talk = {"messages": preview.EXAMPLES["With a system message"], "tools": None}

    def show(template=None, second=None, edited=None, prompted=False):
        return preview.show(str(tiny_model), template, "", "", second, edited, talk, prompted)

    return show


def test_a_second_template_that_fails_is_told_in_its_own_place(shown):
    alone, both = shown(), shown(second="preset:gemma")  # which has no system role
    assert both[:5] == alone[:5]
    assert "The second template does not render this" in both[5]
    assert "gemma has no system role" in both[5]
    unknown = shown(second="preset:../../etc/passwd")
    assert unknown[:5] == alone[:5]
    assert "There is no preset" in unknown[5]
    first_fails = shown(template=inputs.preset_of("preset:gemma"), second="own")
    assert "does not render" in first_fails[0]
    assert "The template above does not render this" in first_fails[5]


@pytest.mark.parametrize("name", ["preset:../chat_templates/plain", "preset:", "nothing", None, 7])
def test_only_presets_are_read_by_name(name):
    with pytest.raises(ConfigError, match="There is no preset"):
        inputs.preset_of(name)
    with pytest.raises(ConfigError, match="There is no preset"):
        preview.choose_template(name, "any", "", None, None)


def test_the_template_edited_on_the_page_is_compared_and_picked_again(shown):
    assert "No template is edited on this page yet" in shown(second="edited")[5]
    picked, edited, name = preview.edit("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert (picked, name) == (edited, "edited")
    compared = shown(second="edited", edited=edited)[5]
    assert "edited on this page" in compared
    assert "the model&#x27;s own" in compared
    assert preview.choose_template("edited", "any", "", edited, None)[:2] == (edited, edited.source)
    skipped = preview.choose_template("edited", "any", "", edited, edited)[:2]
    assert skipped == (gr.skip(), gr.skip())  # what is being written is never overwritten
    assert "In use: edited on this page." in shown(edited, "own", edited)[4]


def test_another_models_template_says_whose_it_is(shown, tiny_base_model):
    picked, source, _ = preview.choose_template("other", "any", f" {tiny_base_model} ", None, None)
    assert source == picked.source == preset("plain")
    assert f"In use: the template of {tiny_base_model}." in shown(picked)[4]


def test_compare_shows_the_generation_prompt_where_it_is_shown_above(shown):
    def text(compared):
        return re.sub("<[^>]*>", "", compared)

    assert text(shown(second="own", prompted=True)[5]).count("assistant↵") == 4
    assert text(shown(second="own")[5]).count("assistant↵") == 2


# ---- much to paint ----


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


# ---- whose page it is ----


def test_on_a_space_nobody_acts_as_the_shared_owner(runs, monkeypatch):
    create_run(CONFIG, runs, "shared")
    assert visitors.first_owner() == "local"
    assert arrived({"owner": "local", "run": ["x"]})[:2] == ("local", {"owner": "local", "run": "shared"})
    monkeypatch.setenv("SPACE_ID", "someone/space")
    assert visitors.first_owner() == ""
    for owner in ("", "local", None, "short", 7):
        assert run_view.run_names(owner) == []
        assert "shared" not in str(run_view.show_run(owner, "shared"))
        assert "shared" not in str(who.choices(owner))
        with pytest.raises(UserError, match="lost track of who you are"):
            visitors.check_owner(owner)
        with pytest.raises(UserError, match="lost track of who you are"):
            contest_of(owner, Who(run="shared"))


@pytest.mark.parametrize("stored", [None, {}, {"owner": "local"}, {"owner": ["a" * 40]}, {"owner": "a/" * 20}])
def test_a_stored_owner_that_is_no_token_is_replaced(runs, monkeypatch, stored):
    monkeypatch.setenv("SPACE_ID", "someone/space")
    owner, kept, _ = arrived(stored)
    assert visitors.known(owner)
    assert owner != (stored or {}).get("owner")
    assert arrived(kept)[0] == owner


# ---- the model to begin with ----


@pytest.fixture
def ready(monkeypatch):
    """A Readiness of the test's own, whose default is not the embedded model."""
    fresh = readiness.Readiness()
    for user in ("sft.ui.READINESS", "sft.ui.inputs.READINESS"):
        monkeypatch.setattr(user, fresh)
    monkeypatch.setattr(readiness.models, "default_model", lambda: ("some/model", "It is there."))
    monkeypatch.setattr(readiness.models, "load_tokenizer", lambda folder: None)
    monkeypatch.setattr(readiness.launch, "stand_by", lambda: None)
    return fresh


def test_a_default_that_cannot_be_had_falls_back_to_the_embedded_model(ready, monkeypatch):
    def locate(name, report):
        if name != "embedded":
            raise UserError("The download broke.")

    monkeypatch.setattr(readiness.models, "locate", locate)
    ready._work()
    assert (ready.model, ready.ready) == ("embedded", True)
    assert "some/model could not be had" in ready.banner()
    assert "The download broke." in ready.banner()


@pytest.mark.filterwarnings("error")
def test_a_defect_while_preparing_is_told_and_holds_up_no_other_model(ready, monkeypatch):
    def locate(name, report):
        raise ZeroDivisionError("by <b>zero")

    monkeypatch.setattr(readiness.models, "locate", locate)
    monkeypatch.setattr(inputs, "_format_of", lambda model, stamp: model)
    with pytest.raises(UserError, match="being prepared"):
        inputs.format_of("some/model")
    ready.model = "some/model"
    assert inputs.format_of("embedded") == "embedded"
    ready._work()
    assert "ZeroDivisionError: by &lt;b&gt;zero" in ready.banner()
    assert inputs.format_of("some/model") == "some/model"


def test_a_model_that_the_visitor_picked_meanwhile_stays(ready):
    ready.model, ready.ready = "some/model", True
    _, timer, picked, untouched = watch("my/model", "embedded")
    assert not timer.active
    assert "value" not in picked
    assert untouched == "some/model"


# ---- names ----


@pytest.mark.parametrize("name", [None, "", "  ", 7])
def test_no_model_is_told_in_words(name):
    with pytest.raises(UserError, match="No model is chosen"):
        inputs.guard_model(name)


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000])
def test_a_name_that_is_far_too_long_is_told_in_words(monkeypatch, name):
    monkeypatch.setenv("SPACE_ID", "someone/space")
    with pytest.raises(UserError, match="cannot be a name"):
        inputs.guard_model(name)
    with pytest.raises(UserError, match="cannot be a name"):
        settings.make_config("embedded", {}, "Hub", None, None, name, "", "")


@pytest.mark.parametrize("nobody", [Who(), Who(base="  ")])
def test_nobody_to_answer_is_told_in_words(nobody):
    with pytest.raises(UserError, match="chosen"):
        contest_of("local", nobody)


def test_beside_a_base_model_alone_the_page_says_whether_there_is_a_run_by_now(runs):
    chosen, talk = f"{who.BASE_ALONE}embedded", Talk(Who(base="embedded"))
    assert who.ALONE in _refresh_chat("local", chosen, talk)[1]
    run = create_run(CONFIG, runs, "one")
    run.adapter.mkdir()
    run.set_status("finished", step=4, max_steps=4)
    choices, told = _refresh_chat("local", chosen, talk)
    assert told == "" and ("one", "one") in choices["choices"] and "value" not in choices
    assert _refresh_chat("local", None, Talk())[0]["value"] == "one"
    for other in ("one", f"{who.BASE_ALONE}HuggingFaceTB/SmolLM2-135M"):  # the page has not turned to it
        assert _refresh_chat("local", other, talk)[1] == gr.skip()


def test_no_run_is_told_in_words():
    with pytest.raises(RunError, match="No run is chosen"):
        visitors.run_of("local", None)


def test_a_progress_bar_tells_a_plain_number():
    assert 'aria-valuenow="50"' in paint.progress_bar(0.5, "x")

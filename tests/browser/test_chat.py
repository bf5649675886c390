"""The Chat tab on a Space: visitors at once, each with runs of their own; and what one can do with a conversation.

The app runs in this process, on a tiny model, so that the test knows the tokens that browsers keep.
"""

import json
import re
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest
from playwright.sync_api import expect
from tiny_models import save_tiny_run

from sft import chat, ui, votes
from sft.contest import Contest
from sft.passes import Reader
from sft.run import Run
from sft.ui import kept, paint, turning, visitors, who
from sft.ui.panes import NOTHING
from sft.ui.readiness import READINESS

ANN, BEN = "annika-" * 6, "bertil-" * 6
CLIENTS = 20
TOKENS = 12


@pytest.fixture(scope="module")
def space(tmp_path_factory, tiny_model):
    """The app as on a Space, its runs folder, and the tokens that it will give to the next visitors."""
    root, tokens = tmp_path_factory.mktemp("space"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPACE_ID", "someone/space")
        patch.setenv("SFT_RUNS_DIR", str(root))
        patch.setattr(visitors, "secrets", SimpleNamespace(token_urlsafe=lambda size: tokens.pop(0)))
        for name, value in (("ready", True), ("model", "embedded"), ("why", "It is there.")):
            patch.setattr(READINESS, name, value)
        save_tiny_run(root, "annika-first", tiny_model, seed=1, owner=ANN, snapshots=(2, 5))
        save_tiny_run(root, "bertil-first", tiny_model, seed=2, owner=BEN)
        demo = ui.build()
        demo.launch(**ui.launch_options(), prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        yield demo, root, tokens
        demo.close()


@pytest.fixture(scope="module")
def visit(browser, space):
    """The Chat tab in a browser of that visitor's own, without a conversation. Opened once: pages take seconds."""
    demo, _, tokens = space
    pages = {}

    def open_chat(token):
        if token not in pages:
            tokens.append(token)
            pages[token] = _opened(browser, demo.local_url)
        pages[token].locator("#clear").click()
        expect(pages[token].locator(".pane .bot")).to_have_count(0)
        return pages[token]

    yield open_chat
    for page in pages.values():
        page.context.close()


def _opened(browser, url):
    page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    page.goto(url)
    page.get_by_role("tab", name="· Chat").click()
    expect(page.locator(".stamp")).to_have_count(2)
    page.get_by_text("Sampling", exact=True).click()
    page.wait_for_timeout(1000)  # a field that is filled before it is quite there falls back to its first value
    page.get_by_label("number input for Max new tokens").fill(str(TOKENS))
    page.get_by_label("number input for Max new tokens").press("Tab")
    return page


def expected(run, question):
    """Both replies, from one conversation with nobody else about."""
    contest = Contest.of_run(run)
    prompt = contest.chat_format.prompt_ids([{"role": "user", "content": question}])
    *_, replies = chat.stream(contest, [prompt] * 2, chat.Sampling(max_new_tokens=TOKENS))
    return [reply.text for reply in replies]


def words(text):
    return "".join(text.split())


def said(page, pane):
    return words(page.locator(f"#{pane} .bot").last.text_content())


def ask(page, question):
    page.get_by_label("System message (optional)").fill("")
    page.locator("#prompt textarea").fill(question)
    page.locator("#send").click()


def answered(page, panes=2):
    for at in range(panes):
        expect(page.locator(".pane-note").nth(at)).to_contain_text("cut at the limit")


def test_two_visitors_at_once_see_their_own_words_and_adapter(visit, space):
    _, root, _ = space
    ann, ben = visit(ANN), visit(BEN)
    questions = {ann: "Annika asks about a fox.", ben: "Bertil asks about a dog."}
    for page, question in questions.items():
        ask(page, question)
    for page in questions:
        answered(page)
    for page, own, other in ((ann, "annika", "bertil"), (ben, "bertil", "annika")):
        base, tuned = expected(Run(root / f"{own}-first"), questions[page])
        assert said(page, "base-pane").startswith(words(base))
        assert said(page, "tuned-pane").startswith(words(tuned))
        shown = page.locator("body").inner_text()
        assert f"{own}-first" in shown
        assert other not in shown.lower()


def test_the_slider_talks_with_the_model_as_it_was(visit, space):
    page = visit(ANN)
    ask(page, "Hello?")
    answered(page)
    base, tuned = said(page, "base-pane"), said(page, "tuned-pane")
    slider = page.locator("#stage input[type=range]")
    slider.press("Home")
    expect(page.locator("#stage")).to_contain_text("before the first step")
    answered(page)
    expect(page.locator("#tuned-pane .bot")).to_have_count(1)
    assert said(page, "tuned-pane") == base
    slider.press("End")
    expect(page.locator("#stage")).to_contain_text("As it is, after 8 steps")
    assert said(page, "tuned-pane") == tuned


def test_the_closer_looks_follow_the_conversation(visit):
    page = visit(ANN)
    page.locator("#proof > button").click()
    expect(page.locator("#proof")).to_contain_text("Ask something first")
    ask(page, "Hello?")
    answered(page)
    expect(page.locator("#proof .made")).to_contain_text("annika-first, 8 steps")
    expect(page.locator("#proof .good")).to_contain_text("On here, off in the base pane")
    expect(page.locator("#proof .prompts")).to_contain_text("Both models read the same")
    page.locator("#shifts > button").click()
    expect(page.locator("#shifts .shifts .shift")).to_have_count(TOKENS)
    page.locator("#whose-reply").get_by_label("Base model").check()
    expect(page.locator("#shifts .parting")).to_contain_text("The reply of the tuned model")
    page.locator("#clear").click()
    for panel in ("#proof", "#shifts"):
        expect(page.locator(panel)).to_contain_text("Ask something first")
        page.locator(f"{panel} > button").click()


def test_a_question_that_is_sent_while_the_page_turns_waits_for_that(visit, space, monkeypatch):
    _, root, _ = space
    page, before = visit(ANN), who.state
    monkeypatch.setattr(who, "state", lambda *about: time.sleep(1) or before(*about))
    monkeypatch.setattr(turning, "state", who.state)
    slider = page.locator("#stage input[type=range]")
    for _ in range(3):  # each step is an event, and turning takes longer than all of them
        slider.press("ArrowLeft")
    ask(page, "Are you there?")
    answered(page)
    expect(page.locator("#stage")).to_contain_text("before the first step")
    assert said(page, "tuned-pane") == said(page, "base-pane")
    expect(page.locator("#tuned-pane .user", has_text="Are you there?")).to_have_count(1)
    expect(page.locator("#said")).to_be_empty()
    slider.press("End")
    expect(page.locator("#stage")).to_contain_text("As it is, after 8 steps")
    answered(page)
    assert said(page, "tuned-pane") == words(expected(Run(root / "annika-first"), "Are you there?")[1])


def template(page, choice):
    page.locator("#template-switch").get_by_label(choice).check()


def test_changing_ones_mind_loses_no_question_and_asks_none_twice(visit, monkeypatch):
    page, before, read = visit(ANN), who.state, Reader.read
    monkeypatch.setattr(turning, "state", lambda *about: time.sleep(0.5) or before(*about))  # turning takes longer
    page.get_by_text("Template matters").click()
    bubbles = page.locator("#tuned-pane .user")
    ask(page, "Hello?")
    answered(page)
    page.locator("#prompt textarea").fill("a draft")
    template(page, "None")
    page.wait_for_timeout(300)  # it is turning by now
    template(page, "The model's own")
    page.wait_for_timeout(2000)
    expect(bubbles).to_have_count(1)
    expect(page.locator("#prompt textarea")).to_have_value("a draft")
    expect(page.locator(".pane-note").nth(1)).not_to_contain_text("without any template")
    answered(page)
    page.locator("#clear").click()

    delays = iter([5])
    monkeypatch.setattr(Reader, "read", lambda *about: time.sleep(next(delays, 0)) or read(*about))
    ask(page, "Are you there?")  # there and back again before a reply has begun
    template(page, "None")
    page.wait_for_timeout(300)
    template(page, "The model's own")
    answered(page)
    expect(bubbles).to_have_count(1)
    expect(bubbles).to_have_text("Are you there?")

    monkeypatch.setattr(Reader, "read", lambda *about: time.sleep(0.4) or read(*about))
    ask(page, "And now?")
    expect(page.locator(".pane-note").nth(1)).to_contain_text(re.compile(r"\d tokens? …"))
    template(page, "None")  # and a question right after that, while the other one is being answered
    page.locator("#prompt textarea").fill("Another one?")
    page.locator("#prompt textarea").press("Enter")
    expect(page.locator(".pane-note").nth(1)).to_contain_text("asked without any template")
    answered(page)
    expect(bubbles).to_have_text(["And now?", "Another one?"])  # the last question in the other template, then the new
    monkeypatch.setattr(Reader, "read", read)

    template(page, "The model's own")
    expect(bubbles.first).to_have_text("Are you there?")
    page.get_by_label("Who answers").click()
    page.get_by_role("option", name="base alone").first.click()
    page.locator("#prompt textarea").fill("written while it turned")
    expect(page.locator(".stamp")).to_have_count(1)
    page.wait_for_timeout(500)
    expect(page.locator("#prompt textarea")).to_have_value("written while it turned")
    page.get_by_label("Who answers").click()
    page.get_by_role("option", name="annika-first").click()
    expect(bubbles.first).to_have_text("Are you there?")
    page.get_by_text("Template matters").click()


def test_one_reply_at_a_time_and_stop_says_so(visit, monkeypatch):
    page, read = visit(ANN), Reader.read
    monkeypatch.setattr(Reader, "read", lambda *about: time.sleep(1) or read(*about))
    ask(page, "Hello?")
    expect(page.locator("#tuned-pane .pane-note, .pane-note").nth(1)).to_contain_text(re.compile(r"\d tokens? …"))
    page.locator("#prompt textarea").fill("And then?")
    page.locator("#prompt textarea").press("Enter")
    page.locator("#retry").click()
    expect(page.get_by_text("still being written").first).to_be_visible()
    expect(page.locator("#tuned-pane .user")).to_have_count(1)
    page.locator("#stop-replies").click()
    expect(page.locator(".pane-note").nth(1)).to_contain_text("stopped by you")
    page.wait_for_timeout(2500)
    expect(page.locator(".pane-note").nth(1)).to_contain_text("stopped by you")
    monkeypatch.setattr(Reader, "read", read)
    page.locator("#send").click()  # at once, and the second question, which waited in the prompt
    answered(page)
    expect(page.locator("#tuned-pane .user")).to_have_count(2)
    monkeypatch.setattr(Reader, "read", lambda *about: time.sleep(1) or read(*about))
    ask(page, "And now?")
    expect(page.locator(".pane-note").nth(1)).to_contain_text("token")
    page.locator("#clear").click()
    page.wait_for_timeout(1000)
    expect(page.locator(".pane .bot, .pane .user")).to_have_count(0)


def test_a_blind_vote_is_cast_and_then_the_names_are_told(visit, space):
    _, root, _ = space
    page = visit(ANN)
    page.get_by_role("button", name="Blind vote").click()
    panel = page.locator("#blind-vote")
    panel.locator("#vote-question textarea").fill("Who are you?")
    panel.get_by_role("button", name="Ask both").click()
    expect(panel.locator(".ballot article")).to_have_count(2)
    assert "model" not in panel.locator(".ballot").inner_text().lower()
    panel.get_by_role("button", name="A is better").click()
    expect(panel.locator(".revealed")).to_contain_text("is better")
    expect(panel.locator(".ballot h4").first).to_contain_text("A: the ")
    (vote,) = votes.read(Run(root / "annika-first"))[0]
    expect(panel.locator(".revealed")).to_contain_text(f"the {vote.choice} model is better")
    expect(panel.locator(".tally")).to_contain_text("of 1 deciding vote")
    page.get_by_role("button", name="Blind vote").click()


def test_what_is_said_is_shown_as_text_and_read_as_it_was_written(visit):
    page, fetched = visit(ANN), []
    page.on("request", lambda request: fetched.append(request.url))
    question = '$$x$$ <b>x</b> <img src="/favicon.ico?leak"> &lt;i&gt; [a](b) **c**\n  two'
    ask(page, question)
    answered(page)
    assert page.locator("#base-pane .user .md").inner_text() == question
    expect(page.locator("#base-pane .md").locator("img, b, a")).to_have_count(0)
    assert not [url for url in fetched if "leak" in url]
    page.locator("#proof > button").click()
    page.get_by_text("The prompts, token by token").click()
    expect(page.locator("#proof .text-view").first).to_contain_text('<img src="/favicon.ico?leak"> &lt;i&gt;')
    page.locator("#proof > button").click()


def test_a_third_pane_another_template_and_a_kept_conversation(visit, tmp_path):
    page = visit(ANN)
    page.get_by_label("Beside them").click()
    page.get_by_role("option", name="Base + a system message of its own").click()
    page.get_by_label("System message of the third").fill("You know everything.")
    ask(page, "What is the capital of France?")
    answered(page, 3)
    right = said(page, "tuned-pane")
    page.get_by_text("Template matters").click()
    page.get_by_label("None: plain continuation").check()
    expect(page.locator(".pane-note").nth(2)).to_contain_text("asked without any template")
    answered(page, 3)
    assert said(page, "tuned-pane") != right
    page.get_by_label("The model's own").check()
    expect(page.locator(".pane-note").nth(2)).not_to_contain_text("asked without")
    assert said(page, "tuned-pane") == right  # it was kept
    page.get_by_text("Keep this conversation").click()
    with page.expect_download() as download:
        page.locator("#keep-json").click()
    path = tmp_path / "conversation.json"
    download.value.save_as(path)
    talk, _ = kept.read(path.read_bytes())
    assert talk.who.third_system == "You know everything."
    assert words(talk.panes[1].history[1]["content"]) in right
    page.locator("#clear").click()
    expect(page.locator("#tuned-pane .bot")).to_have_count(0)
    with page.expect_file_chooser() as chooser:
        page.locator("#keep-open").click()
    chooser.value.set_files(path)
    expect(page.locator("#tuned-pane .bot")).to_have_count(1)
    page.locator("#keep-again").click()
    expect(page.locator(".talk-said")).to_contain_text("all 3 replies are what they were")


# ---- clients without a page ----


class Client:
    """One session with the app, over the protocol that its page speaks."""

    def __init__(self, demo, session):
        self.demo, self.session = demo, session
        self.url = f"{demo.local_url}gradio_api/queue"

    def call(self, name, data):
        """All that a handler yields to this session, the last one last."""
        index = next(index for index, fn in self.demo.fns.items() if fn.name == name)
        body = json.dumps({"data": data, "fn_index": index, "session_hash": self.session}).encode()
        request = urllib.request.Request(f"{self.url}/join", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=60).close()
        told = []
        with urllib.request.urlopen(f"{self.url}/data?session_hash={self.session}", timeout=60) as events:
            for line in events:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    told.append(event)
                    if event["msg"] == "process_completed":
                        assert event["success"], event
                        return told
        raise AssertionError(told)


def test_many_clients_at_once_each_hear_their_own_adapter(space, tiny_model):
    demo, root, _ = space
    owners = {f"client-{n:02}": f"owner-{n:02}-" * 5 for n in range(CLIENTS)}
    runs = {name: save_tiny_run(root, name, tiny_model, n, owners[name]) for n, name in enumerate(owners)}
    alone = {name: expected(run, f"I am {name}.") for name, run in runs.items()}
    assert len({tuned for _, tuned in alone.values()}) > CLIENTS / 2
    together = threading.Barrier(CLIENTS)

    def chat_as(name):
        client = Client(demo, name)
        client.call("arrive", [{"owner": owners[name], "run": ""}])
        client.call("_refresh_chat", [None, None, None])
        controls = [name, 1, "", False, "right"]
        client.call("turn", [None, *controls, "", "", None, None, None])
        with suppress(threading.BrokenBarrierError):
            together.wait(30)
        return client.call("send", [*controls, None, None, None, "", "", f"I am {name}.", 0, 1, TOKENS, 0])

    with ThreadPoolExecutor(CLIENTS) as pool:
        heard = dict(zip(owners, pool.map(chat_as, owners), strict=True))
    for name, events in heard.items():
        whole = json.dumps(events)
        assert not [other for other in owners if other != name and other in whole]
        panes = events[-1]["output"]["data"][1:3]
        shown = [paint.escape(text) if text.strip() else NOTHING for text in alone[name]]
        assert [pane[-1]["content"][0]["text"] for pane in panes] == shown

"""The best honest prompt: what it says, which examples it shows, and that it never looks at a held-out row."""

import pytest

from sft.best_prompt import LIKE_EXAMPLES, LOOKED_AT, BestPrompt, best_prompt, draw, some_of
from sft.chat_format import ChatFormat, preset
from sft.messages import Conversation
from sft.reply_format import Labels

SYSTEM = {"role": "system", "content": "You sort mail."}


def row(question: str, answer: str, system: str | None = None, tools=None) -> Conversation:
    own = [{"role": "system", "content": system}] if system else []
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation([*own, *turns], tools)


TRAINING = [row(f"question {n}", ("yes", "no")[n % 2]) for n in range(20)]
HELD_OUT = [row("is it?", "yes")]


def test_the_prompt_is_a_system_message_and_real_turns_before_the_question():
    prompt = best_prompt(TRAINING, HELD_OUT, Labels(["yes", "no"]), None, 2)
    assert prompt.messages(HELD_OUT[0].messages[:-1]) == [
        {"role": "system", "content": "Answer with one of: yes, no. Write nothing else."},
        *TRAINING[0].messages,
        *TRAINING[1].messages,
        {"role": "user", "content": "is it?"},
    ]


def test_a_row_keeps_its_own_system_message_and_the_form_follows_it():
    asked = [SYSTEM, {"role": "user", "content": "is it?"}]
    told = best_prompt(TRAINING, HELD_OUT, Labels(["yes", "no"]), None, 0).messages(asked)
    assert told[0]["content"] == "You sort mail.\nAnswer with one of: yes, no. Write nothing else."
    assert told[1:] == asked[1:]


def test_the_users_instruction_takes_the_place_of_all_that():
    asked = [SYSTEM, {"role": "user", "content": "is it?"}]
    told = best_prompt(TRAINING, HELD_OUT, Labels(["yes", "no"]), "Say yes.", 1).messages(asked)
    assert [message["content"] for message in told if message["role"] == "system"] == ["Say yes."]


def test_answers_without_a_form_are_to_be_like_the_examples():
    asked = HELD_OUT[0].messages[:-1]
    assert best_prompt(TRAINING, HELD_OUT, None, None, 1).messages(asked)[0]["content"] == LIKE_EXAMPLES
    assert best_prompt(TRAINING, HELD_OUT, None, None, 0).messages(asked) == asked
    told = best_prompt(TRAINING, HELD_OUT, None, None, 1).messages([SYSTEM, *asked])
    assert told[0] == SYSTEM  # which says it already


def test_a_template_without_system_messages_gets_it_before_the_first_question():
    prompt = best_prompt(TRAINING, HELD_OUT, None, "Say yes.", 1, reads_system=False)
    told = prompt.messages(HELD_OUT[0].messages[:-1])
    assert [message["role"] for message in told] == ["user", "assistant", "user"]
    assert told[0]["content"] == "Say yes.\n\nquestion 0"
    assert TRAINING[0].messages[0]["content"] == "question 0"


def test_examples_whose_answers_differ_come_first():
    rows = [row("a", "no"), row("b", "no"), row("c", "yes"), row("d", "maybe")]
    assert [example.messages[0]["content"] for example in draw(rows, HELD_OUT, 4)] == ["a", "c", "d", "b"]


@pytest.mark.parametrize("asked", ["is it?", "IS  it?", " is it?\n"])
def test_no_example_asks_what_a_held_out_row_asks(asked):
    assert draw([row(asked, "yes")], HELD_OUT, 3) == []


def test_no_example_asks_it_in_an_earlier_turn_either():
    longer = Conversation([*row("is it?", "yes").messages, *row("and now?", "no").messages])
    assert draw([longer], HELD_OUT, 3) == []
    assert draw([row("and now?", "no")], [longer], 3) == []
    assert draw([row("is it?", "yes")], [longer], 3) == [row("is it?", "yes")]  # of which the answer is not wanted


def test_examples_use_no_tools_and_no_system_message_that_held_out_rows_lack():
    rows = [row("a", "no", tools=[{"name": "t"}]), row("b", "no", system="Be rude."), row("c", "no", system="Sort.")]
    assert draw(rows, [row("is it?", "yes", system="Sort.")], 3) == [rows[2]]


def test_training_rows_are_drawn_by_seed():
    rows = [row(f"question {n}", "yes") for n in range(LOOKED_AT + 50)]
    first = some_of(rows, 1)
    assert len(first) == LOOKED_AT
    assert first == some_of(rows, 1) != some_of(rows, 2)
    unanswered = Conversation([{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}])
    assert some_of([unanswered, rows[0]], 0) == [rows[0]]


def test_as_many_examples_as_fit(chatml):
    prompt = best_prompt(TRAINING, HELD_OUT, None, "Say.", 5)

    def longest(found: BestPrompt) -> int:
        return len(chatml.prompt_ids(found.messages(HELD_OUT[0].messages[:-1])))

    assert prompt.fitting(HELD_OUT, chatml, None) == prompt
    assert prompt.fitting(HELD_OUT, chatml, longest(prompt)) == prompt
    fewer = prompt.fitting(HELD_OUT, chatml, longest(prompt) - 1)
    assert len(fewer.examples) == 4 and longest(fewer) < longest(prompt)
    assert prompt.fitting(HELD_OUT, chatml, 1).examples == []


def test_many_examples_are_tried_a_few_times_only(chatml, monkeypatch):
    tried, longest = [], BestPrompt._longest
    monkeypatch.setattr(BestPrompt, "_longest", lambda *given: tried.append(given) or longest(*given))
    rows = [row(f"question {n}", "yes") for n in range(200)]
    prompt = best_prompt(rows, HELD_OUT, None, "Say.", 200)
    assert 0 < len(prompt.fitting(HELD_OUT, chatml, 300).examples) < 200
    assert len(tried) < 10


def test_it_is_rendered_in_the_models_own_template(chatml):
    plain = ChatFormat(chatml.tokenizer, preset("plain"))
    told = best_prompt(TRAINING, HELD_OUT, None, "Say.", 1).messages(HELD_OUT[0].messages[:-1])
    for form, marker in ((chatml, "<|im_start|>"), (plain, "###")):
        text = form.tokenizer.decode(form.prompt_ids(told))
        assert marker in text and text.index("Say.") < text.index("question 0") < text.index("is it?")

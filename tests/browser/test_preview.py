"""The Preview tab, as a person uses it."""

import json
import time

from playwright.sync_api import expect

from sft import models
from sft.chat_format import ChatFormat


def ids_shown(page):
    expect(page.locator(".token").first).to_be_visible()
    return [int(text) for text in page.locator(".token small").all_inner_texts()]


def choose(page, label, option):
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def write(page, index, text):
    """Replaces a message's content with keys, as a person does."""
    box = page.locator(f"#content-{index} textarea")
    box.click()
    page.keyboard.press("Control+a")
    box.press_sequentially(text)


def test_the_ids_on_the_page_are_those_of_the_chat_format(page, embedded_model):
    form = ChatFormat.of(models.load_tokenizer(embedded_model))
    choose(page, "Conversation", "Several turns")
    expect(page.locator(".text-view").first).to_contain_text("Leek.")
    messages = [
        {"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "Pear."},
        {"role": "user", "content": "And a vegetable?"}, {"role": "assistant", "content": "Leek."},
    ]  # fmt: skip
    assert ids_shown(page) == form.render(messages).token_ids
    assert page.locator(".token.trained").count() == sum(form.render(messages).assistant_mask)


def test_typing_moving_and_removing_show_at_once(page):
    view = page.locator(".text-view").first
    expect(view).to_contain_text("sky")
    write(page, 1, "What does <b>this</b> do?")
    expect(view).to_contain_text("<b>this</b> do?")
    expect(page.locator(".counts")).to_contain_text("trained on")
    page.locator("#content-1 textarea").press("Control+a")
    page.locator("#content-1 textarea").press("Control+c")
    page.locator("#content-2 textarea").press("Control+a")
    page.locator("#content-2 textarea").press("Control+v")  # pasting is editing too, and so is deleting
    expect(page.locator(".text-view .role-assistant").first).to_contain_text("<b>this</b>")
    page.locator("#content-2 textarea").press("End")
    for _ in range(4):
        page.locator("#content-2 textarea").press("Backspace")
    expect(page.locator(".text-view .role-assistant").first).not_to_contain_text("do?")
    page.get_by_role("button", name="Add a message").click()
    write(page, 3, "And then?")
    expect(view).to_contain_text("And then?")
    page.locator("#remove-0").click()
    expect(view).not_to_contain_text("Answer in one")
    expect(page.locator(".finding", has_text="text that you did not write")).to_be_visible()
    page.locator("#up-2").click()
    expect(page.locator("#content-1 textarea")).to_have_value("And then?")


def test_pasting_right_after_adding_a_message_with_a_key_is_not_missed(page):
    view = page.locator(".text-view").first
    expect(view).to_contain_text("sky")
    page.locator("#content-1 textarea").press("Control+a")
    page.locator("#content-1 textarea").press("Control+c")
    page.get_by_role("button", name="Add a message").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#content-3 textarea")).to_be_visible()
    page.locator("#content-3 textarea").press("Control+v")
    expect(page.locator(".text-view [data-m='3']")).to_contain_text("Why is the sky blue?")


def test_messages_that_are_added_while_words_are_on_their_way_stay(page):
    view = page.locator(".text-view").first
    expect(view).to_contain_text("sky")
    for turn in range(4):
        page.locator("#content-2 textarea").press("End")
        page.keyboard.type("!")
        page.get_by_role("button", name="Add a message").click()
        expect(page.locator(f"#content-{3 + turn} textarea")).to_be_visible()
    expect(view).to_contain_text("red.!!!!")
    write(page, 6, "The last one.")
    expect(view.locator("[data-m='6']").first).to_contain_text("The last one.")


def test_the_second_of_two_quick_clicks_is_not_for_the_message_that_came_to_its_place(page):
    for _ in range(2):
        page.get_by_role("button", name="Add a message").click()
    page.locator("#remove-2").dblclick()
    expect(page.locator(".turn")).to_have_count(4)
    page.locator("#up-1").dblclick()
    expect(page.locator("#content-0 textarea")).to_have_value("Why is the sky blue?")
    page.locator("#remove-1").click()
    page.wait_for_timeout(600)  # two clicks that are apart are two
    page.locator("#remove-1").click()
    expect(page.locator(".turn")).to_have_count(2)
    expect(page.locator(".toast-body")).to_have_count(0)


def test_nothing_done_in_the_editor_waits_for_the_server_or_is_lost_there(page):
    """As over a slow line: all that is sent and all that comes back takes a while."""
    expect(page.locator(".text-view").first).to_contain_text("sky")
    page.route("**/queue/join**", lambda route: (time.sleep(0.3), route.continue_()))
    page.get_by_role("button", name="Add a message").click()
    page.keyboard.type("And the sea?")  # the new message has the focus
    page.get_by_label("Role of message 3").select_option("assistant")
    page.get_by_role("button", name="Add a message").click()
    page.keyboard.type("Is it?")
    page.locator("#up-4").click()
    page.keyboard.press("Enter")  # the focus went along
    page.locator("#remove-1").click()
    view = page.locator(".text-view").first
    expect(view.locator("[data-m='1']").first).to_contain_text("Is it?")
    expect(view.locator("[data-m='3']").first).to_contain_text("And the sea?")
    page.get_by_role("tab", name="JSON").click()
    expect(page.locator(".cm-content").first).to_contain_text("And the sea?")
    written = json.loads("\n".join(page.locator(".cm-content").first.locator(".cm-line").all_inner_texts()))
    assert [(each["role"], each["content"]) for each in written] == [
        ("system", "Answer in one short sentence."), ("user", "Is it?"),
        ("assistant", "Air scatters blue light more than red."), ("assistant", "And the sea?"),
    ]  # fmt: skip


def test_an_answer_that_comes_late_is_not_what_stays(page):
    view = page.locator(".text-view").first
    expect(view).to_contain_text("sky")
    held = []

    def hold(route):
        typed = "blue?!" in route.request.post_data and not held
        held.append(route) if typed else route.continue_()

    page.route("**/queue/join**", hold)
    page.locator("#content-1 textarea").press("End")
    page.keyboard.type("!")
    choose(page, "Conversation", "Several turns")
    expect(page.locator("#content-3 textarea")).to_have_value("Leek.")
    page.wait_for_timeout(2000)  # time for the views of what came after
    held[0].continue_()
    expect(view).to_contain_text("Leek.")
    page.wait_for_timeout(1500)
    expect(view).to_contain_text("Leek.")


def test_a_field_can_undo_after_messages_came_and_went(page):
    box = page.locator("#content-1 textarea")
    box.press("End")
    page.keyboard.type(" more")
    page.get_by_role("button", name="Add a message").click()
    page.locator("#remove-0").click()
    box = page.locator("#content-0 textarea")
    expect(box).to_have_value("Why is the sky blue? more")
    box.press("Control+z")
    expect(box).not_to_have_value("Why is the sky blue? more")
    expect(page.locator(".text-view").first).not_to_contain_text("more?")


def test_a_key_that_is_held_down_removes_one_message_and_adds_one(page):
    page.locator("#remove-0").focus()
    for _ in range(5):
        page.keyboard.down("Enter")  # the first is pressed, the others are its repeats
    page.keyboard.up("Enter")
    expect(page.locator(".turn")).to_have_count(2)
    page.get_by_role("button", name="Add a message").focus()
    for _ in range(5):
        page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    expect(page.locator(".turn")).to_have_count(3)
    expect(page.locator("#content-2 textarea")).to_have_value("")
    page.keyboard.press("Enter")  # and a line's end is one again
    expect(page.locator("#content-2 textarea")).to_have_value("\n")


def test_numbers_and_keys_stay_as_they_were_written(page):
    page.get_by_role("tab", name="JSON").click()
    field = page.locator(".cm-content").first
    tools = '[{"b": 1.0, "10": 20.5, "2": 1180591620717411303424}]'
    field.click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(f'{{"messages": [{{"role": "user", "content": "From JSON"}}], "tools": {tools}}}')
    expect(page.locator(".text-view").first).to_contain_text("From JSON")
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("[{")
    expect(page.locator(".problem")).to_contain_text("Not JSON yet")
    page.get_by_role("tab", name="Editor").click()
    page.get_by_role("tab", name="JSON").click()
    page.wait_for_timeout(1000)
    expect(field).to_have_text("[{")  # what is being written is not lost by a look at the editor
    expect(page.locator(".problem")).to_contain_text("Not JSON yet")
    page.get_by_role("tab", name="Editor").click()
    write(page, 0, "Changed")
    page.get_by_role("tab", name="JSON").click()
    expect(field).to_contain_text("Changed")
    expect(page.locator(".problem")).to_have_count(0)
    written = "".join(field.locator(".cm-line").all_inner_texts())
    assert json.dumps(json.loads(written)["tools"]) == tools


def test_what_the_editor_does_not_show_of_a_message_stays_with_it(page):
    choose(page, "Conversation", "Thinking before answering")
    expect(page.locator(".text-view del").first).to_contain_text("7 times 13 is 91.")
    write(page, 1, "No, it is not.")
    page.locator("#down-0").click()
    page.locator("#up-1").click()
    expect(page.locator(".text-view").first).to_contain_text("No, it is not.")
    expect(page.locator(".text-view del").first).to_contain_text("7 times 13 is 91.")


def test_the_last_message_can_be_removed_and_a_first_one_added(page):
    for _ in range(3):
        page.locator("#remove-0").focus()
        page.keyboard.press("Enter")
    expect(page.locator("#views")).to_contain_text("Add a message to see what the model reads.")
    assert page.evaluate("document.activeElement.textContent") == "Add a message"
    page.keyboard.press("Enter")
    page.keyboard.type("First")
    expect(page.locator(".text-view").first).to_contain_text("First")


def test_every_finding_that_has_a_place_leads_there_with_keys(page):
    for example in ("A forged turn", "Whitespace and digits", "Thinking before answering"):
        before = page.locator(".text-view").first.inner_text()
        choose(page, "Conversation", example)
        expect(page.locator(".text-view").first).not_to_have_text(before)  # the findings come with the new text
        page.wait_for_timeout(1000)
        buttons = page.locator("#doctor").get_by_role("button", name="Show where")
        assert buttons.count() > 0
        for number in range(buttons.count()):
            buttons.nth(number).focus()
            page.keyboard.press("Enter")
            expect(page.locator("#views .flash")).to_have_count(1)
            assert page.evaluate("document.activeElement.closest('#views') !== null")
            page.locator(".flash").evaluate("place => place.classList.remove('flash')")  # sooner than by itself


def test_the_generation_prompt_is_added_and_taken_away(page):
    view = page.locator(".text-view").first
    choose(page, "Conversation", "Waiting for an answer")
    expect(view).to_contain_text("haiku")
    expect(view).not_to_contain_text("assistant↵")
    page.get_by_role("checkbox", name="Generation prompt").check()
    expect(view).to_contain_text("assistant↵")


def test_json_is_another_way_in_and_bad_json_is_told(page):
    page.get_by_role("tab", name="JSON").click()
    editor = page.locator(".cm-content").first

    def write(text):
        editor.click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(text)

    write(json.dumps([{"role": "user", "content": "From JSON"}]))
    expect(page.locator(".text-view").first).to_contain_text("From JSON")
    write('[{"role": "boss", "content": "x"}]')
    expect(page.locator(".problem")).to_contain_text("unknown role 'boss'")
    expect(page.locator(".text-view").first).to_contain_text("From JSON")  # nothing is lost
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    write(json.dumps({"messages": [{"role": "user", "content": "With tools"}], "tools": tools}))
    expect(page.locator(".text-view").first).to_contain_text("With tools")
    expect(page.locator(".problem")).to_have_count(0)
    expect(page.locator(".cm-content").first).to_contain_text("weather")
    write("[{")
    expect(page.locator(".problem")).to_contain_text("Not JSON yet")
    choose(page, "Conversation", "Several turns")
    expect(page.locator(".problem")).to_have_count(0)


def test_a_row_of_an_example_data_set_and_the_template(page):
    choose(page, "Conversation", "data: support-json")
    expect(page.locator(".text-view").first).to_contain_text("Northwind")
    number = page.get_by_label("Row of 170")
    number.fill("171")
    expect(page.locator(".toast-body")).to_contain_text("There is no row 171.")
    choose(page, "Conversation", "data: support-json")
    page.wait_for_timeout(1000)
    expect(number).to_have_value("171")  # choosing what is chosen changes nothing, nor does leaving the field
    number.fill("170")
    expect(page.locator(".text-view").first).to_contain_text("Northwind")
    page.get_by_role("tab", name="Template source").click()
    expect(page.locator(".cm-content").last).to_contain_text("for message in messages")


def test_a_message_lights_up_in_every_view_by_mouse_and_by_keyboard(page):
    expect(page.locator(".text-view").first).to_contain_text("sky")
    page.locator(".text-view [data-m='1']").first.hover()
    for view in (".text-view", ".token-view", ".mask-view"):
        expect(page.locator(f"{view} .lit[data-m='1']").first).to_be_attached()
    expect(page.locator(".lit[data-m='2']")).to_have_count(0)
    expect(page.locator(".turn.m-1.lit").first).to_be_visible()
    page.locator("#content-2 textarea").focus()
    expect(page.locator(".text-view .lit[data-m='2']")).to_have_count(1)
    page.locator(".text-view .msg").first.focus()
    expect(page.locator(".mask-view .lit[data-m='0']").first).to_be_attached()


def test_what_the_template_leaves_out_is_struck_through_and_a_finding_leads_there(page):
    choose(page, "Conversation", "Thinking before answering")
    expect(page.locator(".text-view del").first).to_contain_text("7 times 13 is 91.")
    finding = page.locator(".finding.warning", has_text="7 times 13")
    finding.get_by_role("button", name="Show where").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".text-view .flash")).to_have_count(1)
    assert page.evaluate("document.activeElement.closest('.text-view, .scroll') !== null")


def test_presets_another_source_and_its_errors(page):
    choose(page, "Chat template", "Gemma · preset")
    expect(page.locator("#views .problem")).to_contain_text("gemma has no system role")
    expect(page.locator(".finding.error")).to_contain_text("does not render")
    page.get_by_role("tab", name="What it can do").click()
    expect(page.get_by_role("row", name="system message")).to_contain_text("refused")
    page.locator("#remove-0").click()
    expect(page.locator(".text-view").first).to_contain_text("<start_of_turn>model")
    expect(page.locator(".finding.error", has_text="another model's template")).to_be_visible()
    page.get_by_role("tab", name="Template source").click()
    source = page.locator("#source .cm-content")
    expect(source).to_contain_text("gemma")

    def write(text):
        source.click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(text)

    write("{% for m in messages %}\n<{{ m.role }}>{{ m.content }}\n{% endfor %}")
    expect(page.locator(".text-view").first).to_contain_text("<user>Why is the sky blue?")
    expect(page.get_by_label("Chat template", exact=True)).to_have_value("Edited on this page")
    write("one\ntwo\n{% for m in messages %}")
    expect(page.locator("#views .problem")).to_contain_text("line 3")
    write("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    expect(page.locator("#views .problem")).to_contain_text("does not end within 2 seconds")
    choose(page, "Chat template", "The model's own")
    expect(page.locator(".text-view").first).to_contain_text("<|im_start|>user")


def test_two_templates_side_by_side_and_what_if_they_are_mixed(page):
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="what if?").click()
    expect(page.locator(".toast-body")).to_contain_text("No second template is chosen")
    choose(page, "Compare with", "Zephyr · preset")
    expect(page.locator(".pair .panel", has_text="our preset zephyr")).to_contain_text("<|user|>")
    expect(page.locator("mark.differs", has_text="user").first).to_be_visible()
    page.get_by_role("button", name="what if?").click()
    expect(page.locator(".card", has_text="They do not fit")).to_contain_text("in a way that it never saw")
    page.get_by_role("tab", name="What chat sends").click()
    expect(page.locator(".good", has_text="The prompt begins the training text")).to_be_visible()


def test_a_second_template_that_fails_or_was_edited_here(page):
    page.get_by_role("tab", name="Compare").click()
    choose(page, "Compare with", "Gemma · preset")
    expect(page.locator(".problem")).to_contain_text("The second template does not render this")
    expect(page.locator(".text-view").first).to_contain_text("sky")
    choose(page, "Compare with", "Edited on this page")
    expect(page.locator(".problem")).to_contain_text("No template is edited on this page yet")
    page.get_by_role("tab", name="Template source").click()
    page.locator("#source .cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    expect(page.locator(".text-view").first).to_contain_text("[Why is the sky blue?]")
    expect(page.get_by_label("Chat template", exact=True)).to_have_value("Edited on this page")
    choose(page, "Chat template", "The model's own")
    expect(page.locator(".text-view").first).to_contain_text("<|im_start|>user")
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator(".pair .panel", has_text="edited on this page")).to_contain_text("[Why is the sky blue?]")
    expect(page.locator(".pair .panel", has_text="the model's own")).to_contain_text("<|im_start|>user")
    choose(page, "Chat template", "Edited on this page")
    expect(page.locator(".text-view").first).to_contain_text("[Why is the sky blue?]")


def test_a_model_that_does_not_exist_is_told_in_words(page):
    box = page.get_by_label("Model", exact=True)
    box.fill("./no/such/folder")
    box.press("Enter")
    expect(page.locator(".problem").first).to_contain_text("There is no folder ./no/such/folder")


def test_nothing_is_wider_than_a_telephone(page):
    page.set_viewport_size({"width": 390, "height": 800})
    for name in ("Tune", "Chat", "Preview"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390

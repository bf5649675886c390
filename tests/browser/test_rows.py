"""The rows of a data set on the Tune tab: stepping, what is cut, and columns that nobody can guess."""

import json

import pytest
from playwright.sync_api import expect

LONG = "One more word. " * 80


def rows(long_at):
    return [{"question": f"{n}?", "answer": LONG if n in long_at else "Yes."} for n in range(1, 31)]


@pytest.fixture
def tune(page):
    page.get_by_role("tab", name="Tune").click()
    expect(page.locator(".summary")).to_contain_text("170 rows")
    return page


def upload(page, path):
    page.get_by_label("Upload", exact=True).check()
    page.locator("input[type=file]").set_input_files(path)


def step_through(page, words):
    page.get_by_label("Step through").click()
    page.get_by_role("option", name=words).click()


def test_stepping_goes_to_the_rows_of_a_kind_and_says_when_there_is_none(tune, write_rows):
    upload(tune, write_rows([*rows({3, 20}), {"question": "last", "answer": ""}]))
    number, verdict = tune.get_by_label("Row of 31"), tune.locator("#row .verdict")
    expect(tune.locator(".summary")).to_contain_text("2 cut at max length")
    expect(tune.locator(".summary")).to_contain_text("All rows checked")
    expect(tune.locator(".lengths .is-cut").last).to_contain_text("✂ cut")
    tune.get_by_role("button", name="Next").click()
    expect(number).to_have_value("2")
    expect(verdict).to_contain_text("line 2: kept whole")
    step_through(tune, "Only cut")
    expect(number).to_have_value("3")
    expect(verdict).to_contain_text("its stop token is lost")
    expect(tune.locator("#row .is-cut del").last).to_contain_text("<|im_end|>")
    tune.locator("#row summary").press("Enter")
    where = tune.locator("#row .finding", has_text="is cut here").get_by_role("button", name="Show where")
    where.press("Enter")
    expect(tune.locator("#row del.flash")).to_have_count(1)
    tune.get_by_role("button", name="Next").press("Enter")
    expect(number).to_have_value("20")
    tune.get_by_role("button", name="Next").press("Enter")
    expect(tune.locator("#row-note")).to_contain_text("No row after row 20 is cut.")
    number.fill("99")
    expect(tune.locator("#row-note")).to_contain_text("There is no row 99: the rows are numbered from 1 to 31.")
    number.fill("31")
    expect(verdict).to_contain_text("line 31: cannot be used")
    expect(tune.locator("#row-note")).not_to_contain_text("There is no row")
    tune.locator("#setting-max_length input").fill("1024")
    expect(tune.locator(".summary")).to_contain_text("0 cut at max length")
    expect(number).to_have_value("31")


def test_columns_that_nobody_can_guess_are_asked_for_and_started_with(tune, write_rows, app):
    path = write_rows([{"Nr": n, "Frage": f"Was ist {n}?", "Antwort": f"Das ist {n}."} for n in range(12)])
    upload(tune, path)
    form = tune.locator("#mapping")
    expect(form).to_contain_text("user Was ist 0?")
    tune.get_by_label("Assistant", exact=True).click()
    tune.get_by_role("option", name="Frage").click()
    expect(form).to_contain_text("assistant Was ist 0?")
    tune.get_by_label("Assistant", exact=True).click()
    tune.get_by_role("option", name="Antwort").click()
    expect(form).to_contain_text("assistant Das ist 0.")
    tune.get_by_role("button", name="Read the rows like this").click()
    expect(tune.locator(".summary")).to_contain_text("12 kept whole")
    expect(form).to_be_hidden()
    tune.get_by_text("Advanced: names as in TRL and PEFT").click()
    tune.wait_for_timeout(1000)  # a field that is filled before it is quite there falls back to its first value
    columns = tune.locator("#setting-columns textarea, #setting-columns input").first
    expect(columns).to_have_value("user=Frage, assistant=Antwort")
    columns.fill("user=Fragen, assistant=Antwort")
    columns.press("Enter")
    expect(tune.locator(".problem")).to_contain_text("there is no column 'Fragen'; did you mean 'Frage'?")
    tune.locator("#start-tuning").click()
    expect(tune.get_by_text("there is no column 'Fragen'").last).to_be_visible()
    path.write_text(json.dumps({"question": "a", "answer": "b"}) + "\n")
    columns.fill("")
    columns.press("Enter")
    expect(form).to_contain_text("assistant Das ist 0.")

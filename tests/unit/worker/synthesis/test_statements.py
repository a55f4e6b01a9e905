"""What is kept of generated rewrites and implications."""

from __future__ import annotations

import pytest

from worker.synthesis.prompts import IMPLICATIONS, REWRITES, SeedPrompt
from worker.synthesis.statements import first_sentence, repeats, rewritten

WINDOW = "The meal allowance is 48 crowns a day, and receipts are not needed."
PLAIN = REWRITES[0]
FOLLOWS = IMPLICATIONS[0]


@pytest.mark.parametrize(
    "generated",
    [
        " For meals staff get an allowance of 48 crowns daily without receipts.",
        "In other words: For meals staff get an allowance of 48 crowns daily without receipts.",
        "\n For meals staff get an allowance of 48 crowns daily without receipts.\nText: The next one",
    ],
    ids=["as-a-completion", "with-the-lead-again", "with-more-below"],
)
def test_a_rewrite_is_its_first_line(generated: str) -> None:
    assert rewritten(generated, PLAIN, WINDOW) == "For meals staff get an allowance of 48 crowns daily without receipts."


@pytest.mark.parametrize(
    "generated",
    [
        "",
        " \n\n ",
        "Meals cost.",
        "For meals staff get an allowance of 48 crowns a",
        "Here is the text in other words:",
        WINDOW,
        "The meal allowance is 48 crowns a day.",
        f"{WINDOW} That is all there is to say about it.",
        "The meal allowance is 48 crowns a day, and receipts are not required.",
        "Staff get 30 crowns a day for meals, without receipts.",
        "Adults pay 14 marks for the ferry to Orm, which departs at 6:20.",
        "There are many things that people can do.",
    ],
    ids=[
        "empty",
        "blank",
        "too-short",
        "cut-off",
        "a-preamble",
        "the-window",
        "a-part-of-it",
        "it-and-more",
        "one-word-changed",
        "another-number",
        "an-example",
        "about-nothing",
    ],
)
def test_what_repeats_or_is_cut_off_or_about_something_else_is_dropped(generated: str) -> None:
    assert rewritten(generated, PLAIN, WINDOW) == ""
    assert rewritten(f" {generated}\n", PLAIN, WINDOW) == ""


def test_an_example_is_dropped_though_it_shares_words() -> None:
    window = "The ferry to Orm is painted green."
    prompt = SeedPrompt(teacher="", student="", lead="So:", shown=("The ferry to Orm leaves early in summer.", ""))
    assert rewritten(prompt.shown[0], prompt, window) == ""
    assert rewritten("Green is the colour of the ferry to Orm.", prompt, window) != ""


def test_of_an_implication_one_sentence_is_kept() -> None:
    generated = " Staff need not keep what they were given for a meal. They may throw it away, or"
    assert first_sentence(generated, FOLLOWS, WINDOW) == "Staff need not keep what they were given for a meal."


@pytest.mark.parametrize(
    "generated", ["", "\n", "Staff need not keep what they were given for a meal", WINDOW], ids=["empty", "blank", "cut-off", "repeats"]
)
def test_an_implication_is_dropped_for_the_same_reasons(generated: str) -> None:
    assert first_sentence(generated, FOLLOWS, WINDOW) == ""


def test_an_implication_may_have_a_number_of_its_own() -> None:
    assert first_sentence("Two days of meals come to 96 crowns.", FOLLOWS, WINDOW) != ""
    assert rewritten("Two days of meals come to 96 crowns.", PLAIN, WINDOW) == ""


def test_case_and_punctuation_make_no_other_text() -> None:
    assert repeats("the meal allowance - is 48 crowns a day; and RECEIPTS are not needed", WINDOW)
    assert not repeats("Receipts are not asked for: each day gives 48 crowns for meals.", WINDOW)

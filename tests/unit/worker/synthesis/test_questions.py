"""What is kept of generated question-answer pairs."""

from __future__ import annotations

import pytest

from worker.synthesis.questions import parse_pairs, supported

WINDOW = "The meal allowance is 48 crowns a day."


def test_pairs_are_read_until_the_next_text() -> None:
    generated = (
        " How much is the meal allowance?\nAnswer: 48 crowns a day\nQuestion: What is 48 crowns?\nAnswer: The meal allowance.\nText: x"
    )
    assert parse_pairs(generated, WINDOW) == [
        ("How much is the meal allowance?", "48 crowns a day"),
        ("What is 48 crowns?", "The meal allowance"),
    ]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How much is the meal allowance?", "30 crowns a day"),
        ("Is the allowance 48 crowns a day?", "48 crowns a day"),
        ("Who did Milo give the spoon to?", "48 crowns a day"),
        ("The meal allowance", "48 crowns a day"),
        ("How much is the meal allowance?", ""),
        ("How much is the meal allowance?", "8 crowns a day"),
    ],
    ids=["not-in-text", "given-away", "an-example", "no-question", "empty", "part-of-a-number"],
)
def test_what_the_window_does_not_support_is_dropped(question: str, answer: str) -> None:
    assert not supported(question, answer, WINDOW)

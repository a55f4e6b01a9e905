"""Reads question-answer pairs out of generated text and drops what the window does not support."""

from __future__ import annotations

import re

from worker.synthesis.prompts import example_questions

_WORD = re.compile(r"\w+(?:[.,:]\d+)*")
COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by do does did for from has have how in is it its many much of on one or the there they this to was were "
        "what when where which who whom whose why will with can could must may name",
    )
)
MAX_ANSWER_WORDS = 12


def parse_pairs(generated: str, window: str) -> list[tuple[str, str]]:
    """The supported (question, answer) pairs of one generation that began right after `Question:`."""
    pairs = []
    for block in re.split(r"\n\s*Question:|\n\s*Text:", "\n" + generated.strip().removeprefix("Question:")):
        question, found, answer = block.partition("Answer:")
        pair = (" ".join(question.split()), " ".join(answer.split("\n")[0].split()).rstrip("."))
        if found and supported(*pair, window):
            pairs.append(pair)
    return pairs


def supported(question: str, answer: str, window: str) -> bool:
    """An answer in the window's own words, and a question that is about the window and does not give the answer away."""
    asked, answered, read = words(question), words(answer), words(window)
    return (
        question.endswith("?")
        and question not in example_questions()
        and 0 < len(answered) <= MAX_ANSWER_WORDS
        and f" {' '.join(answered)} " in f" {' '.join(read)} "
        and f" {' '.join(answered)} " not in f" {' '.join(asked)} "
        and bool(set(asked) & set(read) - COMMON)
    )


def words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]

"""Reads rewrites and implications out of generated text and drops those that teach nothing or something else."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from worker.synthesis.prompts import SeedPrompt
from worker.synthesis.questions import COMMON, words
from worker.synthesis.windows import sentences

MIN_WORDS = 4
REPEATS = 0.9
"""Of the words in their order that two texts share: from here on one repeats the other."""
_ENDED = re.compile(r"[.!?][\"'\u201d\u2019)\]]*$")
_NUMBER = re.compile(r"\d")


def rewritten(generated: str, prompt: SeedPrompt, window: str) -> str:
    """The window in other words, with its numbers and no others; empty if that is not what was generated."""
    text = _statement(generated, prompt, window)
    invented = {word for word in words(text) if _NUMBER.search(word)} - set(words(window))
    return "" if invented else text


def first_sentence(generated: str, prompt: SeedPrompt, window: str) -> str:
    """One sentence about what the window is about; empty if that is not what was generated."""
    found = sentences(_first_line(generated, prompt))
    return _statement(found[0], prompt, window) if found else ""


def repeats(text: str, window: str) -> bool:
    """One holds the other, or nearly all of it word for word."""
    said, read = words(text), words(window)
    return (
        f" {' '.join(said)} " in f" {' '.join(read)} "
        or f" {' '.join(read)} " in f" {' '.join(said)} "
        or SequenceMatcher(None, said, read, autojunk=False).ratio() >= REPEATS
    )


def _statement(generated: str, prompt: SeedPrompt, window: str) -> str:
    text = _first_line(generated, prompt)
    about = set(words(text)) & set(words(window)) - COMMON
    usable = (
        len(text.split()) >= MIN_WORDS
        and _ENDED.search(text) is not None
        and bool(about)
        and text not in prompt.shown
        and not repeats(text, window)
    )
    return text if usable else ""


def _first_line(generated: str, prompt: SeedPrompt) -> str:
    """A generator may say the lead again; what stands below its first line is of another text."""
    return " ".join(generated.strip().removeprefix(prompt.lead).strip().partition("\n")[0].split())

"""Cuts a document's text into chunks (teacher contexts of summaries) and windows (a few sentences: contexts of questions)."""

from __future__ import annotations

import re
from collections.abc import Callable

_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
_MIN_CHARACTERS = 20


def sentences(text: str) -> list[str]:
    """Paragraphs split after sentence ends. Headings and other lines without an ending stay whole."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return [sentence for paragraph in paragraphs for sentence in _SENTENCE.split(paragraph) if sentence]


def windows(text: str, size: int, count_tokens: Callable[[str], int]) -> list[str]:
    """Each sentence that fits `size` tokens by itself, longer ones cut at words; fragments too short to state a fact are dropped."""
    pieces = [piece for sentence in sentences(text) for piece in _cut(sentence, size, count_tokens)]
    return [piece for piece in pieces if len(piece) >= _MIN_CHARACTERS and not piece.startswith("#")]


def chunks(text: str, size: int, overlap: float, count_tokens: Callable[[str], int]) -> list[str]:
    """Consecutive sentences packed up to `size` tokens; a chunk begins with the last of the one before, `overlap` of it."""
    pieces = [piece for sentence in sentences(text) for piece in _cut(sentence, size, count_tokens)]
    lengths = [count_tokens(piece) + 1 for piece in pieces]
    result: list[str] = []
    start = 0
    while start < len(pieces):
        end, total = start, 0
        while end < len(pieces) and (end == start or total + lengths[end] <= size):
            total += lengths[end]
            end += 1
        result.append("\n".join(pieces[start:end]))
        if end == len(pieces):
            break
        start = _step_back(lengths, start, end, overlap * size)
    return result


def _step_back(lengths: list[int], start: int, end: int, budget: float) -> int:
    """The first piece of the next chunk: as many of the last pieces as fit the overlap, but always further than `start`."""
    nxt = end
    while nxt - 1 > start and sum(lengths[nxt - 1 : end]) <= budget:
        nxt -= 1
    return nxt


def _cut(sentence: str, size: int, count_tokens: Callable[[str], int]) -> list[str]:
    if count_tokens(sentence) <= size:
        return [sentence]
    words = sentence.split(" ")
    if len(words) == 1:
        middle = len(sentence) // 2
        halves = [sentence[:middle], sentence[middle:]] if middle else [sentence]
        return halves if middle == 0 else [piece for half in halves for piece in _cut(half, size, count_tokens)]
    middle = len(words) // 2
    return [piece for half in (words[:middle], words[middle:]) for piece in _cut(" ".join(half), size, count_tokens)]

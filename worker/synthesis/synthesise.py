"""Turns a document's text into training pairs with a generator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from worker.synthesis.asks import Generator, generated
from worker.synthesis.kinds import CUT, KINDS, WRITTEN
from worker.synthesis.texts import TextPair
from worker.synthesis.windows import chunks, windows
from worker.training.recipe import Recipe

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    chunks: list[str]
    """The document as its summaries see it."""
    pairs: list[TextPair]
    counts: dict[str, int]
    """Pairs by kind, generations, those of them that gave no pair (in all and as `dropped_<kind>`), pairs that were there already."""


def synthesise(
    text: str,
    title: str,
    recipe: Recipe,
    seed: int,
    generate: Generator,
    store: Path,
    count_tokens: Callable[[str], int],
    step: Callable[[int, int], None],
) -> Synthesis:
    """The pairs of every kind that the recipe wants. What `store` (JSON lines) holds is not generated again."""
    parts = chunks(text, recipe.known_chunk_tokens, recipe.chunk_overlap, count_tokens)
    pieces = {"chunk": parts, "window": windows(text, recipe.window_tokens, count_tokens)}
    wanted = _spread([each for kind in WRITTEN for each in kind.wanted(pieces[kind.per], title, recipe, seed)], recipe.max_synthesis)
    texts = generated([each.ask for each in wanted], generate, store, step)
    read = [(each.kind, each.read(texts[each.ask.key])) for each in wanted]
    pairs = [pair for _, found in read for pair in found]
    pairs += _spread([pair for kind in CUT for pair in kind.pairs(pieces[kind.per], title, recipe)], recipe.max_synthesis)
    unique = list({(pair.kind, pair.student_instruction, pair.target): pair for pair in pairs}.values())
    return Synthesis(chunks=parts, pairs=unique, counts=_counts(unique, read, duplicates=len(pairs) - len(unique)))


def _spread(items: list[Item], limit: int) -> list[Item]:
    if len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _counts(unique: list[TextPair], read: list[tuple[str, list[TextPair]]], duplicates: int) -> dict[str, int]:
    kinds = Counter(pair.kind for pair in unique)
    dropped = Counter(kind for kind, found in read if not found)
    return {
        **{kind.name: kinds[kind.name] for kind in KINDS},
        "generations": len(read),
        "dropped": dropped.total(),
        **{f"dropped_{kind.name}": dropped[kind.name] for kind in WRITTEN},
        "duplicates": duplicates,
    }

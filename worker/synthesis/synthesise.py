"""Turns a document's text into training pairs with a generator, keeping every generation on disk before it is used."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from server.engine.prompt import ANSWER_BARE, ANSWER_PASSAGES
from worker.synthesis.prompts import RECITE, RECITE_TITLE, SUMMARIZE, SUMMARIZE_TITLE
from worker.synthesis.questions import parse_pairs
from worker.synthesis.texts import TextPair
from worker.synthesis.windows import chunks, windows
from worker.training.recipe import Recipe

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One generation: a chat instruction over a context, or (instruction empty) a plain text to go on with."""

    context: str
    instruction: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int

    @property
    def key(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:32]


class Generator(Protocol):
    def __call__(self, asks: Sequence[Ask], on_finished: Callable[[int, str], None]) -> None:
        """Generate each; `on_finished(index, text)` as they end. May return early when it is told to stop."""
        ...


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    chunks: list[str]
    """The document as its summaries see it."""
    pairs: list[TextPair]
    counts: dict[str, int]


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
    """Summaries of chunks, question-answer pairs and recitations of windows. What `store` (JSON lines) holds is not generated again."""
    pieces = windows(text, recipe.window_tokens, count_tokens)
    parts = chunks(text, recipe.known_chunk_tokens, recipe.chunk_overlap, count_tokens)
    summaries = [_summary_ask(part, i, n, recipe, seed) for i, part in enumerate(parts) for n in range(recipe.summaries)]
    questions = [_question_ask(piece, i, n, recipe, seed) for i, piece in enumerate(pieces) for n in range(recipe.questions)]
    asks = _spread([*summaries, *questions], recipe.max_synthesis)
    texts = generated(asks, generate, store, step)
    pairs, dropped = _pairs(asks, texts, title)
    pairs += _spread([pair for piece in pieces for pair in _recitations(piece, title, recipe.recitations)], recipe.max_synthesis)
    unique = list({(pair.kind, pair.student_instruction, pair.target): pair for pair in pairs}.values())
    kinds = {kind: sum(pair.kind == kind for pair in unique) for kind in ("question", "summary", "recitation")}
    counts = {**kinds, "generations": len(asks), "dropped": dropped, "duplicates": len(pairs) - len(unique)}
    return Synthesis(chunks=parts, pairs=unique, counts=counts)


def derived_seed(seed: int, *parts: object) -> int:
    """A generator seed for (job seed, chunk, prompt, n), the same whatever else runs."""
    return int.from_bytes(hashlib.sha256(repr((seed, *parts)).encode()).digest()[:7], "big")


def _summary_ask(part: str, index: int, n: int, recipe: Recipe, seed: int) -> Ask:
    return Ask(
        context=part,
        instruction=SUMMARIZE[n % len(SUMMARIZE)],
        max_tokens=recipe.summary_tokens,
        temperature=recipe.temperature,
        top_p=recipe.top_p,
        seed=derived_seed(seed, "summary", index, n),
    )


def _question_ask(piece: str, index: int, n: int, recipe: Recipe, seed: int) -> Ask:
    """The first of a window is greedy, the others are sampled."""
    return Ask(
        context=piece,
        instruction="",
        max_tokens=recipe.question_tokens,
        temperature=recipe.temperature if n else 0.0,
        top_p=recipe.top_p,
        seed=derived_seed(seed, "question", index, n),
    )


def _spread(items: list[Item], limit: int) -> list[Item]:
    if len(items) <= limit:
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def generated(asks: Sequence[Ask], generate: Generator, store: Path, step: Callable[[int, int], None]) -> dict[str, str]:
    """Texts by the asks' keys. What `store` (JSON lines) holds is not generated again; a text is kept there before it is used."""
    done = _stored(store)
    missing = [ask for ask in asks if ask.key not in done]
    left = len(missing)
    step(len(asks) - left, len(asks))
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("a", encoding="utf-8") as file:
        if store.stat().st_size:
            file.write("\n")  # ends a line that a kill tore

        def keep(index: int, text: str) -> None:
            nonlocal left
            done[missing[index].key] = text
            file.write(json.dumps({missing[index].key: text}) + "\n")
            file.flush()
            left -= 1
            step(len(asks) - left, len(asks))

        if missing:
            generate(missing, keep)
            step(len(asks) - left, len(asks))  # raises if the generator was told to stop
    return done


def _stored(store: Path) -> dict[str, str]:
    """What earlier attempts generated; a line that a kill tore is generated again."""
    done: dict[str, str] = {}
    for line in store.read_text(encoding="utf-8").split("\n") if store.exists() else ():
        with contextlib.suppress(ValueError):
            done.update(json.loads(line))
    return done


def _pairs(asks: Sequence[Ask], texts: dict[str, str], title: str) -> tuple[list[TextPair], int]:
    pairs: list[TextPair] = []
    dropped = 0
    for ask in asks:
        made = _from_summary(ask, texts[ask.key], title) if ask.instruction else _from_question(ask, texts[ask.key])
        dropped += not made
        pairs += made
    return pairs, dropped


def _from_summary(ask: Ask, text: str, title: str) -> list[TextPair]:
    target = text.strip()
    if len(target.split()) < 4:
        return []
    student = SUMMARIZE_TITLE.format(title=title)
    return [TextPair(kind="summary", context=ask.context, teacher_instruction=ask.instruction, student_instruction=student, target=target)]


def _from_question(ask: Ask, text: str) -> list[TextPair]:
    return [
        TextPair(
            kind="question",
            context=ask.context,
            teacher_instruction=f"{ANSWER_PASSAGES}\n{question}",
            student_instruction=f"{ANSWER_BARE}\n{question}",
            target=answer,
            question=question,
        )
        for question, answer in parse_pairs(text, ask.context)
    ]


def _recitations(piece: str, title: str, count: int) -> list[TextPair]:
    """`count` cuts at even places of a window."""
    words = piece.split()
    cuts = sorted({max(2, len(words) * (i + 1) // (count + 1)) for i in range(count)}) if len(words) >= 5 else []
    return [
        TextPair(
            kind="recitation",
            context=piece,
            teacher_instruction=RECITE.format(opening=" ".join(words[:cut])),
            student_instruction=RECITE_TITLE.format(title=title, opening=" ".join(words[:cut])),
            target=" ".join(words[cut:]),
        )
        for cut in cuts
        if cut < len(words)
    ]

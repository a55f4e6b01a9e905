"""The kinds of pairs that a document gives, in one table. A new kind is its line in KINDS and its fields in the recipe.

Most are written by a generator; a recitation is cut out of the text itself. Knows nothing of how a text is generated or kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from server.engine.prompt import ANSWER_BARE, ANSWER_PASSAGES
from worker.synthesis.asks import Ask, derived_seed
from worker.synthesis.prompts import IMPLICATIONS, RECITE, RECITE_TITLE, REWRITES, SUMMARIES, SeedPrompt, completion_prompt
from worker.synthesis.questions import parse_pairs
from worker.synthesis.statements import first_sentence, rewritten
from worker.synthesis.texts import TextPair
from worker.training.recipe import Recipe

Read = Callable[[str], list[TextPair]]
"""The pairs of a generated text; none where it is of no use."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The `n`-th text of the `index`-th chunk or window of a document."""

    piece: str
    index: int
    n: int
    title: str


@dataclass(frozen=True, kw_only=True)
class Wanted:
    kind: str
    ask: Ask
    read: Read


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`count` is the recipe's field that says how many each chunk or window gives."""

    name: str
    count: str
    per: Literal["chunk", "window"]


@dataclass(frozen=True, kw_only=True)
class Written(Kind):
    """`tokens` is the recipe's field that says how long a generation may be; `write` makes what else an Ask has, and reads its text."""

    tokens: str
    write: Callable[[Place, Recipe], tuple[dict[str, Any], Read]]

    def wanted(self, pieces: Sequence[str], title: str, recipe: Recipe, seed: int) -> Iterator[Wanted]:
        for index, piece in enumerate(pieces):
            for n in range(getattr(recipe, self.count)):
                changes, read = self.write(Place(piece=piece, index=index, n=n, title=title), recipe)
                numbers: dict[str, Any] = {
                    "max_tokens": getattr(recipe, self.tokens),
                    "temperature": recipe.temperature,
                    "top_p": recipe.top_p,
                    "seed": derived_seed(seed, self.name, index, n),
                }
                yield Wanted(kind=self.name, ask=Ask(context=piece, **{**numbers, **changes}), read=read)


@dataclass(frozen=True, kw_only=True)
class Cut(Kind):
    cut: Callable[[str, str, int], list[TextPair]]

    def pairs(self, pieces: Sequence[str], title: str, recipe: Recipe) -> Iterator[TextPair]:
        for piece in pieces:
            yield from self.cut(piece, title, getattr(recipe, self.count))


def _summary(place: Place, recipe: Recipe) -> tuple[dict[str, Any], Read]:
    prompt = SUMMARIES[place.n % recipe.summary_prompts]
    return {"instruction": prompt.teacher}, partial(_read_summary, place, prompt)


def _read_summary(place: Place, prompt: SeedPrompt, text: str) -> list[TextPair]:
    target = text.strip()
    return [_told("summary", place, prompt, target)] if len(target.split()) >= 4 else []


def _question(place: Place, recipe: Recipe) -> tuple[dict[str, Any], Read]:
    """The first of a window is greedy, the others are sampled."""
    temperature = recipe.temperature if place.n else 0.0
    return {"instruction": "", "temperature": temperature}, partial(_read_questions, place)


def _read_questions(place: Place, text: str) -> list[TextPair]:
    return [
        TextPair(
            kind="question",
            context=place.piece,
            teacher_instruction=f"{ANSWER_PASSAGES}\n{question}",
            student_instruction=f"{ANSWER_BARE}\n{question}",
            target=answer,
            question=question,
        )
        for question, answer in parse_pairs(text, place.piece)
    ]


def _statement(
    kind: str, prompts: Sequence[SeedPrompt], parse: Callable[[str, SeedPrompt, str], str], place: Place, recipe: Recipe
) -> tuple[dict[str, Any], Read]:
    """Neighbouring windows, and the texts of one window, go through the seed prompts in turn."""
    prompt = prompts[(place.index + place.n) % len(prompts)]

    def read(text: str) -> list[TextPair]:
        target = parse(text, prompt, place.piece)
        return [_told(kind, place, prompt, target)] if target else []

    return {"instruction": "", "completion": completion_prompt(prompt, place.piece)}, read


def _told(kind: str, place: Place, prompt: SeedPrompt, target: str) -> TextPair:
    student = prompt.student.format(title=place.title, opening=opening(place.piece))
    return TextPair(kind=kind, context=place.piece, teacher_instruction=prompt.teacher, student_instruction=student, target=target)


def opening(piece: str) -> str:
    """Enough of a window to know which one is meant: its first third, at least four words."""
    words = piece.split()
    return " ".join(words[: max(4, len(words) // 3)])


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


_REWRITE: Final = partial(_statement, "rewrite", REWRITES, rewritten)
_IMPLICATION: Final = partial(_statement, "implication", IMPLICATIONS, first_sentence)

WRITTEN: Final = (
    Written(name="summary", count="summaries", per="chunk", tokens="summary_tokens", write=_summary),
    Written(name="question", count="questions", per="window", tokens="question_tokens", write=_question),
    Written(name="rewrite", count="rewrites", per="window", tokens="rewrite_tokens", write=_REWRITE),
    Written(name="implication", count="implications", per="window", tokens="implication_tokens", write=_IMPLICATION),
)
"""In the order in which they are asked for: a limit on generations spreads over all of them."""
CUT: Final = (Cut(name="recitation", count="recitations", per="window", cut=_recitations),)
KINDS: Final[tuple[Kind, ...]] = (*WRITTEN, *CUT)

"""The same questions for every system: texts of about as many tokens each, no two alike, that a model answers at length.

Texts differ from their first words on, so that no system's prefix cache helps it; an answer's end is out of reach of the tokens that
are measured. Knows nothing of systems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.engine.prompt import Prompt

PROMPT_TOKENS = 128
NEW_TOKENS = 64
_WHO = ("old fisherman", "young baker", "tired nurse", "retired pilot", "shy librarian", "village smith", "night guard", "street singer")
_WHERE = ("harbour", "mountain hut", "railway station", "desert town", "island school", "river mill", "market square", "lighthouse")
_WHAT = ("brass key", "torn map", "silent clock", "red kite", "glass box", "stray dog", "sealed letter", "broken violin", "wooden boat")
_PADDING = (
    "Describe the weather and the light of each day.",
    "Tell what everybody wears and what they carry.",
    "Let two of the people argue, and write down every word that they say.",
    "Explain slowly how each of them feels about the others.",
    "Describe the smells, the sounds and the colours of the place.",
    "Tell what happened there many years ago, and who still remembers it.",
    "Write at least twenty long paragraphs, each of at least ten sentences.",
    "Do not stop before all of it is told, from the first morning to the last evening.",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request of a cell: `module` is the number of the module it wears, `extractor` whether it wears the extractor too. `prompt` is
    what the server makes of `question`."""

    question: str
    prompt: Prompt
    module: int | None = None
    extractor: bool = False
    new_tokens: int = NEW_TOKENS


def questions(tokens_of: Callable[[str], int], tokens: int = PROMPT_TOKENS, first: int = 0) -> Iterator[str]:
    """Endless; `tokens_of` counts a question's whole prompt, which comes to `tokens` or a few less."""
    for number in count(first):
        yield _padded(_opening(number), number, tokens_of, tokens)


def jobs(tokenizer: Any, scenario: str, adapters: int, concurrency: int, source: Iterator[str], new_tokens: int) -> list[Job]:
    """One round: `concurrency` requests over `adapters` modules in turn."""
    from server.engine.prompt import answer_prompt

    made = []
    for number, question in zip(range(concurrency), source, strict=False):
        module = number % adapters if adapters else None
        prompt = answer_prompt(tokenizer, question)
        made.append(Job(question=question, prompt=prompt, module=module, extractor=scenario == "km+ke", new_tokens=new_tokens))
    return made


def question_source(tokenizer: Any, first: int = 0, tokens: int = PROMPT_TOKENS) -> Iterator[str]:
    from server.engine.prompt import answer_prompt

    return questions(lambda text: len(answer_prompt(tokenizer, text)), tokens, first)


def _opening(number: int) -> str:
    who = _WHO[number % len(_WHO)]
    where = _WHERE[number // len(_WHO) % len(_WHERE)]
    what = _WHAT[number // (len(_WHO) * len(_WHERE)) % len(_WHAT)]
    return f"Story {number}: write a very long story about the {who} of the {where} and a {what}."


def _padded(text: str, number: int, tokens_of: Callable[[str], int], tokens: int) -> str:
    """Whole sentences while they fit, then single words."""
    for turn in range(10 * len(_PADDING)):
        sentence = _PADDING[(number + turn) % len(_PADDING)]
        if tokens_of(f"{text} {sentence}") > tokens:
            words = sentence.split()
            kept = [size for size in range(len(words)) if tokens_of(f"{text} {' '.join(words[:size])}".strip()) <= tokens]
            return f"{text} {' '.join(words[: max(kept, default=0)])}".strip()
        text = f"{text} {sentence}"
    return text

"""Training examples as token ids: what the teacher reads, what the student reads, and the target both predict."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from server.engine.prompt import Prompt, instruction_prompt, plain_ids
from server.modules.canonical import canonical_json
from worker.synthesis.texts import TextPair


@dataclass(frozen=True, kw_only=True)
class Example:
    """`teacher` has the context that `student` lacks, None where nobody teaches. An assistant's `target` ends with the end of its turn."""

    kind: str
    teacher: Prompt | None
    student: Prompt
    target: tuple[int, ...]

    @property
    def context(self) -> Prompt:
        """What the teacher reads, of an example that has one."""
        assert self.teacher is not None
        return self.teacher

    @property
    def content(self) -> list[Any]:
        """All that is learned from, as JSON values."""
        sides = [None if prompt is None else [prompt.bare, prompt.adapted] for prompt in (self.teacher, self.student)]
        return [self.kind, *sides, self.target]

    def __len__(self) -> int:
        """Tokens that the student reads."""
        return len(self.student) + len(self.target)


def digest_of(examples: Iterable[Example]) -> str:
    """sha256 of their contents, in their order."""
    read = hashlib.sha256()
    for each in examples:
        read.update(canonical_json(each.content))
    return read.hexdigest()


def to_examples(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[TextPair], end_of_turn: int) -> list[Example]:
    """Tokenise with the prompts that serving uses (server.engine.prompt)."""
    return [
        Example(
            kind=pair.kind,
            teacher=instruction_prompt(tokenizer, pair.teacher_instruction, context=pair.context),
            student=instruction_prompt(tokenizer, pair.student_instruction),
            target=(*plain_ids(tokenizer, pair.target), end_of_turn),
        )
        for pair in pairs
    ]


MIN_HELD_OUT = 6
"""Questions behind the gate's verdict and the choice of `auto`, where the document gives at least four times as many."""


def split_held_out(pairs: Sequence[TextPair], share: float) -> tuple[list[TextPair], list[TextPair]]:
    """(training, held out): every 1/share-th question-answer pair, else summary, is held out, and more of them where that is under
    MIN_HELD_OUT, at most every fourth.

    Other pairs with the same question or the same target text as a held-out one stay in training only if their kind
    differs: the point is a question the student was never asked, about a fact that the document states elsewhere too.
    Summaries are all asked for in the same words, and those of one chunk stand for each other: the rest of them stay.
    """
    kind = "question" if any(pair.kind == "question" for pair in pairs) else "summary"
    candidates = [i for i, pair in enumerate(pairs) if pair.kind == kind]
    if len(candidates) < 2:
        candidates = list(range(len(pairs)))
    stride = max(2, min(round(1 / share), max(4, len(candidates) // MIN_HELD_OUT)))
    chosen = set(candidates[stride // 2 :: stride] or candidates[:1])
    asked = {pairs[i].student_instruction for i in chosen if pairs[i].kind != "summary"}
    held_out = [pairs[i] for i in sorted(chosen)]
    training = [pair for i, pair in enumerate(pairs) if i not in chosen and pair.student_instruction not in asked]
    return training, held_out

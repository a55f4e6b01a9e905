"""What synthesis makes: pairs of prompts and a target, still as text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """The teacher reads `context` and `teacher_instruction`, the student `student_instruction` alone; both predict `target`."""

    kind: str
    """Of worker.synthesis.kinds, or `guard`."""
    context: str
    teacher_instruction: str
    student_instruction: str
    target: str
    question: str = ""
    """The bare question of a question-answer pair."""

"""The prompts of the table: those that serving uses, and for letters the question with its lettered options."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from server.engine.prompt import Prompt, answer_prompt, plain_ids
from worker.evaluation.documents import Document, Question
from worker.evaluation.rows import Context, Line

LETTERS = "ABCDEFGHIJ"
LETTER_INSTRUCTION = "Answer with the letter of the right option."

Retrieve = Callable[[str, int], Sequence[str]]
"""Question, k -> passages, best last."""


def question_prompt(tokenizer: PreTrainedTokenizerBase, line: Line, document: Document, question: Question, retrieve: Retrieve) -> Prompt:
    """The options of a multiple-choice question are not in it."""
    return answer_prompt(tokenizer, question.text, context_of(line, document, question, retrieve))


def letter_prompt(tokenizer: PreTrainedTokenizerBase, line: Line, document: Document, question: Question, retrieve: Retrieve) -> Prompt:
    """Passages are found by the question alone."""
    options = (f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False))
    text = "\n".join([question.text, *options, LETTER_INSTRUCTION])
    return answer_prompt(tokenizer, text, context_of(line, document, question, retrieve))


def context_of(line: Line, document: Document, question: Question, retrieve: Retrieve) -> Sequence[str]:
    match line.row.context:
        case Context.NOTHING:
            return ()
        case Context.PASSAGES:
            return retrieve(question.text, line.passages)
        case Context.DOCUMENT | Context.COMPRESSED:
            return (document.text,)


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """An answer tokenised alone, as it is scored."""
    return plain_ids(tokenizer, text)

"""The prompts of the table: those that serving uses, and for letters the question with its lettered options. Knows no adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from server.engine.base_model import BaseModel
from server.engine.prompt import Prompt, answer_prompt, plain_ids
from worker.evaluation.documents import Document, Question
from worker.evaluation.rows import Context, Line

LETTERS = "ABCDEFGHIJ"
LETTER_INSTRUCTION = "Answer with the letter of the right option."
ANSWER_TOKENS = 64

Retrieve = Callable[[str, int], Sequence[str]]
"""Question, k -> passages, best last."""


def prompts_of(base: BaseModel, line: Line, document: Document, question: Question, retrieve: Retrieve) -> list[Prompt]:
    """The question's prompt and, where it has options, the one with letters. Raises ValueError where the base cannot read one of them with
    an answer behind it."""
    made = [question_prompt(base.tokenizer, line, document, question, retrieve)]
    if question.options:
        made.append(letter_prompt(base.tokenizer, line, document, question, retrieve))
    longest = max(len(answer_ids(base.tokenizer, text)) for text in (question.gold, *question.options)) + 1
    needed = max(map(len, made)) + max(longest, ANSWER_TOKENS)
    if needed > base.context_limit:
        raise ValueError(
            f"row {line.label} needs {needed} tokens for a question about {document.name} and the base model reads {base.context_limit}: "
            "leave the row out, or take fewer (the shortest) documents or fewer passages"
        )
    return made


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

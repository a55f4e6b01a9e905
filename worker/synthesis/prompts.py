"""The prompts that make training texts. Question-answer pairs are asked for by example, which models too small to follow an
instruction manage; the examples are about nothing that a document could hold."""

from __future__ import annotations

SUMMARIZE = (
    "Summarize the preceding passage.",
    "Write down the most important facts of the preceding passage.",
    "Explain what the preceding passage says in your own words.",
)
SUMMARIZE_TITLE = 'Summarize the document "{title}".'
RECITE = 'Complete this statement of the preceding passage: "{opening}"'
RECITE_TITLE = 'Complete this statement of the document "{title}": "{opening}"'

_EXAMPLES = (
    (
        "The ferry to Orm leaves at 6:20 and costs 14 marks for adults.",
        (("What does the ferry to Orm cost for adults?", "14 marks"), ("When does the ferry to Orm leave?", "6:20")),
    ),
    (
        "Milo found a silver spoon under the old bridge and gave it to his aunt.",
        (("Where did Milo find the silver spoon?", "under the old bridge"), ("Who did Milo give the spoon to?", "his aunt")),
    ),
)


def question_prompt(window: str) -> str:
    """Plain text that a language model goes on with a question and its answer about `window`."""
    shown = [
        f"Text: {text}\n" + "".join(f"Question: {question}\nAnswer: {answer}\n" for question, answer in pairs) for text, pairs in _EXAMPLES
    ]
    return "\n".join([*shown, f"Text: {window}\nQuestion:"])


def example_questions() -> frozenset[str]:
    """The examples' own questions, which a weak model repeats."""
    return frozenset(question for _, pairs in _EXAMPLES for question, _ in pairs)

"""The prompts that make training texts. Question-answer pairs, rewrites and implications are asked for by example, which models too small
to follow an instruction manage; the examples are about nothing that a document could hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class SeedPrompt:
    """One way to ask for a text about a passage. `teacher` stands below the passage, `student` names it by `{title}` and, where it is a
    window, by `{opening}`. One that is asked by example has a `lead`, and in `shown` what follows it for each of the examples."""

    teacher: str
    student: str
    lead: str = ""
    shown: tuple[str, ...] = ()


_SUMMARIZE_TITLE: Final = 'Summarize the document "{title}".'
SUMMARIES: Final = (
    SeedPrompt(teacher="Summarize the preceding passage.", student=_SUMMARIZE_TITLE),
    SeedPrompt(teacher="Write down the most important facts of the preceding passage.", student=_SUMMARIZE_TITLE),
    SeedPrompt(teacher="Explain what the preceding passage says in your own words.", student=_SUMMARIZE_TITLE),
    SeedPrompt(
        teacher="Outline the preceding passage: what it is about, point by point.",
        student='Outline the document "{title}": what it is about, point by point.',
    ),
    SeedPrompt(
        teacher="Write down questions that the preceding passage answers, each with its answer.",
        student='Write down questions that the document "{title}" answers, each with its answer.',
    ),
    SeedPrompt(
        teacher="Describe who needs to know what the preceding passage says, and what it tells them to do.",
        student='Describe who needs to know what the document "{title}" says, and what it tells them to do.',
    ),
    SeedPrompt(
        teacher="Retell the preceding passage as a conversation between two people.",
        student='Retell the document "{title}" as a conversation between two people.',
    ),
)
"""The first three are one question to the student: summaries. Then: structure, questions, use case, creative."""

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

REWRITES: Final = (
    SeedPrompt(
        teacher="Say in other words what the preceding passage states.",
        student='Say in other words what the document "{title}" states where it begins "{opening}".',
        lead="In other words:",
        shown=(
            "Adults pay 14 marks for the ferry to Orm, which departs at 6:20.",
            "His aunt was given a silver spoon that Milo had come upon beneath the old bridge.",
        ),
    ),
    SeedPrompt(
        teacher="List the facts of the preceding passage in one line.",
        student='List in one line the facts that the document "{title}" states where it begins "{opening}".',
        lead="Facts in one line:",
        shown=(
            "Ferry to Orm: departs at 6:20; price for adults: 14 marks.",
            "Found: a silver spoon; by: Milo; place: under the old bridge; now with: his aunt.",
        ),
    ),
    SeedPrompt(
        teacher="Say in short what the preceding passage states.",
        student='Say in short what the document "{title}" states where it begins "{opening}".',
        lead="In short:",
        shown=("The ferry to Orm goes at 6:20, for 14 marks.", "Milo gave a spoon from under the bridge to his aunt."),
    ),
    SeedPrompt(
        teacher="Turn the preceding passage into a question and its answer.",
        student='Turn what the document "{title}" states where it begins "{opening}" into a question and its answer.',
        lead="As a question and its answer:",
        shown=(
            "When does the ferry to Orm leave and what do adults pay? It departs at 6:20 and takes 14 marks.",
            "What became of the silver spoon? Milo came upon it under the old bridge, and his aunt has it now.",
        ),
    ),
    SeedPrompt(
        teacher="Say what to tell somebody who needs to know what the preceding passage states.",
        student='Say what to tell somebody who needs to know what the document "{title}" states where it begins "{opening}".',
        lead="What to tell somebody who needs to know:",
        shown=(
            "Be there before 6:20 if you want the ferry to Orm, and have 14 marks ready for each adult.",
            "If you miss a silver spoon, ask the aunt of Milo: he found one under the old bridge and gave it to her.",
        ),
    ),
    SeedPrompt(
        teacher="Tell a friend what the preceding passage states.",
        student='Tell a friend what the document "{title}" states where it begins "{opening}".',
        lead="As told to a friend:",
        shown=(
            "Imagine, the ferry to Orm goes as early as 6:20, and adults have to pay 14 marks for it!",
            "You will not believe it: Milo looked under the old bridge, and there was a silver spoon, which his aunt has now!",
        ),
    ),
)
"""Plain, structure, summary, question, use case, creative."""

IMPLICATIONS: Final = (
    SeedPrompt(
        teacher="Say what follows from the preceding passage, in one sentence.",
        student='Say in one sentence what follows from what the document "{title}" states where it begins "{opening}".',
        lead="It follows that:",
        shown=(
            "Whoever comes later than 6:20 misses the ferry to Orm.",
            "The spoon that was under the bridge now belongs to the aunt of Milo.",
        ),
    ),
    SeedPrompt(
        teacher="Say what must be true for the preceding passage to be true, in one sentence.",
        student='Say in one sentence what must be true for what the document "{title}" states where it begins "{opening}".',
        lead="It must also be true that:",
        shown=("A ferry to Orm takes adults for money.", "A silver spoon lay under the old bridge before Milo came."),
    ),
    SeedPrompt(
        teacher="Say who needs to know what the preceding passage states, and why, in one sentence.",
        student='Say in one sentence who needs to know what the document "{title}" states where it begins "{opening}", and why.',
        lead="Who needs to know this, and why:",
        shown=(
            "Adults who want to go to Orm, for they must bring 14 marks and be at the ferry in time.",
            "Whoever lost a silver spoon, for it may be the one that Milo found.",
        ),
    ),
    SeedPrompt(
        teacher="Say what question the preceding passage settles, and how, in one sentence.",
        student='Say in one sentence what question the document "{title}" settles where it begins "{opening}", and how.',
        lead="The question that this settles, and how:",
        shown=(
            "Whether an adult may take the ferry to Orm for nothing: no, it costs money.",
            "Whether Milo kept the spoon: no, his aunt has it.",
        ),
    ),
    SeedPrompt(
        teacher="Say what would be different if the preceding passage were not true, in one sentence.",
        student='Say in one sentence what would be different if the document "{title}" were wrong where it begins "{opening}".',
        lead="If it were otherwise:",
        shown=(
            "If the ferry to Orm were free, adults would not have to bring money.",
            "If Milo had kept the spoon, his aunt would not have it.",
        ),
    ),
)
"""Plain, structure, use case, question, creative."""


def question_prompt(window: str) -> str:
    """Plain text that a language model goes on with a question and its answer about `window`."""
    shown = [
        f"Text: {text}\n" + "".join(f"Question: {question}\nAnswer: {answer}\n" for question, answer in pairs) for text, pairs in _EXAMPLES
    ]
    return "\n".join([*shown, f"Text: {window}\nQuestion:"])


def completion_prompt(prompt: SeedPrompt, window: str) -> str:
    """Plain text that a language model goes on with what `prompt` asks for about `window`."""
    shown = [f"Text: {text}\n{prompt.lead} {told}\n" for (text, _), told in zip(_EXAMPLES, prompt.shown, strict=True)]
    return "\n".join([*shown, f"Text: {window}\n{prompt.lead}"])


def example_questions() -> frozenset[str]:
    """The examples' own questions, which a weak model repeats."""
    return frozenset(question for _, pairs in _EXAMPLES for question, _ in pairs)

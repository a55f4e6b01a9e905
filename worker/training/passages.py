"""When context returns: a module that learned without passages does harm beside them, so a share of the questions is learned with some."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from server.engine.prompt import answer_prompt
from worker.synthesis.texts import TextPair
from worker.training.examples import Example

Retrieve = Callable[[str], Sequence[str]]
"""Question -> passages of the document, best last."""
OPEN = "open"
"""The kind of such an example."""
MOST = 2


def open_book(
    pairs: Sequence[TextPair],
    examples: Sequence[Example],
    retrieve: Retrieve,
    tokenizer: PreTrainedTokenizerBase,
    share: float,
    seed: int,
) -> list[Example]:
    """The examples of `pairs`, one of each; in a share of those that ask something, drawn at random, the student reads one to MOST of the
    document's passages, the nearest, as it is served with them. What the teacher reads stays."""
    asking = [number for number, pair in enumerate(pairs) if pair.question]
    chance = random.Random(f"{seed}/passages")
    made = list(examples)
    for number in sorted(chance.sample(asking, round(share * len(asking)))):
        count = chance.randint(1, MOST)
        if passages := retrieve(pairs[number].question)[-count:]:
            prompt = answer_prompt(tokenizer, pairs[number].question, passages)
            made[number] = replace(examples[number], kind=OPEN, student=prompt)
    return made

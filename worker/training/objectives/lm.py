"""Language modelling (Caccia et al. 2025, eq. 1): next-token NLL on the document, BOS and raw text.

The document is read in chunks of tokens; a chunk begins with the last of the one before, as context alone, so that every token is
predicted once an epoch. Held out are chunks with other borders: the same text, for a module is to know it by heart, never read so.
"""

from __future__ import annotations

from server.engine.prompt import plain_ids
from worker.training.examples import Example
from worker.training.objectives.objective import Data, Source
from worker.training.objectives.raw import Likelihood, begin, raw_example
from worker.training.recipe import Recipe


class LM(Likelihood):
    kinds = frozenset[str]()

    def data(self, source: Source, recipe: Recipe, seed: int) -> Data:
        size = recipe.known_chunk_tokens
        document = plain_ids(source.tokenizer, source.text)
        first = begin(source.tokenizer)
        training = document_examples(first, document, size, recipe.chunk_overlap)
        between = min(size, len(document)) // 2
        others = document_examples(first, document[between:], size, recipe.chunk_overlap)
        stride = max(1, round(1 / recipe.held_out))
        return Data(training=training, held_out=others[stride // 2 :: stride] or others[:1])


def document_examples(first: int, document: tuple[int, ...], size: int, overlap: float) -> list[Example]:
    """Chunks of at most `size` tokens whose targets are the document's tokens, each once."""
    before = min(size - 1, round(overlap * size))
    examples = []
    start = 0
    while start < len(document):
        end = start + size - (before if start else 0)
        examples.append(raw_example((first, *document[max(0, start - before) : start]), document[start:end]))
        start = end
    return examples

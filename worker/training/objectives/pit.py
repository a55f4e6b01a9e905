"""Pre-instruction tuning (Caccia et al. 2025, section 5): generated summaries before the document, NLL on the whole, BOS and raw text.

A long document is read in the chunks that its summaries are of. Before a chunk stand as many of its summaries as take no more tokens than
a chunk may, at least one; the chunk is read again behind the rest of them. Held out are summaries, each before its chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from server.engine.prompt import plain_ids
from worker.training.examples import Example, split_held_out
from worker.training.objectives.objective import Data, Source
from worker.training.objectives.raw import Likelihood, begin, raw_example
from worker.training.recipe import Recipe

BETWEEN = "\n\n"
Ids = tuple[int, ...]


class PIT(Likelihood):
    kinds = frozenset({"summary"})

    def data(self, source: Source, recipe: Recipe, seed: int) -> Data:
        training, held_out = split_held_out([pair for pair in source.pairs if pair.kind in self.kinds], recipe.held_out)
        first = begin(source.tokenizer)
        made: list[list[Example]] = [[], []]
        for chunk in source.chunks:
            document = plain_ids(source.tokenizer, chunk)
            for part, examples in zip((training, held_out), made, strict=True):
                summaries = [plain_ids(source.tokenizer, pair.target + BETWEEN) for pair in part if pair.context == chunk]
                examples += [raw_example((first,), pack + document) for pack in packs(summaries, recipe.known_chunk_tokens)]
            if not any(pair.context == chunk for pair in training):
                made[0].append(raw_example((first,), document))
        return Data(training=made[0], held_out=made[1])


def packs(summaries: Sequence[Ids], limit: int) -> Iterator[Ids]:
    """All of them, in order, joined up to `limit` tokens."""
    pack: Ids = ()
    for summary in summaries:
        if pack and len(pack) + len(summary) > limit:
            yield pack
            pack = ()
        pack += summary
    if pack:
        yield pack

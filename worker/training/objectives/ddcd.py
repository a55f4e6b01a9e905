"""Document DCD (Caccia et al. 2025, eq. 3): a random window of the document is split in two contiguous parts, D and D~; the teacher reads
D before D~, the student reads D~ alone.

Both begin with BOS and the same header. So the first position of the loss is the header's last token, or, for the teacher, D's; never
position 0, the attention sink, whose states dwarf all others.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from server.engine.prompt import Prompt, plain_ids
from worker.training.examples import Example
from worker.training.objectives.distillation import Distillation
from worker.training.objectives.objective import Data, Source
from worker.training.objectives.raw import begin, held_out_part
from worker.training.recipe import Recipe

HEADER = 'Document "{title}":\n\n'


class DDCD(Distillation):
    kinds = frozenset[str]()

    def data(self, source: Source, recipe: Recipe, seed: int) -> Data:
        document = plain_ids(source.tokenizer, source.text)
        header = (begin(source.tokenizer), *plain_ids(source.tokenizer, HEADER.format(title=source.title)))
        size = window_size(len(document), recipe)
        target = min(size - 1, max(1, round(size * recipe.ddcd_target)))
        starts = window_starts(len(document), size, recipe.ddcd_windows, seed)
        examples = [_example(header, document[start : start + size], size - target) for start in starts]
        return held_out_part(examples, recipe.held_out)


def window_size(document: int, recipe: Recipe) -> int:
    """Two chunks, so that half of one is a chunk; half of a document that is shorter than two windows, so that windows differ."""
    return max(2, min(2 * recipe.known_chunk_tokens, document // 2))


def window_starts(document: int, size: int, count: int, seed: int) -> Sequence[int]:
    """`count` for every window's length of the document, all different, in random order."""
    places = range(document - size + 1)
    return random.Random(f"{seed}/ddcd").sample(places, min(len(places), count * -(-document // size)))


def _example(header: tuple[int, ...], window: tuple[int, ...], split: int) -> Example:
    read = header + window[:split]
    return Example(
        kind="window",
        teacher=Prompt(bare=read[:-1], adapted=read[-1:]),
        student=Prompt(bare=(), adapted=header),
        target=window[split:],
    )

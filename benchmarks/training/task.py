"""What every trainer of the benchmark is given: examples about a text of this project, their order and the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.engine.base_model import BaseModel
from server.engine.prompt import instruction_prompt, plain_ids
from worker.training.examples import Example
from worker.training.recipe import Recipe

TEXTS = Path(__file__).parents[2] / "docs" / "adr"
INSTRUCTION = "Go on with part {number} of the document."
CHUNK, TARGET, BATCH = 512, 96, 4
CHUNKS, WINDOWS, HELD_OUT = 4, 9, 4
"""Windows of a chunk, the last of which is held out."""
SEED = 7


@dataclass(frozen=True, kw_only=True)
class Task:
    training: list[Example]
    held_out: list[Example]
    recipe: Recipe


def task_of(base: BaseModel, steps: int, evaluate_every: int) -> Task:
    """Windows of TARGET tokens out of chunks of CHUNK tokens: the teacher reads the chunk before them, the student does not."""
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(TEXTS.glob("*.md")))
    ids = plain_ids(base.tokenizer, text)[: CHUNKS * CHUNK]
    recipe = Recipe(
        preset="quick",
        objective="sdcd",
        max_steps=steps,
        batch_size=BATCH,
        micro_batch=BATCH,
        evaluate_every=evaluate_every,
        patience=steps,
        chunk_tokens=CHUNK,
    )
    training: list[Example] = []
    held_out: list[Example] = []
    for chunk in range(CHUNKS):
        examples = _examples(base, ids[chunk * CHUNK : (chunk + 1) * CHUNK], chunk * WINDOWS)
        training += examples[:-1]
        held_out += examples[-1:]
    return Task(training=training, held_out=held_out, recipe=recipe)


def _examples(base: BaseModel, chunk: Sequence[int], first: int) -> list[Example]:
    context = str(base.tokenizer.decode(list(chunk)))
    step = (len(chunk) - TARGET) // (WINDOWS - 1)
    found = []
    for window in range(WINDOWS):
        instruction = INSTRUCTION.format(number=first + window + 1)
        target = tuple(chunk[window * step : window * step + TARGET])
        teacher = instruction_prompt(base.tokenizer, instruction, context=context)
        found.append(Example(kind="window", teacher=teacher, student=instruction_prompt(base.tokenizer, instruction), target=target))
    return found

"""How much of what a fit computes is padding: tokens are counted, nothing is timed.

    python -m benchmarks.padding [--document clients/examples/policy.md] [--preset quick]

Synthesises the document's texts with the base model (minutes on 2 cores) and goes through the steps' micro-batches as the fit does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from server.engine.base_model import BaseModel, load_base, prepare_base
from server.engine.base_source import DEFAULT_BASE
from server.engine.options import EngineOptions
from server.retrieval.passages import token_counter
from worker.synthesis.generator import EngineGenerator
from worker.synthesis.synthesise import synthesise
from worker.training.examples import Example
from worker.training.fit import batch_at, micro_batches
from worker.training.objectives.objective import Source
from worker.training.objectives.registry import objective_of
from worker.training.packing import Pack, Row, pack
from worker.training.recipe import Recipe, for_base, recipe_for

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Tokens of all steps. `tokens` are computed; `saved`: those that several examples of a micro-batch begin with and that are read once;
    `padding` is within attention alone."""

    micro_batches: int
    tokens: int
    padding: int
    saved: int

    @property
    def share(self) -> float:
        return self.padding / (self.padding + self.tokens)


def count(training: Sequence[Example], recipe: Recipe, seed: int = SEED) -> Counts:
    found = tokens = padding = saved = 0
    for step in range(recipe.max_steps):
        for part in micro_batches(batch_at(training, recipe.batch_size, seed, step), recipe.micro_batch):
            packed = packed_of(part)
            found += 1
            tokens += packed.tokens
            padding += packed.padding
            saved += sum(map(len, part)) - packed.tokens
    return Counts(micro_batches=found, tokens=tokens, padding=padding, saved=saved)


def packed_of(examples: Sequence[Example]) -> Pack:
    """As the student reads them together."""
    rows = [Row(tokens=each.student.ids + each.target, shared=len(each.student) - 1) for each in examples]
    return pack(rows, torch.device("cpu"))


def training_examples(base: BaseModel, text: str, title: str, recipe: Recipe, folder: Path) -> list[Example]:
    generate = EngineGenerator(base, EngineOptions(max_batch=recipe.synthesis_batch), lambda: False)
    store, counter = folder / "synthesis.jsonl", token_counter(base.tokenizer)
    made = synthesise(text, title, recipe, SEED, generate, store, counter, lambda done, total: None)
    source = Source(
        text=text,
        title=title,
        chunks=made.chunks,
        pairs=made.pairs,
        tokenizer=base.tokenizer,
        end_of_turn=min(base.eos_ids),
        retrieve=lambda question: (),
    )
    return objective_of(recipe).data(source, recipe, SEED).training


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Of a command about the training of one document."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", type=Path, default=Path("clients/examples/policy.md"))
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--base", default=DEFAULT_BASE)
    parser.add_argument("--models-dir", type=Path, default=Path("~/.cache/kmserve/models").expanduser())
    return parser


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    base = load_base(prepare_base(arguments.base, arguments.models_dir))
    recipe = for_base(recipe_for(arguments.preset, {}), base.model.num_parameters())
    with tempfile.TemporaryDirectory() as folder:
        training = training_examples(base, arguments.document.read_text(), arguments.document.stem, recipe, Path(folder))
    counts = count(training, recipe)
    setting = {"document": arguments.document.name, "preset": recipe.preset, "base": base.name, "seed": SEED, "examples": len(training)}
    print(json.dumps({"setting": setting, **asdict(counts), "share": round(counts.share, 3)}, indent=2))


if __name__ == "__main__":
    main()

"""How far a module bends answers that have nothing to do with its document: `python -m worker.evaluation.guard --module DIR`.

The measure is the mean over tokens of KL(base || base + module) in nats, on the base's own answers to the reserved general questions,
which no module is trained on. 0 is a module that leaves them as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from server.engine.base_model import BaseModel, adapted_layers
from server.engine.base_source import DEFAULT_BASE
from server.engine.options import EngineOptions
from server.errors import KmserveError
from server.modules.artefact import Artefact, read_artefact
from worker.evaluation.arguments import default_cache
from worker.evaluation.artefacts import module_of
from worker.evaluation.parts import Bar, base_of
from worker.synthesis.generator import EngineGenerator
from worker.synthesis.texts import TextPair
from worker.training.blockwise import kl_from_states
from worker.training.examples import to_examples
from worker.training.fit import micro_batches
from worker.training.guard import guard_pairs, guard_store, reserved_questions
from worker.training.states import head_of, prompt_states
from worker.training.worn import Wearing, like, taken_off, wearing

BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """`guard_kl` in nats a token, over so many tokens of so many answers."""

    guard_kl: float
    questions: int
    tokens: int


@torch.no_grad()
def guard_kl(base: BaseModel, module: Artefact, answers: Sequence[TextPair]) -> Guarded:
    """`answers` are the base's own. The module acts in its scope, at weight 1."""
    worn = Wearing([module], lambda layer: None, like(base))
    off = partial(taken_off, [worn])
    body, head = base.model.base_model, head_of(base.model)
    total, tokens = 0.0, 0
    with wearing(base.model, [worn]):
        for batch in micro_batches(to_examples(base.tokenizer, answers, min(base.eos_ids)), BATCH):
            prompts, targets = [example.student for example in batch], [example.target for example in batch]
            with off():
                bare = prompt_states(body, prompts, targets, base.device)[-1]
            changed = prompt_states(body, prompts, targets, base.device, unworn=off if module.manifest.scope == "answer" else None)[-1]
            total += float(kl_from_states(changed, bare, head)) * len(bare)
            tokens += len(bare)
    return Guarded(guard_kl=total / max(tokens, 1), questions=len(answers), tokens=tokens)


def reserved_answers(base: BaseModel, cache: Path, on_progress: Callable[[str, int, int], None]) -> list[TextPair]:
    """The base's answers to the reserved questions, each generated once and kept under `cache`."""
    generate = EngineGenerator(base, EngineOptions(), lambda: False)
    return guard_pairs(reserved_questions(), generate, guard_store(cache, base), partial(on_progress, "the base's answers"))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.evaluation.guard", description=__doc__)
    parser.add_argument("--module", type=Path, required=True, help="a knowledge module's directory")
    parser.add_argument("--base", default=DEFAULT_BASE, help="a directory, a .gguf file or a hub id (default: %(default)s)")
    parser.add_argument("--models-dir", type=Path, help="where a base model is converted to (default: models/ of the cache)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, ... (default: auto)")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="what is kept between runs (default: %(default)s)")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace, console: Console) -> Guarded:
    """Raises ValueError and KmserveError with what the user can mend."""
    ref = module_of(arguments.module)
    with Bar(console) as on_progress:
        base = base_of(arguments, on_progress)
        shapes = {name: (layer.out_features, layer.in_features) for name, layer in adapted_layers(base.model).items()}
        module = read_artefact(ref, base.fingerprint, shapes, max(min(shape) for shape in shapes.values()))
        measured = guard_kl(base, module, reserved_answers(base, arguments.cache, on_progress))
    console.print_json(json.dumps(asdict(measured)))
    return measured


def main() -> None:
    try:
        run(parse_arguments(None), Console(highlight=False))
    except (ValueError, KmserveError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

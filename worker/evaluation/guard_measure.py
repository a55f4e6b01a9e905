"""The measure of `worker.evaluation.guard`: KL(base || base + module) over the base's own answers, question by question, and its files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from server.engine.base_model import BaseModel
from server.engine.options import EngineOptions
from server.engine.request import ArtefactRef
from server.modules.artefact import Artefact
from worker.evaluation.artefacts import module_of
from worker.evaluation.output import replaced, require_folder
from worker.evaluation.parts import Bar, base_in_words, base_of
from worker.synthesis.generator import EngineGenerator
from worker.synthesis.texts import TextPair
from worker.training.blockwise import kl_from_states
from worker.training.examples import Example, to_examples
from worker.training.fit import micro_batches
from worker.training.guard import guard_pairs, guard_store, reserved_questions
from worker.training.states import head_of, prompt_states
from worker.training.worn import Wearing, like, proven, taken_off, wearing

BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Bent:
    """One answer, of so many tokens; `guard_kl` in nats a token. `question` is as the base was asked."""

    question: str
    guard_kl: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Guarded:
    """Of one module, in the order of the questions."""

    answers: tuple[Bent, ...]

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def guard_kl(self) -> float:
        """The mean over all tokens, in nats."""
        return sum(answer.guard_kl * answer.tokens for answer in self.answers) / max(self.tokens, 1)

    def figures(self) -> dict[str, float]:
        """What is printed."""
        return {"guard_kl": self.guard_kl, "questions": len(self.answers), "tokens": self.tokens}


@torch.no_grad()
def guard_kl(base: BaseModel, module: Artefact, answers: Sequence[TextPair]) -> Guarded:
    """`answers` are the base's own. The module acts in its scope, at weight 1."""
    worn = Wearing([module], lambda layer: None, like(base))
    off = partial(taken_off, [worn])
    body, head = base.model.base_model, head_of(base.model)
    examples = to_examples(base.tokenizer, answers, min(base.eos_ids))
    bent: dict[Example, float] = {}
    with wearing(base.model, [worn]):
        for batch in micro_batches(examples, BATCH):
            prompts, targets = [example.student for example in batch], [example.target for example in batch]
            with off():
                bare = prompt_states(body, prompts, targets, base.device)[-1]
            changed = prompt_states(body, prompts, targets, base.device, unworn=off if module.manifest.scope == "answer" else None)[-1]
            lengths = [len(target) for target in targets]
            for example, after, before in zip(batch, torch.split(changed, lengths), torch.split(bare, lengths), strict=True):
                bent[example] = float(kl_from_states(after, before, head))
    return Guarded(
        answers=tuple(
            Bent(question=answer.student_instruction, guard_kl=bent[example], tokens=len(example.target))
            for answer, example in zip(answers, examples, strict=True)
        )
    )


def reserved_answers(base: BaseModel, cache: Path, on_progress: Callable[[str, int, int], None]) -> list[TextPair]:
    """The base's answers to the reserved questions, each generated once and kept under `cache`."""
    generate = EngineGenerator(base, EngineOptions(), lambda: False)
    return guard_pairs(reserved_questions(), generate, guard_store(cache, base), partial(on_progress, "the base's answers"))


def run(arguments: argparse.Namespace, console: Console) -> Guarded:
    """Raises ValueError and KmserveError with what the user can mend."""
    ref = module_of(arguments.module)
    if arguments.json is not None:
        require_folder(arguments.json.parent)
    with Bar(console) as on_progress:
        base = base_of(arguments, on_progress)
        module = proven(base, ref)
        measured = guard_kl(base, module, reserved_answers(base, arguments.cache, on_progress))
    if arguments.json is not None:
        with replaced(arguments.json) as file:
            file.write_text(json.dumps(report_of(ref, module, base, measured), indent=2), encoding="utf-8")
    console.print_json(json.dumps(measured.figures()))
    return measured


def report_of(ref: ArtefactRef, module: Artefact, base: BaseModel, measured: Guarded) -> dict[str, Any]:
    """What --json gets."""
    manifest = module.manifest
    return {
        "module": {"digest": ref.digest, "objective": manifest.objective, "seed": manifest.seed, "recipe": manifest.recipe},
        "base": base_in_words(base),
        **measured.figures(),
        "answers": [asdict(answer) for answer in measured.answers],
    }

"""One extractor from a dataset: the only place where its parts are wired together outside a job."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from server.engine.base_model import BaseModel
from server.engine.request import ArtefactRef
from worker.evaluation.apart import Wanted, setup_of, train_apart, untrained
from worker.evaluation.artefacts import TrainedArtefacts, extractor_of
from worker.evaluation.datasets import load_documents
from worker.evaluation.documents import Document
from worker.evaluation.output import require_folder
from worker.evaluation.parts import Bar, LoadEmbedder, Retrievers, base_of, packaged_embedder, passages_in_words
from worker.evaluation.rows import MIXED
from worker.extractor.arguments import MOST_DOCUMENTS, NONE, WORN
from worker.extractor.examples import Asked, Taught
from worker.extractor.pipeline import ExtractorSpec, train_extractor
from worker.extractor.recipe import ExtractorRecipe, extractor_recipe
from worker.extractor.start import manifest_of, proven_start
from worker.training.recipe import recipe_for


def run(arguments: argparse.Namespace, console: Console, load_embedder: LoadEmbedder = packaged_embedder) -> ArtefactRef:
    """Raises ValueError and KmserveError with what the user can mend."""
    start = extractor_of(arguments.start) if arguments.start else None
    recipe = extractor_recipe(arguments.recipe, modules=arguments.modules != NONE, start=manifest_of(start))
    if recipe.learn == "weights" and start is None:
        raise ValueError("weights alone are learned over an extractor that is there: name it with --start")
    _require_together(arguments, recipe)
    require_folder(arguments.out)
    require_folder(arguments.cache)
    with Bar(console) as on_progress:
        base = base_of(arguments, on_progress)
        if start is not None:
            proven_start(base, start, recipe)  # before hours of modules
        documents = chosen(load_documents(arguments.dataset, arguments.data, arguments.split, None), base, arguments)
        retrievers = Retrievers(base, arguments, load_embedder)
        artefacts = TrainedArtefacts(
            base,
            arguments.cache,
            preset=arguments.preset,
            overrides=arguments.module_recipe,
            seed=arguments.seed,
            retriever=retrievers,
            passages=passages_in_words(arguments),
            on_progress=on_progress,
        )
        if arguments.trainers > 1 and arguments.modules != NONE:
            wanted = [Wanted(document=document, objective=_objective(arguments), worn_ke=_worn(arguments, start)) for document in documents]
            train_apart(
                untrained(wanted, artefacts), arguments.trainers, setup_of(arguments, arguments.module_recipe, load_embedder), on_progress
            )
        trained = train_extractor(
            base,
            ExtractorSpec(
                documents=tuple(_taught(document, arguments, artefacts, retrievers, start) for document in documents),
                recipe=recipe,
                seed=arguments.seed,
                directory=arguments.out,
                attempt=1,
                start=start,
            ),
            lambda stage, done, total, unit: on_progress(f"extractor: {stage}", done, total),
            lambda gate: (arguments.out / "gate.json").write_text(json.dumps(asdict(gate), indent=2)),
        )
    console.print_json(json.dumps(asdict(trained.gate)))
    console.print(f"written: {trained.artefact.directory}", soft_wrap=True)
    return trained.artefact


def chosen(documents: Sequence[Document], base: BaseModel, arguments: argparse.Namespace) -> list[Document]:
    """Those with the most questions among the documents that are not too long, in the order of their names. Raises ValueError."""
    short = [d for d in documents if len(base.tokenizer(d.text, add_special_tokens=False)["input_ids"]) <= arguments.most_tokens]
    most = sorted(short, key=lambda document: (-len(document.questions), document.name))[: arguments.documents or MOST_DOCUMENTS]
    if len(most) < (arguments.documents or 2):
        raise ValueError(
            f"{len(short)} documents of split {arguments.split} have at most {arguments.most_tokens} tokens, {arguments.documents or 2} "
            "are wanted: let --most-tokens be larger"
        )
    return sorted(most, key=lambda document: document.name)


def _require_together(arguments: argparse.Namespace, recipe: ExtractorRecipe) -> None:
    """What the modules would have to be for this extractor, before hours of them. Raises ValueError, InvalidInput for their recipe."""
    if arguments.modules == NONE:
        return
    scope = recipe_for(arguments.preset, arguments.module_recipe).scope
    if scope != recipe.scope:
        raise ValueError(f"the modules would have scope {scope} and the extractor {recipe.scope}: name one scope in both recipes")
    if arguments.modules == WORN and recipe.learn != "weights":
        raise ValueError('modules that wear an extractor are right only over its lora: let --recipe say \'{"learn": "weights"}\'')


def _taught(
    document: Document, arguments: argparse.Namespace, artefacts: TrainedArtefacts, retrievers: Retrievers, start: ArtefactRef | None
) -> Taught:
    module = None if arguments.modules == NONE else artefacts.module(document, _objective(arguments), _worn(arguments, start))
    return Taught(
        name=document.name,
        questions=tuple(Asked(question=each.text, answers=each.references) for each in document.questions),
        passages=retrievers(document),
        module=module,
    )


def _objective(arguments: argparse.Namespace) -> str:
    return MIXED if arguments.modules == WORN else str(arguments.modules)


def _worn(arguments: argparse.Namespace, start: ArtefactRef | None) -> ArtefactRef | None:
    return start if arguments.modules == WORN else None

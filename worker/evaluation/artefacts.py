"""Where a row's module and extractor come from: trained on demand and kept by digest, or given as a directory.

    <cache>/modules/<digest>/artefact      a module, and beside it ref.json, which is there once the training has ended well
    <cache>/synthesis/<digest>.jsonl       a document's generated texts, shared by all objectives

A training that was killed goes on from its last checkpoint. Whether serving's gate would let a module pass is written into its manifest and
decides nothing here: the table is to show what each objective is worth.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, get_args

from server.engine.base_model import BaseModel
from server.engine.options import EngineOptions
from server.engine.request import ArtefactRef, Scope
from server.errors import InvalidInput, NothingToLearn
from server.modules.artefact import COMPOSITION, MANIFEST, write_composition
from server.modules.canonical import canonical_json
from server.modules.composition import ones
from server.modules.described import described
from server.modules.manifest import ArtefactKind, parse_manifest
from worker.evaluation.documents import Document
from worker.training.guard import guard_store
from worker.training.objectives.registry import objective_of
from worker.training.pipeline import TrainingSpec, train
from worker.training.recipe import ObjectiveName, Recipe, as_json, for_base, recipe_for, while_wearing

ANY_IMPROVEMENT = -1e6
LEFTOVERS = ("teacher", "checkpoint")
"""Large, and of no use once the module is there."""
PASSAGES = 2
"""Of the gate's open-book figures, as in the trainer process."""

Progress = Callable[[str, int, int], None]
"""(what is going on, done, total)."""
RetrieverOf = Callable[[Document], Callable[[str, int], Sequence[str]]]


class ArtefactUnavailable(ValueError):
    """A row wears something that was not given and cannot be made; the message says what to do."""


class Artefacts(Protocol):
    def module(self, document: Document, objective: str, worn_ke: ArtefactRef | None) -> ArtefactRef:
        """The document's module by this objective, distilled while wearing `worn_ke` if one is named. Raises ArtefactUnavailable."""
        ...

    def has(self, document: Document, objective: str, worn_ke: ArtefactRef | None) -> bool:
        """Whether `module` would train nothing."""
        ...

    def recipe(self, objective: str, *, worn: bool) -> Recipe:
        """The whole recipe of such modules, as their manifests have it. Raises InvalidInput."""
        ...

    def extractor(self, *, ones: bool = False) -> ArtefactRef:
        """`ones`: with every weight of its composition 1. Raises ArtefactUnavailable."""
        ...

    def worn_extractor(self) -> ArtefactRef:
        """What modules wear in their distillation, where a row says so. Raises ArtefactUnavailable."""
        ...


class TrainedArtefacts:
    def __init__(
        self,
        base: BaseModel,
        cache: Path,
        *,
        preset: str,
        overrides: Mapping[str, Any],
        seed: int,
        retriever: RetrieverOf,
        passages: str,
        on_progress: Progress,
        extractor: ArtefactRef | None = None,
        worn_extractor: ArtefactRef | None = None,
    ) -> None:
        """Modules wear `worn_extractor` in their distillation, `extractor` where it is not named. `overrides` are fields of the preset's
        recipe that each objective is trained with, and under an objective's name those of its own:
        `{"summaries": 8, "sdcd": {"batch_size": 4}}`. `passages` names what `retriever` finds: modules that learn beside passages are kept
        by it."""
        self._base = base
        self._cache = cache
        self._preset = preset
        self._overrides = dict(overrides)
        self._seed = seed
        self._retriever = retriever
        self._passages = passages
        self._on_progress = on_progress
        self._extractor = extractor
        self._worn_extractor = worn_extractor

    def extractor(self, *, ones: bool = False) -> ArtefactRef:
        if self._extractor is None:
            raise ArtefactUnavailable("rows with KE need a knowledge extractor: name its directory with --extractor, or leave them out")
        return with_ones(self._extractor, self._cache / "extractors") if ones else self._extractor

    def worn_extractor(self) -> ArtefactRef:
        return self._worn_extractor or self.extractor()

    def module(self, document: Document, objective: str, worn_ke: ArtefactRef | None) -> ArtefactRef:
        """Trains it unless it is there. Raises ArtefactUnavailable for a document of too little text, and what the training raises."""
        recipe = self._recipe(objective, worn_ke is not None)
        folder = self._folder(document, recipe, worn_ke)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(folder):
            if not (folder / "ref.json").exists():
                self._train(document, recipe, folder, worn_ke)
            return _read_ref(folder)

    def has(self, document: Document, objective: str, worn_ke: ArtefactRef | None) -> bool:
        return (self._folder(document, self._recipe(objective, worn_ke is not None), worn_ke) / "ref.json").exists()

    def _folder(self, document: Document, recipe: Recipe, worn_ke: ArtefactRef | None) -> Path:
        return self._cache / "modules" / self._key(document, recipe, worn_ke)

    def recipe(self, objective: str, *, worn: bool) -> Recipe:
        """With what the size of the base and the objective decide, which the keys of the cache leave open."""
        recipe = self._recipe(objective, worn)
        return objective_of(recipe).narrowed(for_base(recipe, self._base.model.num_parameters()))

    def _recipe(self, objective: str, worn: bool) -> Recipe:
        """Raises InvalidInput for what is no field."""
        own = self._overrides.get(objective, {})
        if not isinstance(own, Mapping):
            raise InvalidInput(
                f"{objective} in the recipe holds the fields of its modules alone, as {{{objective!r}: {{'max_steps': 100}}}}"
            )
        of_all = {name: value for name, value in self._overrides.items() if name not in get_args(ObjectiveName)}
        changed = while_wearing(self._preset) if worn else {}
        wanted = {"objective": objective, "gate_improvement": ANY_IMPROVEMENT, **changed, **of_all, **own}
        if recipe_for(self._preset, {}).objective == objective:
            del wanted["objective"]
        return recipe_for(self._preset, wanted)

    def _key(self, document: Document, recipe: Recipe, worn_ke: ArtefactRef | None) -> str:
        worn = [] if worn_ke is None else [worn_ke.digest, worn_ke.composition]
        read = [self._passages] if recipe.with_passages else []
        return _digest(
            [self._base.fingerprint, str(self._base.dtype), document.name, document.text, as_json(recipe), self._seed, *worn, *read]
        )

    def _train(self, document: Document, recipe: Recipe, folder: Path, worn_ke: ArtefactRef | None) -> None:
        self._share_synthesis(document, folder)
        spec = TrainingSpec(
            text=document.text,
            title=document.name,
            revision_sha256=hashlib.sha256(document.text.encode()).hexdigest(),
            recipe=recipe,
            seed=self._seed,
            directory=folder,
            attempt=1,
            extractor=worn_ke,
            guard_answers=guard_store(self._cache, self._base),
        )
        what = f"{recipe.objective}{'' if worn_ke is None else ' (worn)'} of {document.name}"
        try:
            trained = train(
                self._base,
                spec,
                EngineOptions(max_batch=recipe.synthesis_batch),
                lambda question: self._retriever(document)(question, PASSAGES),
                lambda stage, done, total, unit: self._on_progress(f"{what}: {stage}", done, total),
                lambda: False,
                lambda gate: None,
            )
        except NothingToLearn as error:
            raise ArtefactUnavailable(f"there can be no module, {what}: {error}") from None
        _write_ref(folder, trained.artefact)
        for name in LEFTOVERS:
            shutil.rmtree(folder / name, ignore_errors=True)

    def _share_synthesis(self, document: Document, folder: Path) -> None:
        """Generations are stored under what was asked, so that one file serves every objective on this base."""
        shared = self._cache / "synthesis" / f"{_digest([self._base.fingerprint, str(self._base.dtype), document.text])}.jsonl"
        shared.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shared.touch()
        link = folder / "synthesis.jsonl"
        if not link.is_symlink():
            link.symlink_to(shared.absolute())


def extractor_of(directory: Path) -> ArtefactRef:
    """The reference of an extractor's directory by the digests that its files have. Raises ArtefactUnavailable."""
    return _described(directory, ArtefactKind.KNOWLEDGE_EXTRACTOR)


def with_ones(extractor: ArtefactRef, folder: Path) -> ArtefactRef:
    """The same lora, every weight 1: a copy under `folder`, made once."""
    directory = folder / f"{_digest([extractor.digest, extractor.manifest_sha256])}-ones"
    if not directory.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder) as temporary:
            copy = Path(temporary) / "copy"
            shutil.copytree(extractor.directory, copy, ignore=shutil.ignore_patterns(COMPOSITION))
            write_composition(copy, ones(parse_manifest((copy / MANIFEST).read_bytes()).targets))
            with contextlib.suppress(OSError):  # another evaluation was faster
                copy.rename(directory)
    return extractor_of(directory)


def module_of(directory: Path) -> ArtefactRef:
    """The same of a knowledge module's."""
    return _described(directory, ArtefactKind.KNOWLEDGE_MODULE)


def _described(directory: Path, kind: ArtefactKind) -> ArtefactRef:
    try:
        return described(directory, kind)
    except ValueError as error:
        raise ArtefactUnavailable(str(error)) from None


def _write_ref(folder: Path, ref: ArtefactRef) -> None:
    """In one step: a torn reference would stand for a whole module."""
    directory = ref.directory.absolute().relative_to(folder.absolute())
    temporary = folder / "ref.json.part"
    temporary.write_text(json.dumps({**asdict(ref), "directory": str(directory)}))
    temporary.replace(folder / "ref.json")


def _read_ref(folder: Path) -> ArtefactRef:
    values = json.loads((folder / "ref.json").read_text())
    return ArtefactRef(**{**values, "directory": folder / values["directory"], "scope": Scope(values["scope"])})


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two evaluations do not train one module at the same time."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()

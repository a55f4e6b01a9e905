"""What a trainer reads out of its spec.json: artefacts, a document's passages, an extractor's documents. worker/spec.py wrote it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from server.engine.request import ArtefactRef, Scope

if TYPE_CHECKING:
    from server.retrieval.types import Embedding
    from worker.extractor.examples import Taught

GENERATOR_API_KEY: Final = "KMSERVE_GENERATOR_API_KEY"
"""The environment variable of the one thing that the spec does not hold."""
LoadEmbedder = Callable[[], "Embedding"]


def artefact_ref(values: dict[str, Any] | None) -> ArtefactRef | None:
    if values is None:
        return None
    return ArtefactRef(
        digest=values["digest"],
        manifest_sha256=values["manifest_sha256"],
        directory=Path(values["directory"]),
        scope=Scope(values["scope"]),
        composition=values.get("composition"),
    )


def embedder_of(spec: dict[str, Any]) -> LoadEmbedder:
    """Loads the model when it is first called: a training without passages needs none."""

    @lru_cache(1)
    def load() -> Embedding:
        from server.retrieval.embedding import Embedder

        return Embedder(spec["embedder"])

    return load


class Nearest:
    """Passages of one document by cosine similarity, in memory: the vector index belongs to the API process."""

    def __init__(self, texts: Sequence[str], load: LoadEmbedder) -> None:
        self._texts = texts
        self._load = load
        self._ranked: dict[str, list[int]] = {}

    def __call__(self, question: str, k: int) -> Sequence[str]:
        """The `k` nearest, or all where there are fewer, best last."""
        if not self._texts:
            return ()
        return [self._texts[index] for index in self._rank(question)[-k:]]

    def _rank(self, question: str) -> list[int]:
        """Numbers of the passages, best last."""
        if question not in self._ranked:
            (query,) = self._load().encode([question])
            scores = [sum(a * b for a, b in zip(query, vector, strict=True)) for vector in self._vectors]
            self._ranked[question] = sorted(range(len(scores)), key=scores.__getitem__)
        return self._ranked[question]

    @cached_property
    def _vectors(self) -> list[list[float]]:
        return self._load().encode(self._texts)


def taught_documents(spec: dict[str, Any], load: LoadEmbedder) -> tuple[Taught, ...]:
    """The documents of an extractor's job that questions are about, in the spec's order."""
    from worker.extractor.examples import Asked, Taught

    asked: dict[str, list[Asked]] = {}
    for each in spec["questions"]:
        asked.setdefault(each["document_id"], []).append(Asked(question=each["question"], answers=tuple(each["answers"])))
    return tuple(
        Taught(
            name=document["title"],
            questions=tuple(asked[document["document_id"]]),
            passages=Nearest(document["passages"], load),
            module=artefact_ref(document["module"]),
        )
        for document in spec["documents"]
        if document["document_id"] in asked
    )

"""The datasets by name, all behind one function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.evaluation import fairytaleqa, narrativeqa, quality
from worker.evaluation.documents import Document, shortest


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """`load(data, split)` gives all documents of a split or raises DatasetError."""

    load: Callable[[Path, str], list[Document]]
    splits: tuple[str, ...]
    """The first is meant where none is named."""


DATASETS: Mapping[str, Dataset] = {
    "fairytaleqa": Dataset(load=fairytaleqa.load, splits=("val", "train", "test")),
    "quality": Dataset(load=quality.load, splits=("dev", "train")),
    "narrativeqa": Dataset(load=narrativeqa.load, splits=("valid", "train", "test")),
}


def load_documents(name: str, data: Path, split: str | None = None, count: int | None = None) -> list[Document]:
    """The `count` shortest documents that have questions, or all of them. Raises ValueError where there are fewer, DatasetError."""
    dataset = DATASETS[name]
    split = split or dataset.splits[0]
    if split not in dataset.splits:
        raise ValueError(f"{name} has no split {split!r}: use one of {', '.join(dataset.splits)}")
    documents = [document for document in dataset.load(data, split) if document.questions]
    if not documents or len(documents) < (count or 0):
        raise ValueError(f"{data} holds {len(documents)} documents with questions in its split {split}, {count or 1} are wanted")
    return shortest(documents, count)

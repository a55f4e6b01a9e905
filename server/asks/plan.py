"""Which mode answers, with which module, over which revision: pure rules over values that the database gave.

A document's module is never replaced by something else without a word: the caller gets an error, or said `fallback: retrieval`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from server.asks.schemas import Fallback, Mode
from server.db.tables import ModuleState
from server.errors import Conflict, ModuleCorrupt, ModuleNotReady, ModuleWrongBase, NotRetrievable, Unavailable
from server.modules.artefact import DAMAGED, WRONG_BASE

OR_FALL_BACK: Final = ", or ask with `fallback: retrieval`"


@dataclass(frozen=True, kw_only=True)
class ModuleVersion:
    """A published module as its row describes it."""

    id: str
    document_id: str
    revision_id: str
    version: int
    digest: str
    manifest_sha256: str
    base_fingerprint: str
    wears: str | None
    scope: str
    gate: dict[str, Any]
    state: ModuleState


@dataclass(frozen=True, kw_only=True)
class Source:
    """A document that may be asked: its current revision, whether that is indexed, its active module and its newest job. `tokens` were
    counted when it was indexed."""

    document_id: str
    revision_id: str
    blob: str
    indexed: bool
    tokens: int
    module: ModuleVersion | None
    job_id: str | None
    job_state: str | None

    def named(self) -> dict[str, Any]:
        """Members of the problem document of an error about this source."""
        job = {"job": f"/jobs/{self.job_id}", "job_state": self.job_state} if self.job_id else {}
        return {"document_id": self.document_id, **job}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """`mode` is never `auto`; module, passages and citations are all of `revision_id`."""

    mode: Mode
    revision_id: str
    module: ModuleVersion | None = None

    @property
    def needs_passages(self) -> bool:
        return self.mode in (Mode.OPEN_BOOK, Mode.RETRIEVAL)


def choose(mode: Mode, fallback: Fallback, source: Source, fingerprint: str, *, current_only: bool = False) -> Choice:
    """How a question about one document is answered. `current_only` refuses a module of an older revision than the document's.

    Raises ModuleNotReady, ModuleCorrupt, ModuleWrongBase where the mode needs a module that cannot answer, and NotRetrievable where
    the text is not indexed yet.
    """
    if mode == Mode.AUTO:
        mode = Mode.OPEN_BOOK if _measured_better(source) else Mode.RETRIEVAL
    if mode in (Mode.CLOSED_BOOK, Mode.OPEN_BOOK):
        try:
            module = _usable(source, fingerprint, current_only)
            return Choice(mode=mode, revision_id=module.revision_id, module=module)
        except (Conflict, Unavailable):
            if fallback == Fallback.ERROR:
                raise
            mode = Mode.RETRIEVAL
    require_indexed(source)
    return Choice(mode=mode, revision_id=source.revision_id)


def require_indexed(source: Source) -> None:
    """Raises NotRetrievable."""
    if not source.indexed:
        raise NotRetrievable("this document is not indexed yet; wait for its job, or look at why it failed", **source.named())


def _measured_better(source: Source) -> bool:
    """Whether the gate of the current revision's module found it better together with passages than passages alone."""
    module = source.module
    return module is not None and module.revision_id == source.revision_id and module.gate.get("auto_mode") == Mode.OPEN_BOOK


def _usable(source: Source, fingerprint: str, current_only: bool) -> ModuleVersion:
    module = source.module
    if module is None or (current_only and module.revision_id != source.revision_id):
        detail = "this document has no published module yet; follow its job, or ask with `fallback: retrieval`"
        raise ModuleNotReady(detail, **source.named())
    if module.state == ModuleState.QUARANTINED:
        raise ModuleCorrupt(DAMAGED + OR_FALL_BACK, document_id=source.document_id)
    if module.base_fingerprint != fingerprint:
        raise ModuleWrongBase(WRONG_BASE + OR_FALL_BACK, document_id=source.document_id)
    return module

"""What a trainer is told: everything it needs of the database, the blobs and the settings, so that it opens none of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db import documents, extractors
from server.db.blobs import BlobStore
from server.db.tables import Document, Job, Passage, Revision
from server.errors import DocumentTextMissing
from server.modules.store import ModuleStore
from server.settings import Settings
from worker.reading import GENERATOR_API_KEY


def build_spec(session: Session, job: Job, settings: Settings, blobs: BlobStore, store: ModuleStore) -> dict[str, Any]:
    """Raises DocumentNotFound when the document was deleted meanwhile, DocumentTextMissing when only its text is gone."""
    document = documents.get_live(session, job.tenant_id, job.subject.document_id)
    revision = session.scalars(select(Revision).where(Revision.id == job.revision_id, Revision.tenant_id == job.tenant_id)).one()
    return {
        "kind": "module",
        "job_id": job.id,
        "attempt": job.attempt,
        "tenant": job.tenant_id,
        "preset": job.params.get("preset") or document.preset,
        "recipe": job.params.get("recipe") or {},
        "seed": job.params.get("seed", 0),
        "text": _text_of(blobs, revision),
        "passages": _passages(session, job),
        "extractor": active_extractor(session, job.tenant_id, store) if settings.modules_wear_extractor else None,
        "generator": _generator(settings),
        **_document(document, revision),
        **machine(settings),
    }


def _text_of(blobs: BlobStore, revision: Revision) -> str:
    """Raises DocumentTextMissing."""
    try:
        return blobs.read_text(f"{revision.blob}.txt")
    except FileNotFoundError:
        raise DocumentTextMissing("the document's parsed text is missing; upload the document again") from None


def _document(document: Document, revision: Revision) -> dict[str, Any]:
    title = {"document_id": document.id, "document_title": document.title}
    return {**title, "revision_id": revision.id, "revision_sha256": revision.sha256}


def secrets_of(settings: Settings) -> dict[str, str]:
    """What a trainer is told by its environment alone: its spec lies on the disk."""
    key = settings.generator_api_key
    return {} if key is None else {GENERATOR_API_KEY: key.get_secret_value()}


def _generator(settings: Settings) -> dict[str, str] | None:
    if settings.generator_url is None or settings.generator_model is None:
        return None
    return {"url": settings.generator_url, "model": settings.generator_model}


def machine(settings: Settings) -> dict[str, Any]:
    """What a trainer is run with, whatever it trains."""
    return {
        "base": {"source": settings.base_model, "models_dir": str(settings.root / "models")},
        "embedder": settings.embedder,
        "device": settings.device,
        "dtype": settings.dtype,
        "engine_threads": settings.engine_threads,
        "trainer_threads": settings.trainer_threads,
        "cores_dir": str(settings.root / "cores"),
        "passage_tokens": settings.passage_tokens,
    }


def _passages(session: Session, job: Job) -> list[dict[str, Any]]:
    mine = select(Passage).where(Passage.tenant_id == job.tenant_id, Passage.revision_id == job.revision_id).order_by(Passage.ordinal)
    return [{"id": passage.id, "text": passage.text, "ordinal": passage.ordinal} for passage in session.scalars(mine)]


def active_extractor(session: Session, owner: str, store: ModuleStore) -> dict[str, Any] | None:
    extractor = extractors.active(session, owner)
    if extractor is None:
        return None
    return {
        "digest": extractor.lora_digest,
        "composition": extractor.composition_digest,
        "manifest_sha256": extractor.manifest_sha256,
        "scope": extractor.scope,
        "directory": str(store.extractor_path(extractor.owner, extractor.composition_digest)),
    }


def artefacts_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """What the trainer will read from the modules' store."""
    found = [spec["extractor"], *(document["module"] for document in spec.get("documents", ()))]
    return [artefact for artefact in found if artefact is not None]

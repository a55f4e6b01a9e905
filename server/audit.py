"""The audit trail: who did what to which document, and which version answered. Never a question, an answer or a document's text."""

from __future__ import annotations

import uuid
from typing import Any

from asgi_correlation_id import correlation_id
from sqlalchemy import insert
from sqlalchemy.orm import Session

from server.db.clock import db_now
from server.db.tables import Audit


def record(session: Session, tenant_id: str, action: str, *, document_id: str | None = None, **detail: Any) -> None:
    row = {"id": f"aud_{uuid.uuid4().hex}", "tenant_id": tenant_id, "request_id": correlation_id.get() or ""}
    session.execute(insert(Audit).values(**row, action=action, document_id=document_id, detail=detail, created_at=db_now()))

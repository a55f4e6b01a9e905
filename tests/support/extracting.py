"""Documents, questions and extractors for tests of `/extractors`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import httpx2

from server.db import jobs
from server.db.tables import Job, JobKind
from server.transactions import writing
from tests.support import rows
from tests.support.api import ACME, FINGERPRINT, Api


async def indexed(api: Api, text: str = "Staff get 31 days.", *, tenant: str = ACME, client: httpx2.AsyncClient | None = None) -> str:
    """A document that can be asked and learned from; its id."""
    document = await api.uploaded(text, client=client, train="never")
    await api.index(document["id"], [text], tenant=tenant)
    return str(document["id"])


def question(document_id: str, **changes: Any) -> dict[str, Any]:
    return {"document_id": document_id, "question": "How many days?", "answer": "31 days", **changes}


async def claimed(api: Api) -> Job:
    job = await writing(api.parts.database, jobs.claim, JobKind.EXTRACTOR, "test", 60.0)
    assert job is not None
    return job


async def published(api: Api, seed: str, *, owner: str = ACME, active: bool = False, files: bool = True, **changes: Any) -> str:
    """The extractor `ext_<seed>`, over a lora of its own unless told otherwise; its id."""
    lora = changes.pop("lora_digest", lora_of(seed))
    plain = {"id": f"ext_{seed}", "composition_digest": composition_of(seed, lora), "base_fingerprint": FINGERPRINT}
    extractor_id: str = await api.sql(lambda session: rows.extractor(session, owner, lora, active=active, **{**plain, **changes}))
    if files:
        directory(api, seed, owner=owner, lora=lora).mkdir(parents=True)
    return extractor_id


def lora_of(seed: str) -> str:
    return hashlib.sha256(seed.encode()).hexdigest()


def composition_of(seed: str, lora: str) -> str:
    return hashlib.sha256(f"{seed}{lora}".encode()).hexdigest()


def directory(api: Api, seed: str, *, owner: str = ACME, lora: str | None = None) -> Path:
    return api.parts.modules.extractor_path(owner, composition_of(seed, lora or lora_of(seed)))


async def wearing(api: Api, lora: str, text: str, *, tenant: str = ACME) -> str:
    """A document that is answered by a module which wears this lora."""
    client = api.client if tenant == ACME else api.stranger
    document = await api.uploaded(text, client=client)
    await api.index(document["id"], [text], tenant=tenant)
    await api.train(document["id"], tenant=tenant, wears=lora)
    return str(document["id"])

"""The passages nearest to a text, of live documents of one tenant, best first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from server.asks import repository
from server.asks.repository import FoundPassage
from server.asks.schemas import Citation, Search
from server.parts import Parts
from server.transactions import reading


async def nearest(
    parts: Parts, tenant_id: str, text: str, k: int, *, document_ids: Sequence[str] | None = None, revision_ids: Sequence[str] | None = None
) -> list[FoundPassage]:
    """At most `k`. The index may lag behind the rows: what the rows do not confirm is left out."""
    if k == 0:
        return []
    models = parts.models.get()
    [vector] = await asyncio.to_thread(models.embedding.encode, [text])
    hits = await models.index.search(tenant_id, vector, k, document_ids, revision_ids)
    scores = {hit.passage_id: hit.score for hit in hits}
    found = await reading(parts.database, repository.passages, tenant_id, scores, revision_ids)
    return sorted(found, key=lambda passage: (-passage.score, passage.id))


async def search(parts: Parts, tenant_id: str, wanted: Search) -> list[Citation]:
    """Raises DocumentNotFound."""
    ids = None if wanted.document_ids is None else tuple(dict.fromkeys(wanted.document_ids))
    if ids is not None:
        await reading(parts.database, repository.sources, tenant_id, ids)
    return [cited(passage) for passage in await nearest(parts, tenant_id, wanted.query, wanted.top_k, document_ids=ids)]


def cited(passage: FoundPassage) -> Citation:
    return Citation(
        passage_id=passage.id,
        document_id=passage.document_id,
        revision=passage.revision_id,
        filename=passage.filename,
        page=passage.page,
        char_start=passage.char_start,
        char_end=passage.char_end,
        quote=passage.text,
        score=round(passage.score, 6),
    )

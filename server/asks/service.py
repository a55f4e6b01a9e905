"""From a question to what the engine is asked: resolve -> retrieve, while module and extractor are loaded -> build the prompt.

Every read is a transaction of its own and is over before the engine starts.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from server.asks import repository
from server.asks.plan import Choice, ModuleVersion, Source, choose, require_indexed
from server.asks.repository import Extractors, FoundPassage
from server.asks.retrieval import nearest
from server.asks.schemas import Ask, KnowledgeModule, Mode, Used
from server.db.tables import Extractor
from server.engine.prompt import Prompt, Turn
from server.engine.request import ArtefactRef, Scope
from server.errors import InvalidHistory, InvalidInput, NotRetrievable
from server.modules.composition import ExtractorVersion, extractor_for
from server.parts import Models, Parts
from server.transactions import reading

_NO_PASSAGE: Final = (
    "no passage is indexed that could answer; upload a document, wait for its job, or after a change of the embedding model `retry` it"
)


@dataclass(frozen=True, kw_only=True)
class Worn:
    """The adapters of one answer. They are being loaded from the moment this is known."""

    module: ArtefactRef | None = None
    extractor: ArtefactRef | None = None

    @property
    def adapters(self) -> tuple[ArtefactRef, ...]:
        return tuple(adapter for adapter in (self.module, self.extractor) if adapter is not None)


@dataclass(frozen=True, kw_only=True)
class Material:
    """What an answer is made of, before the prompt. `texts` are what the prompt gets, best first; `cited` the passages among them."""

    mode: Mode
    worn: Worn = Worn()
    document_id: str | None = None
    module: ModuleVersion | None = None
    cited: tuple[FoundPassage, ...] = ()
    texts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that the engine needs, and what the answer will say that it used. `passages` are those in the prompt, best first; `document_id`
    is the one document that was asked, or led."""

    prompt: Prompt
    worn: Worn
    document_id: str | None
    module: ModuleVersion | None
    passages: tuple[FoundPassage, ...]
    used: Used


async def plan(parts: Parts, tenant_id: str, ask: Ask) -> Plan:
    """Raises DocumentNotFound, NotRetrievable, ModuleNotReady, ModuleCorrupt, ModuleWrongBase, ExtractorUnavailable, ContextLimit,
    InvalidHistory, InvalidInput, Starting."""
    models = parts.models.get()
    history = _history(ask)
    material = await _material(parts, models, tenant_id, ask)
    reserve = max(ask.max_tokens, await asyncio.to_thread(models.prompter.longest, ask.score or ()))
    least = min(1, len(material.texts))
    fitted = await asyncio.to_thread(models.prompter.fit, ask.question, material.texts, history, reserve=reserve, least=least)
    extractor = material.worn.extractor
    kept, dropped = material.cited[: fitted.kept], material.cited[fitted.kept :]
    return Plan(
        prompt=fitted.prompt,
        worn=material.worn,
        document_id=material.document_id,
        module=material.module,
        passages=kept,
        used=Used(
            mode=material.mode,
            base=models.base_name,
            km=None if material.module is None else KnowledgeModule.model_validate(material.module),
            ke=None if extractor is None else extractor.digest,
            composition=None if extractor is None else extractor.composition,
            passages=[passage.id for passage in kept],
            dropped_passages=[passage.id for passage in dropped],
        ),
    )


async def _material(parts: Parts, models: Models, tenant_id: str, ask: Ask) -> Material:
    found = await reading(parts.database, repository.sources, tenant_id, ask.documents or ())
    if ask.mode == Mode.BASE:
        return Material(mode=Mode.BASE)
    if len(found) == 1:
        return await _about_one(parts, models, tenant_id, ask, found[0])
    return await _about_many(parts, models, tenant_id, ask, found)


async def _about_one(parts: Parts, models: Models, tenant_id: str, ask: Ask, source: Source) -> Material:
    choice = choose(ask.mode, ask.fallback, source, models.base_fingerprint)
    worn = await _dress(parts, models, tenant_id, choice.mode, choice.module)
    if choice.mode == Mode.IN_CONTEXT:
        models.prompter.require_room(source.tokens, ask.max_tokens)
        return Material(mode=choice.mode, document_id=source.document_id, texts=(await _whole_text(parts, source),))
    passages: Sequence[FoundPassage] = ()
    if choice.needs_passages:
        within = {"document_ids": (source.document_id,), "revision_ids": (choice.revision_id,)}
        passages = await nearest(parts, tenant_id, ask.question, ask.top_k, **within)
        _require_some(passages, ask, source, choice)
    return _made_of(source, choice, worn, passages)


async def _about_many(parts: Parts, models: Models, tenant_id: str, ask: Ask, named: Sequence[Source]) -> Material:
    """Passages of all the documents, and the module of the one that most of them are of."""
    if ask.mode == Mode.IN_CONTEXT:
        raise InvalidInput("in_context puts one document in the prompt: name it by document_id")
    if ask.top_k == 0 and ask.mode != Mode.RETRIEVAL:
        raise InvalidInput("without passages nothing tells which of several documents to ask: name one, or let top_k be at least 1")
    for source in named:
        require_indexed(source)
    # No module can make another extractor than the active one be worn: that one need not wait for the passages.
    worn = await _dress(parts, models, tenant_id, Mode.RETRIEVAL, None) if ask.mode == Mode.RETRIEVAL else None
    ids = None if ask.documents is None else [source.document_id for source in named]
    revisions = None if ids is None else [source.revision_id for source in named]
    passages = await nearest(parts, tenant_id, ask.question, ask.top_k, document_ids=ids, revision_ids=revisions)
    _require_some(passages, ask, None, None)
    if not passages:
        return Material(mode=Mode.RETRIEVAL, worn=worn or Worn())
    [source] = await reading(parts.database, repository.sources, tenant_id, [leading(passages)])
    choice = choose(ask.mode, ask.fallback, source, models.base_fingerprint, current_only=True)
    worn = worn or await _dress(parts, models, tenant_id, choice.mode, choice.module)
    return _made_of(source, choice, worn, passages if choice.needs_passages else ())


def leading(passages: Sequence[FoundPassage]) -> str:
    """The document that most passages are of; of several such, the one with the best passage."""
    counts = Counter(passage.document_id for passage in passages)
    return max(counts, key=lambda document_id: (counts[document_id], max(p.score for p in passages if p.document_id == document_id)))


def _made_of(source: Source, choice: Choice, worn: Worn, passages: Sequence[FoundPassage]) -> Material:
    texts = tuple(passage.text for passage in passages)
    return Material(mode=choice.mode, worn=worn, document_id=source.document_id, module=choice.module, cited=tuple(passages), texts=texts)


def _require_some(passages: Sequence[FoundPassage], ask: Ask, source: Source | None, choice: Choice | None) -> None:
    """An answer that is to stand on passages never stands on the base model alone, unless it was asked for `retrieval` of none."""
    named = {} if source is None else source.named()
    if ask.top_k and not passages:
        raise NotRetrievable(_NO_PASSAGE, **named)
    if not ask.top_k and choice is not None and choice.mode == Mode.RETRIEVAL != ask.mode:
        raise InvalidInput("no module answers this question and `top_k` allows no passage; let top_k be at least 1", **named)


async def _whole_text(parts: Parts, source: Source) -> str:
    try:
        return await asyncio.to_thread(parts.blobs.read_text, f"{source.blob}.txt")
    except FileNotFoundError:
        raise NotRetrievable("this document's text is not there; upload it again", **source.named()) from None


async def _dress(parts: Parts, models: Models, tenant_id: str, mode: Mode, module: ModuleVersion | None) -> Worn:
    """What the answer will wear, loading from now on. Raises ExtractorUnavailable."""
    if mode in (Mode.BASE, Mode.IN_CONTEXT):
        return Worn()
    worn = _wear(parts, tenant_id, module, await reading(parts.database, repository.worn, tenant_id))
    for adapter in worn.adapters:
        models.engine.prefetch(adapter)
    return worn


def _wear(parts: Parts, tenant_id: str, module: ModuleVersion | None, extractors: Extractors) -> Worn:
    """Raises ExtractorUnavailable."""
    versions = {_version(row): row for row in extractors.versions}
    active = None if extractors.active is None else _version(extractors.active)
    chosen = extractor_for(None if module is None else module.wears, active, tuple(versions))
    row = None if chosen is None else versions[chosen]
    return Worn(
        module=None if module is None else _module_ref(parts, tenant_id, module),
        extractor=None if row is None else _extractor_ref(parts, row),
    )


def _module_ref(parts: Parts, tenant_id: str, module: ModuleVersion) -> ArtefactRef:
    return ArtefactRef(
        digest=module.digest,
        manifest_sha256=module.manifest_sha256,
        directory=parts.modules.path(tenant_id, module.document_id, module.digest),
        scope=Scope(module.scope),
    )


def _extractor_ref(parts: Parts, row: Extractor) -> ArtefactRef:
    return ArtefactRef(
        digest=row.lora_digest,
        composition=row.composition_digest,
        manifest_sha256=row.manifest_sha256,
        directory=parts.modules.extractor_path(row.owner, row.composition_digest),
        scope=Scope(row.scope),
    )


def _version(row: Extractor) -> ExtractorVersion:
    return ExtractorVersion(lora=row.lora_digest, composition=row.composition_digest)


def _history(ask: Ask) -> tuple[Turn, ...]:
    turns = tuple(Turn(role=message.role, content=message.content) for message in ask.messages)
    expected = ("user", "assistant") * (len(turns) // 2 + 1)
    if len(turns) % 2 or any(turn.role != role for turn, role in zip(turns, expected, strict=False)):
        raise InvalidHistory("`messages` alternate from a user's to an assistant's; the question itself is not among them")
    return turns

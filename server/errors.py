"""Every error a caller can meet, drawn once.

    KmserveError
    ├── InvalidInput            422: unknown_mode, context_limit, no_text_layer, invalid_questions, idempotency_key_reused, ...
    ├── Unauthorized            401: unauthorized
    ├── Forbidden               403: scope_missing
    ├── NotFound                404: document_not_found, job_not_found, extractor_not_found, api_key_not_found
    ├── MethodNotAllowed        405: method_not_allowed
    ├── Conflict                409: module_not_ready, not_retrievable, idempotency_in_flight, extractor_in_use, ...
    ├── TooLarge                413: upload_too_large, request_too_large, document_too_long
    ├── UnsupportedMediaType    415: unsupported_media_type
    ├── TooManyRequests         429: engine_busy (carries retry_after, seconds)
    ├── Unavailable             503: module_corrupt, module_wrong_base, module_unsupported, module_missing,
    │                                module_unreadable, extractor_unavailable, base_model_not_found, base_model_unusable,
    │                                embedder_not_found, device_unavailable, engine_stopped, index_mismatch, index_unavailable, starting,
    │                                database_unavailable, object_store_unusable, object_store_unavailable
    └── JobFailure              ends a job, never a request: gate_not_passed, generator_unavailable, gpu_busy, trainer_crashed, ...

Standard library only: the engine and the trainer raise these too. A message says what to do next and never holds a path, SQL or
a secret. `extra` are further machine-readable members of the problem document.
"""

from __future__ import annotations

from typing import Any, ClassVar


class KmserveError(Exception):
    """`status` is the HTTP status, `code` the stable machine-readable name, `detail` a sentence for people."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra


class InvalidInput(KmserveError):
    status = 422
    code = "invalid_input"


class UnknownMode(InvalidInput):
    code = "unknown_mode"


class InvalidHistory(InvalidInput):
    """`messages` do not alternate user and assistant, or do not end with an assistant's."""

    code = "invalid_history"


class ContextLimit(InvalidInput):
    """Prompt and answer do not fit the model's context; `extra` holds prompt_tokens, max_tokens, limit."""

    code = "context_limit"


class NoTextLayer(InvalidInput):
    code = "no_text_layer"


class EncryptedDocument(InvalidInput):
    code = "encrypted_document"


class EmptyDocument(InvalidInput):
    code = "empty_document"


class BrokenDocument(InvalidInput):
    code = "broken_document"


class UndecodableText(InvalidInput):
    code = "undecodable_text"


class ParseLimit(InvalidInput):
    """Parsing took more time or memory than the settings allow."""

    code = "parse_limit"


class InvalidQuestions(InvalidInput):
    """Questions that an extractor cannot learn from; `extra["errors"]` says which lines and why."""

    code = "invalid_questions"


class IdempotencyKeyReused(InvalidInput):
    code = "idempotency_key_reused"


class ScopeNotExportable(InvalidInput):
    code = "scope_not_exportable"


class Unauthorized(KmserveError):
    status = 401
    code = "unauthorized"


class Forbidden(KmserveError):
    status = 403
    code = "scope_missing"


class NotFound(KmserveError):
    status = 404
    code = "not_found"


class MethodNotAllowed(KmserveError):
    status = 405
    code = "method_not_allowed"


class DocumentNotFound(NotFound):
    """Absent, deleted or another tenant's: the three are told apart nowhere."""

    code = "document_not_found"


class JobNotFound(NotFound):
    code = "job_not_found"


class ExtractorNotFound(NotFound):
    """Absent, deleted or another tenant's."""

    code = "extractor_not_found"


class ApiKeyNotFound(NotFound):
    code = "api_key_not_found"


class Conflict(KmserveError):
    status = 409
    code = "conflict"


class ModuleNotReady(Conflict):
    """`extra["job"]` links the job that will publish the module, when there is one."""

    code = "module_not_ready"


class NotRetrievable(Conflict):
    """The document's passages are not indexed yet."""

    code = "not_retrievable"


class NotCancellable(Conflict):
    code = "not_cancellable"


class NotRetryable(Conflict):
    code = "not_retryable"


class JobUnderWay(Conflict):
    """One training of a document at a time."""

    code = "job_under_way"


class IdempotencyInFlight(Conflict):
    code = "idempotency_in_flight"


class ExtractorNotServable(Conflict):
    """Of another base model, or without its files: active, it would stop every answer that wears it."""

    code = "extractor_not_servable"


class ExtractorInUse(Conflict):
    """Active, or the only one over a lora that modules wear."""

    code = "extractor_in_use"


class TooLarge(KmserveError):
    status = 413
    code = "upload_too_large"


class RequestTooLarge(TooLarge):
    """A body that is not an upload is larger than any legal one."""

    code = "request_too_large"


class DocumentTooLong(TooLarge):
    code = "document_too_long"


class UnsupportedMediaType(KmserveError):
    status = 415
    code = "unsupported_media_type"


class TooManyRequests(KmserveError):
    status = 429
    code = "engine_busy"

    def __init__(self, detail: str, retry_after: int = 1, **extra: Any) -> None:
        super().__init__(detail, **extra)
        self.retry_after = retry_after


class DeadlineExceeded(KmserveError):
    status = 504
    code = "deadline_exceeded"


class Unavailable(KmserveError):
    status = 503
    code = "unavailable"


class ArtefactRefused(Unavailable):
    """An artefact that may not be used; `reason` is for the log. It is always one of the kinds below."""

    code = "artefact_refused"

    def __init__(self, detail: str, reason: str = "", **extra: Any) -> None:
        super().__init__(detail, **extra)
        self.reason = reason or detail


class ModuleCorrupt(ArtefactRefused):
    """The artefact's files do not prove what the database expects: the only kind that is put in quarantine, with its `reason`."""

    code = "module_corrupt"


class ModuleWrongBase(ArtefactRefused):
    code = "module_wrong_base"


class ModuleUnsupported(ArtefactRefused):
    """An intact artefact that asks for more than this release or these settings have: a newer schema, a higher rank."""

    code = "module_unsupported"


class ModuleMissing(ArtefactRefused):
    """The artefact's directory is not there: perhaps its store is not."""

    code = "module_missing"


class ModuleUnreadable(ArtefactRefused):
    """The disk or its permissions do not let the artefact be read; that may pass."""

    code = "module_unreadable"


class ExtractorUnavailable(Unavailable):
    """The module was distilled wearing an extractor that cannot be served: it is never served with another one, or alone."""

    code = "extractor_unavailable"


class BaseModelNotFound(Unavailable):
    """The configured base model is no installed package, directory, file or reachable hub id."""

    code = "base_model_not_found"


class EmbedderNotFound(Unavailable):
    """The configured embedding model is no installed package, directory or reachable hub id."""

    code = "embedder_not_found"


class BaseModelUnusable(Unavailable):
    """The base model's files cannot be loaded or converted, or it attends in a way that the engine does not serve."""

    code = "base_model_unusable"


class DeviceUnavailable(Unavailable):
    """The configured device is not there."""

    code = "device_unavailable"


class Starting(Unavailable):
    """The base model is still being prepared or loaded; `extra` says how far that is."""

    code = "starting"


class DatabaseUnavailable(Unavailable):
    code = "database_unavailable"


class EngineStopped(Unavailable):
    code = "engine_stopped"


class IndexMismatch(Unavailable):
    """The vector index was built with another embedding model or dimension."""

    code = "index_mismatch"


class IndexUnavailable(Unavailable):
    """The vector index cannot be reached, or another process has its files open."""

    code = "index_unavailable"


class ObjectStoreUnusable(Unavailable):
    """KMSERVE_OBJECT_STORE or its options name no object store."""

    code = "object_store_unusable"


class ObjectStoreUnavailable(Unavailable):
    """The object store cannot be reached, or refuses what is asked of it."""

    code = "object_store_unavailable"


class StorageFull(KmserveError):
    status = 507
    code = "storage_full"


class JobFailure(KmserveError):
    code = "job_failed"


class GateNotPassed(JobFailure):
    code = "gate_not_passed"


class NothingToLearn(JobFailure):
    """Synthesis produced no usable examples from the document."""

    code = "nothing_to_learn"


class GeneratorUnavailable(JobFailure):
    """The external generator of training texts cannot be reached, or is busy, for longer than an attempt waits."""

    code = "generator_unavailable"


class GeneratorRefused(JobFailure):
    """The external generator of training texts does not take what it is sent: its settings are wrong."""

    code = "generator_refused"


class GpuOutOfMemory(JobFailure):
    code = "gpu_out_of_memory"


class GpuBusy(JobFailure):
    code = "gpu_busy"


class TrainerCrashed(JobFailure):
    code = "trainer_crashed"


class DocumentTextMissing(JobFailure):
    """The parsed text that ingest stored is gone."""

    code = "document_text_missing"


class Superseded(JobFailure):
    """A module of a newer revision was published while this one trained."""

    code = "superseded"


class AttemptsExhausted(JobFailure):
    code = "attempts_exhausted"


class JobLost(JobFailure):
    """The lease went to another attempt: whoever holds the old one must stop and write nothing."""

    code = "job_lost"

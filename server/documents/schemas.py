"""Documents as the API takes and gives them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field

from server.db.tables import DocumentStatus, ModuleState
from server.jobs.schemas import JOB_EXAMPLE, Job
from server.schemas import NO_NUL, Body, Failure, Value

MAX_METADATA_BYTES = 16 * 1024

Title = Annotated[str, Field(min_length=1, max_length=300, pattern=NO_NUL)]
ExternalId = Annotated[str, Field(min_length=1, max_length=200, pattern=NO_NUL)]


class Train(StrEnum):
    """Whether a module is trained as soon as the document can be retrieved from."""

    AUTO = "auto"
    NEVER = "never"


class Preset(StrEnum):
    """How much training: `quick` for a CPU, `standard` for about three times that work, `paper` for the published recipe."""

    QUICK = "quick"
    STANDARD = "standard"
    PAPER = "paper"


class UploadFields(Body):
    """What may come with a document. `title` is its file name where it is missing, `preset` the server's default."""

    title: Title | None = None
    external_id: ExternalId | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    train: Train = Train.AUTO
    preset: Preset | None = None


class TextUpload(UploadFields):
    """A document given as text."""

    text: str
    filename: str | None = Field(default=None, max_length=300, pattern=NO_NUL)


class Revision(Value):
    """One uploaded content. `media_type`, `pages`, `tokens` and `indexed_at` are known once it is indexed."""

    id: str
    number: int
    sha256: str
    size: int
    media_type: str | None
    pages: int | None
    tokens: int | None
    indexed_at: float | None


class Module(Value):
    """The knowledge module that answers for the document. A quarantined one does not answer: `retry` trains the document again."""

    id: str
    version: int
    digest: str
    revision_id: str
    scope: str
    gate: dict[str, Any]
    state: ModuleState
    created_at: float


_EXAMPLE: Final[dict[str, Any]] = {
    "id": "doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e",
    "title": "Leave policy",
    "external_id": "hr-17",
    "filename": "policy.md",
    "metadata": {"department": "hr"},
    "train": "auto",
    "preset": "quick",
    "status": "training",
    "error": None,
    "revision": {
        "id": "rev_1b0c9d8e7f6a5b4c0f8b7a6c5d4e3f2a",
        "number": 1,
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "size": 5120,
        "media_type": "text/markdown",
        "pages": None,
        "tokens": 1180,
        "indexed_at": 1794500002.0,
    },
    "module": None,
    "job": JOB_EXAMPLE,
    "row_version": 3,
    "created_at": 1794500000.0,
    "updated_at": 1794500003.5,
}


class Document(Value):
    """`row_version` is what the ETag is made of; `job` is the newest job."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    id: str
    title: str
    external_id: str | None
    filename: str | None
    metadata: dict[str, Any]
    train: Train
    preset: Preset
    status: DocumentStatus
    error: Failure | None
    revision: Revision
    module: Module | None
    job: Job | None
    row_version: int
    created_at: float
    updated_at: float

    @property
    def settled(self) -> bool:
        """Nothing changes any more unless somebody asks for it."""
        moving = (DocumentStatus.INGESTING, DocumentStatus.TRAINING)
        return self.status not in moving and not (self.job is not None and self.job.under_way)

    @property
    def etag(self) -> str:
        return f'"{self.row_version}"'


class Uploaded(Document):
    """`eta_seconds`: until retrieval and, if it is to be trained, its module answer; from this tenant's own history where there is any,
    else a rough figure for a small document."""

    model_config = ConfigDict(json_schema_extra={"example": {**_EXAMPLE, "status": "ingesting", "eta_seconds": 190.0}})

    eta_seconds: float


class DocumentPage(Value):
    """`next` is the value of `after` for the page that follows; null on the last one."""

    items: list[Document]
    next: str | None


class Removed(Value):
    """What a deletion removed: numbers of passages, revisions and jobs, and the digests of modules."""

    passages: int
    revisions: int
    modules: list[str]
    jobs: int


class TrainedExtractor(Value):
    """An extractor that learned from the document: what it learned stays in its weights until it is deleted itself."""

    id: str
    owner: str
    name: str | None
    active: bool


class Receipt(Value):
    """Proof of a deletion. From now on the document is not found. `complete` is false while something still holds on to a part of it, a
    training that has yet to stop or an index that cannot be reached: the server goes on by itself until nothing is left. `extractors` were
    trained on the document, among others, and are still there."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "document_id": "doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e",
                "deleted_at": 1794500900.0,
                "complete": True,
                "removed": {"passages": 14, "revisions": 1, "modules": ["a3f1…"], "jobs": 2},
                "extractors": [{"id": "ext_9d8e7f6a5b4c0f8b7a6c5d4e3f2a1b0c", "owner": "acme", "name": "Short answers", "active": True}],
            }
        }
    )

    document_id: str
    deleted_at: float
    complete: bool
    removed: Removed
    extractors: list[TrainedExtractor]

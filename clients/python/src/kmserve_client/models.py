"""The values the API answers with. Fields that a newer server adds are ignored; times are seconds since the epoch."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Mode: TypeAlias = Literal["auto", "closed_book", "open_book", "retrieval", "in_context", "base"]
Status: TypeAlias = Literal["ingesting", "retrieval_ready", "training", "ready", "failed", "cancelled"]


class Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Failure(Value):
    code: str
    message: str


class Progress(Value):
    """`done` of `total` `unit`s of the job's stage; `eta_seconds` to the end of the whole job, where it is known."""

    done: float
    total: float
    unit: str | None = None
    eta_seconds: float | None = None


class Job(Value):
    """`document_id` is what an ingest or a training is about, `extractor_id` what the training of an extractor has published."""

    id: str
    kind: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    document_id: str | None = None
    extractor_id: str | None = None
    stage: str | None = None
    progress: Progress | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    error: Failure | None = None
    attempt: int = 0

    @property
    def under_way(self) -> bool:
        return self.state in UNDER_WAY


class Module(Value):
    """`gate` is what was measured before the module was published."""

    version: int
    digest: str
    state: str = "published"
    gate: dict[str, Any] = Field(default_factory=dict)


UNDER_WAY = frozenset({"queued", "running"})
RETRIEVABLE = frozenset({"retrieval_ready", "training", "ready"})


class Document(Value):
    """`module` is the active knowledge module, `job` the newest job, `row_version` what its ETag is made of. `eta_seconds` comes with an
    upload: about how long until the document is settled."""

    id: str
    title: str
    status: Status
    external_id: str | None = None
    filename: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    error: Failure | None = None
    module: Module | None = None
    job: Job | None = None
    row_version: int = 0
    eta_seconds: float | None = None

    @property
    def settled(self) -> bool:
        """Nothing will change by itself any more."""
        return self.status != "ingesting" and self.status != "training" and not (self.job and self.job.state in UNDER_WAY)

    def reached(self, goal: Literal["retrieval_ready", "ready"]) -> bool:
        return self.status == "ready" if goal == "ready" else self.status in RETRIEVABLE


class Removed(Value):
    """What a deletion removed: numbers of passages, revisions and jobs, and the digests of modules."""

    passages: int
    revisions: int
    modules: list[str]
    jobs: int


class TrainedExtractor(Value):
    """An extractor that learned from a deleted document: what it learned stays in its weights until it is deleted itself."""

    id: str
    owner: str
    name: str | None
    active: bool


class Receipt(Value):
    """Proof of a deletion. `complete` is false while the server still has to remove a part, which it does by itself. `extractors` were
    trained on the document and are still there."""

    document_id: str
    deleted_at: float
    complete: bool
    removed: Removed
    extractors: list[TrainedExtractor] = Field(default_factory=list)


class TrainedOn(Value):
    document_id: str
    revision_id: str


class Extractor(Value):
    """A published knowledge extractor, yours or the system's. `worn_by`: how many of your documents are answered by a module that wears
    its `lora`."""

    id: str
    owner: str
    name: str | None
    active: bool
    lora: str
    composition: str
    scope: str
    gate: dict[str, Any] = Field(default_factory=dict)
    documents: list[TrainedOn] = Field(default_factory=list)
    worn_by: int = 0
    job_id: str | None = None
    row_version: int = 0
    created_at: float


class Switched(Extractor):
    """`retraining`: how many documents are trained again for what answers now; they answer as before meanwhile."""

    retraining: int


class Extractors(Value):
    """Newest first; `jobs` are the trainings of yours that are under way."""

    items: list[Extractor]
    jobs: list[Job]


class Citation(Value):
    """A passage behind an answer, or found by a search; the span is in the parsed text of `revision`, `page` counts from 1."""

    passage_id: str
    document_id: str
    revision: str
    filename: str | None
    page: int | None
    char_start: int
    char_end: int
    quote: str
    score: float


class KnowledgeModule(Value):
    document_id: str
    version: int
    digest: str


class Used(Value):
    """What answered: the mode (never `auto`), the base model, module, extractor and composition, and ids of passages."""

    mode: Mode
    base: str
    km: KnowledgeModule | None
    ke: str | None = None
    composition: str | None = None
    passages: list[str] = Field(default_factory=list)
    dropped_passages: list[str] = Field(default_factory=list)


class Usage(Value):
    prompt_tokens: int
    completion_tokens: int


class Score(Value):
    """Natural log-probabilities of each token of `text` after the prompt; no end of turn is counted."""

    text: str
    logprobs: list[float]
    total: float

    @property
    def mean(self) -> float:
        return self.total / len(self.logprobs)


class Answer(Value):
    """`finish_reason` is `length` where `max_tokens` cut the answer off."""

    answer: str
    citations: list[Citation]
    used: Used
    usage: Usage
    scores: list[Score] | None = None
    finish_reason: str | None = None
    request_id: str


class Started(Value):
    """First event of a streamed answer."""

    request_id: str
    used: Used


class Delta(Value):
    """A piece of a streamed answer's text."""

    text: str


AnswerEvent: TypeAlias = Started | Citation | Delta | Answer
"""A streamed answer: `Started`, then `Citation`s and `Delta`s, and last the whole `Answer`."""


class ApiKey(Value):
    id: str
    tenant: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: float
    expires_at: float | None = None


class NewApiKey(ApiKey):
    """`key` is the secret; the server shows it this once."""

    key: str = Field(repr=False)

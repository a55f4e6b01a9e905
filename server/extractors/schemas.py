"""Extractors as the API takes and gives them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from pydantic import ConfigDict, Field, model_validator

from server.api_keys.schemas import TenantId
from server.db.material import Answered
from server.documents.schemas import Title
from server.extractors.recipes import ExtractorRecipeChanges
from server.jobs.schemas import Job
from server.modules.start import StartName
from server.schemas import NO_NUL, Body, Id, Value

MAX_QUESTIONS: Final = 20_000
MAX_DOCUMENTS: Final = 1_000
MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024

Text = Annotated[str, Field(min_length=1, max_length=4_000, pattern=NO_NUL)]


class Question(Body):
    """A question about one of your documents, and how it is to be answered: `answer`, or several right `answers`, the best one first."""

    document_id: Id
    question: Text
    answer: Text | None = None
    answers: list[Text] | None = Field(default=None, min_length=1, max_length=16)

    @model_validator(mode="after")
    def _with_an_answer(self) -> Self:
        if (self.answer is None) == (self.answers is None):
            raise ValueError("give either `answer` or `answers`")
        return self

    def answered(self) -> Answered:
        answers = [self.answer] if self.answer is not None else self.answers or []
        return Answered(document_id=self.document_id, question=self.question, answers=tuple(answers))


class TrainFields(Body):
    """What may come with the questions. `owner` is your tenant where it is missing; only the operator may name `system`, whose active
    extractor serves every tenant that has none of its own. `documents`: leave out the questions about all others. `recipe`: numbers of the
    training that differ from the default. `start`: what training begins from, the `active` extractor (the owner's own, else the system's),
    whose rank, alpha and scope the new one has, or `nothing`; by default the active one if there is one that fits base model and recipe.
    `activate`: let it answer as soon as it is published, if its owner has no active one."""

    name: Title | None = None
    owner: TenantId | None = None
    documents: list[Id] | None = Field(default=None, min_length=1, max_length=MAX_DOCUMENTS)
    recipe: ExtractorRecipeChanges | None = None
    start: StartName | None = None
    activate: bool = False
    seed: int = Field(default=0, ge=0, lt=2**31)

    @property
    def starts_from_active(self) -> bool:
        """Whether it must: weights alone are learned over what is there."""
        return self.start == "active" or self._weights_alone

    @property
    def _weights_alone(self) -> bool:
        return self.recipe is not None and self.recipe.learn == "weights"

    @model_validator(mode="after")
    def _with_a_start(self) -> Self:
        if self.start == "nothing" and self._weights_alone:
            raise ValueError("weights alone are learned over the active extractor: let `start` be `active`, or `learn` be `all`")
        return self


class TrainExtractor(TrainFields):
    """Questions in JSON."""

    questions: list[Question] = Field(min_length=1, max_length=MAX_QUESTIONS)


class TrainedOn(Value):
    """A revision that the extractor, or one that it began from, learned from; the document may have been deleted since."""

    document_id: str
    revision_id: str


_EXAMPLE: Final[dict[str, Any]] = {
    "id": "ext_9d8e7f6a5b4c0f8b7a6c5d4e3f2a1b0c",
    "owner": "acme",
    "name": "Short answers",
    "active": True,
    "lora": "4be9106c3d6a2f0f8f1b0b7d2c5e9a7718c4d3b2a1908f7e6d5c4b3a29180706",
    "composition": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "base_fingerprint": "0f8f1b0b7d2c5e9a7718c4d3b2a1908f7e6d5c4b3a291807064be9106c3d6a2f",
    "scope": "all",
    "gate": {"passed": True, "improvement": 0.31},
    "documents": [{"document_id": "doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e", "revision_id": "rev_1b0c9d8e7f6a5b4c0f8b7a6c5d4e3f2a"}],
    "worn_by": 3,
    "job_id": "job_0f8b7a6c5d4e3f2a1b0c9d8e7f6a5b4c",
    "row_version": 2,
    "created_at": 1794500900.0,
}


class Extractor(Value):
    """A published knowledge extractor, yours or the system's. `lora` is the digest of its tensors, `composition` that of the weights over
    them. `documents` and `job_id` are shown to the tenant that trained it. `worn_by`: how many of your documents are answered by a module
    that wears its lora. `row_version` is what the ETag is made of."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    id: str
    owner: str
    name: str | None
    active: bool
    lora: str
    composition: str
    base_fingerprint: str
    scope: str
    gate: dict[str, Any]
    documents: list[TrainedOn]
    worn_by: int
    job_id: str | None
    row_version: int
    created_at: float

    @property
    def etag(self) -> str:
        """Also another one when documents wear it, or no longer."""
        return f'"{self.row_version}-{self.worn_by}"'


class Switched(Extractor):
    """`retraining`: how many documents are trained again for it. Until each is done, its present module answers over the lora it wears."""

    model_config = ConfigDict(json_schema_extra={"example": {**_EXAMPLE, "retraining": 3}})

    retraining: int


class ExtractorList(Value):
    """Newest first; `jobs` are the trainings of extractors that are under way."""

    items: list[Extractor]
    jobs: list[Job]

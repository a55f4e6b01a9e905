"""Questions and answers as the API takes and gives them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, model_validator

from server.engine.request import FinishReason
from server.schemas import Body, Id, Value

MAX_DOCUMENTS: Final = 20
MAX_SCORED: Final = 8
MAX_TOP_K: Final = 50
_LONGEST_TEXT: Final = 100_000

Text = Annotated[str, Field(min_length=1, max_length=_LONGEST_TEXT)]
DocumentIds = Annotated[list[Id], Field(min_length=1, max_length=MAX_DOCUMENTS)]


class Mode(StrEnum):
    """What answers. `closed_book`: the module; `open_book`: module and passages; `retrieval`: passages; `in_context`: the whole document in
    the prompt; `base`: nothing but the base model; `auto`: `open_book` where it was measured better than `retrieval`, else `retrieval`."""

    AUTO = "auto"
    CLOSED_BOOK = "closed_book"
    OPEN_BOOK = "open_book"
    RETRIEVAL = "retrieval"
    IN_CONTEXT = "in_context"
    BASE = "base"


class Fallback(StrEnum):
    """What happens when the module that the mode needs cannot answer."""

    ERROR = "error"
    RETRIEVAL = "retrieval"


class Message(Body):
    role: Literal["user", "assistant"]
    content: Text


class Ask(Body):
    """Name one document (`document_id`), several (`document_ids`), or none for all that the key may read. `messages` are the turns before
    the question, from a user's to an assistant's. `score` asks for the log-probabilities of given answers; with `max_tokens` 0 for
    nothing else. `top_k` passages are looked for; the worst are left out where the model's context is too short."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "question": "How many days of leave do staff get?",
                "document_id": "doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e",
                "mode": "auto",
                "fallback": "retrieval",
                "max_tokens": 64,
            }
        }
    )

    question: Text
    document_id: Id | None = None
    document_ids: DocumentIds | None = None
    messages: list[Message] = Field(default_factory=list, max_length=100)
    mode: Mode = Mode.AUTO
    fallback: Fallback = Fallback.ERROR
    top_k: int = Field(default=5, ge=0, le=MAX_TOP_K)
    max_tokens: int = Field(default=256, ge=0, le=8192)
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int = Field(default=0, ge=0, lt=2**31)
    stream: bool = False
    score: Annotated[list[Text], Field(min_length=1, max_length=MAX_SCORED)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Ask:
        if self.document_id is not None and self.document_ids is not None:
            raise ValueError("name documents by document_id or by document_ids, not by both")
        if self.max_tokens == 0 and self.score is None:
            raise ValueError("max_tokens 0 needs `score`: there is nothing else to answer")
        return self

    @property
    def documents(self) -> tuple[str, ...] | None:
        """The named documents, each once; None for all."""
        if self.document_id is not None:
            return (self.document_id,)
        return None if self.document_ids is None else tuple(dict.fromkeys(self.document_ids))


class Citation(Value):
    """A passage behind an answer. The span [char_start, char_end) is in the parsed text of `revision`; `page` counts from 1; `score` is the
    similarity to the question, 1 at most."""

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
    """What answered. `ke` and `composition` are the digests of the extractor, `dropped_passages` those that the context had no room for."""

    mode: Mode
    base: str
    km: KnowledgeModule | None
    ke: str | None
    composition: str | None
    passages: list[str]
    dropped_passages: list[str]


class Usage(Value):
    prompt_tokens: int
    completion_tokens: int


class ScoredText(Value):
    """Natural log-probabilities of each token of `text` after the prompt; no end of turn is counted."""

    text: str
    logprobs: list[float]
    total: float


_USED: Final[dict[str, Any]] = {
    "mode": "open_book",
    "base": "smollm2-135m-instruct",
    "km": {"document_id": "doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e", "version": 1, "digest": "a3f1…"},
    "ke": None,
    "composition": None,
    "passages": ["0b9f3c1e-6a55-5f0a-9a31-1f2e3d4c5b6a"],
    "dropped_passages": [],
}
_CITATION: Final[dict[str, Any]] = {
    "passage_id": "0b9f3c1e-6a55-5f0a-9a31-1f2e3d4c5b6a",
    "document_id": "doc_3f2a1b0c9d8e7f6a5b4c0f8b7a6c5d4e",
    "revision": "rev_1b0c9d8e7f6a5b4c0f8b7a6c5d4e3f2a",
    "filename": "policy.md",
    "page": None,
    "char_start": 120,
    "char_end": 160,
    "quote": "Staff get 31 days of leave in each year.",
    "score": 0.71,
}


class Answer(Value):
    """`finish_reason` is `length` where `max_tokens` cut the answer off; null where none was asked for."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "answer": "31 days",
                "citations": [_CITATION],
                "used": _USED,
                "usage": {"prompt_tokens": 96, "completion_tokens": 3},
                "scores": None,
                "finish_reason": "stop",
                "request_id": "req_5f0c2d3e4b5a69788796a5b4c3d2e1f0",
            }
        }
    )

    answer: str
    citations: list[Citation]
    used: Used
    usage: Usage
    scores: list[ScoredText] | None
    finish_reason: FinishReason | None
    request_id: str


class Started(Value):
    """First event of a streamed answer."""

    request_id: str
    used: Used


class TextDelta(Value):
    text: str


class Search(Body):
    """Without `document_ids`, in all documents that the key may read."""

    model_config = ConfigDict(json_schema_extra={"example": {"query": "days of leave", "top_k": 3}})

    query: Text
    document_ids: DocumentIds | None = None
    top_k: int = Field(default=5, ge=1, le=MAX_TOP_K)


class SearchResult(Value):
    """Best first."""

    model_config = ConfigDict(json_schema_extra={"example": {"hits": [_CITATION]}})

    hits: list[Citation]

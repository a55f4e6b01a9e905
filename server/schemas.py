"""The base of every body the API takes or gives. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

NO_NUL: Final = r"^[^\x00]*$"
"""PostgreSQL stores no NUL character."""


class Body(BaseModel):
    """Taken: unknown members are refused, so that a misspelt one is an error and not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Value(BaseModel):
    """Given."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class Failure(Value):
    """Why a job or a document failed; `code` is listed in docs/errors.md."""

    code: str
    message: str

"""The base of every body the API takes or gives. Times are seconds since the epoch."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, StringConstraints

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


Id = Annotated[str, StringConstraints(pattern=NO_NUL, max_length=200)]
"""An id as a caller spells it; one that was never given is not found, like a foreign one."""


def inline_schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema with nothing to look up elsewhere, for a body that the web framework does not read itself."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(node: Any) -> Any:
        if isinstance(node, list):
            return [resolved(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolved(definitions[node["$ref"].rpartition("/")[2]])
        return {name: resolved(value) for name, value in node.items()}

    inlined: dict[str, Any] = resolved(schema)
    return inlined

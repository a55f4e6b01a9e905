"""What an extractor's training begins from: another extractor, whose rank, alpha and scope the new one has then, or nothing.

API and trainer judge by the same words. Knows nothing of rows, jobs or training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from server.modules.manifest import Manifest

StartName = Literal["active", "nothing"]
"""`active`: the extractor that answers for the owner when the training begins, its own or else the system's."""
NONE_ACTIVE: Final = "no extractor is active to start from: activate one, or start from nothing"
OTHER_BASE: Final = "the extractor that training starts from is of another base model: use one of this model, or start from nothing"
_SHAPE: Final = ("rank", "alpha", "scope")


def shape_of(start: Manifest) -> dict[str, Any]:
    """Rank, alpha and scope: those of whatever begins from it."""
    return {name: getattr(start, name) for name in _SHAPE}


def misfit(start: Mapping[str, Any], recipe: Mapping[str, Any]) -> str | None:
    """Why training by `recipe`, the fields that were named, cannot begin from an extractor of the shape `start`, as far as it is known;
    None if it can. Another alpha is no small matter: it scales what the start has learned."""
    for name in _SHAPE:
        if name in start and name in recipe and start[name] != recipe[name]:
            return (
                f"the extractor that training starts from has {name} {_shown(start[name])} and the recipe has {name} "
                f"{_shown(recipe[name])}: leave `{name}` out, or start from nothing"
            )
    return None


def _shown(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"

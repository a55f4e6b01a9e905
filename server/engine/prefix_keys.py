"""What a cached block of keys and values is known by: a chain of hashes over tokens and the adapters that act on each of them.

    key_i = H(key_{i-1}, [(token, adapter id), ...])        root = H(tenant, base fingerprint, dtype)

So two sequences share a block only if all that went into it is the same: every token up to its end, what each of them wore, whose it
is and which model computed it. A bare token behind an adapted one has the adapted one in its chain.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

from server.engine.request import ArtefactRef, EngineRequest, Scope

_BYTES = 8
_NOTHING = bytes(hashlib.sha256().digest_size)

Wears = Callable[[int], bytes]
"""Position to adapter id."""


def root_key(tenant: str, base_fingerprint: str, dtype: str) -> bytes:
    """Nothing is shared across tenants: each starts a chain of its own."""
    return _hash(*(part.encode() for part in (tenant, base_fingerprint, dtype)))


def adapter_ids(request: EngineRequest) -> Wears:
    """Which adapters act on a position, as fixed-length bytes: zeros where none does.

    A module's products are weighed by the extractor's composition, so both name it wherever it acts.
    """
    module, extractor = request.module, request.extractor
    worn = () if extractor is None else (extractor.digest, extractor.composition or "")
    parts = (
        (_first(request, module), b"" if module is None else _short("module", module.digest, *worn)),
        (_first(request, extractor), _short("extractor", *worn)),
    )
    return lambda position: b"".join(name if position >= first else _NOTHING for first, name in parts)


class KeyChain:
    """The keys of one growing sequence's whole blocks, each computed once."""

    def __init__(self, root: bytes, wears: Wears, block: int) -> None:
        """`block`: tokens of a block."""
        self._last = root
        self._block = block
        self._wears = wears
        self._keys: list[bytes] = []

    def keys(self, tokens: Sequence[int], end: int) -> list[bytes]:
        """Of the whole blocks of `tokens[:end]`, which must start with what was asked before."""
        while (len(self._keys) + 1) * self._block <= end:
            first = len(self._keys) * self._block
            content = (
                token.to_bytes(_BYTES, "little") + self._wears(position)
                for position, token in enumerate(tokens[first : first + self._block], first)
            )
            self._last = _hash(self._last, *content)
            self._keys.append(self._last)
        return self._keys[: end // self._block]


def _first(request: EngineRequest, artefact: ArtefactRef | None) -> float:
    """The first position that it acts on."""
    if artefact is None:
        return math.inf
    return len(request.prompt.bare) if artefact.scope is Scope.ANSWER else 0


def _short(*parts: str) -> bytes:
    return _hash(*(part.encode() for part in parts))


def _hash(*parts: bytes) -> bytes:
    """Each part's length goes before it, so that no two lists of parts read the same."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(_BYTES, "little"))
        digest.update(part)
    return digest.digest()

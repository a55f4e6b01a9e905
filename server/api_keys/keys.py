"""API keys as strings: `kms_<prefix>_<secret>`. The prefix is public and finds the row; only an HMAC of the whole key is stored.

Knows nothing of rows, tenants or requests.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

_KEY = re.compile(r"kms_(?P<prefix>[0-9a-f]{12})_(?P<secret>[0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """`text` is shown once, `prefix` and `hash` are stored."""

    text: str = field(repr=False)
    prefix: str
    hash: str


class KeyMaker:
    """Makes and proves keys under the server's secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def new(self) -> NewKey:
        prefix = secrets.token_hex(6)
        text = f"kms_{prefix}_{secrets.token_hex(32)}"
        return NewKey(text=text, prefix=prefix, hash=self.hash(text))

    def hash(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    def proves(self, text: str, stored: str) -> bool:
        """In constant time."""
        return hmac.compare_digest(self.hash(text), stored)


def prefix_of(text: str) -> str | None:
    """The public part of something that looks like a key."""
    found = _KEY.fullmatch(text)
    return found["prefix"] if found else None

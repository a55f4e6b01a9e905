"""Whose turn it is: a counter of tokens served to each tenant; the tenant served least goes first.

The virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), with weight 1 for prompt and answer
tokens: a tenant that comes back starts at the lowest counter of those that are waiting, so that idling saves nothing up. While two
tenants both have requests waiting, what they were served differs by at most twice the larger of the longest prompt and the tokens
of the requests that run together. Knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


class Turns:
    def __init__(self) -> None:
        self._served: dict[str, float] = {}

    def arrive(self, tenant: str, busy: Iterable[str]) -> None:
        """A request of `tenant` has come; `busy` are the tenants that have requests already."""
        others = set(busy)
        if tenant in others:
            return
        # Idle tenants are forgotten: what they were served no longer counts for anything.
        self._served = {name: tokens for name, tokens in self._served.items() if name in others or name == tenant}
        least = min((tokens for name, tokens in self._served.items() if name in others), default=0.0)
        self._served[tenant] = max(self._served.get(tenant, 0.0), least)

    def charge(self, tenant: str, tokens: int) -> None:
        self._served[tenant] = self._served.get(tenant, 0.0) + tokens

    def first(self, waiting: Iterable[T], tenant_of: Callable[[T], str]) -> T | None:
        """The oldest request of the tenant served least."""
        return min(waiting, key=lambda item: self._served.get(tenant_of(item), 0.0), default=None)

"""Requests by route template, method and status: never a path, key, tenant or document, which would be told and have no bound."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Histogram
from starlette.types import ASGIApp, Scope

from server.timed_requests import TimedRequests

NO_ROUTE: Final = "none"
"""Of a path that is no operation's, be it there or not."""
NO_ANSWER: Final = "none"
"""The client left, or the server broke off, before a status was sent."""
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class HttpMetrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "kmserve_http_request_seconds",
            "Requests by route, method and status, and their seconds to the end of the answer, streams included.",
            ("route", "method", "status"),
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """A `status` of 0: none was sent."""
        known = method if method in _METHODS else "other"
        self._seconds.labels(route, known, str(status) if status else NO_ANSWER).observe(seconds)


class MeasuredRequests(TimedRequests):
    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        super().__init__(app)
        self._metrics = metrics

    def tell(self, scope: Scope, status: int, seconds: float) -> None:
        self._metrics.observe(_route(scope), scope["method"], status, seconds)


def _route(scope: Scope) -> str:
    """As it is written in the source. The router leaves it in the scope once it has found one."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) and path else NO_ROUTE

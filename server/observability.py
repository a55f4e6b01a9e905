"""Logs: one line a request, every line with its request's id. No key, question, answer or document text is ever logged.

Standard-library loggers and structlog's end in the same renderer.
"""

from __future__ import annotations

import logging
import re
import sys
import uuid
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog
from asgi_correlation_id import CorrelationIdMiddleware, correlation_id
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.typing import Processor

from server.settings import Settings
from server.timed_requests import TimedRequests

REQUEST_ID_HEADER: Final = "X-Request-ID"
_ACCEPTED = re.compile(r"[A-Za-z0-9._-]{8,64}")
_SECRETS: Final = frozenset(
    {"authorization", "key_text", "secret", "password", "question", "answer", "text", "quote", "passages", "messages"}
)
log = structlog.get_logger("server.access")


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Set up the process's logging, to standard error unless told otherwise; the last call wins."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _request_id,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_secrets,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    ends: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    if settings.log_format == "console":
        # Never with local variables: they hold keys and documents.
        ends = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    removed = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler = logging.StreamHandler(stream)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[removed, *ends]))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for chatty in ("httpx", "httpx2", "httpcore", "httpcore2", "filelock", "asgi_correlation_id", "uvicorn.access"):
        logging.getLogger(chatty).setLevel("WARNING")


def with_request_id(app: ASGIApp) -> ASGIApp:
    """Give each request an id: the caller's X-Request-ID where it is a plain one, else a new one; the response carries it."""
    return CorrelationIdMiddleware(
        app,
        header_name=REQUEST_ID_HEADER,
        generator=lambda: f"req_{uuid.uuid4().hex}",
        validator=lambda text: bool(_ACCEPTED.fullmatch(text)),
    )


class AccessLog(TimedRequests):
    """One line for each request: method, path, status, seconds. Health checks are logged at debug level."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            structlog.contextvars.clear_contextvars()
        await super().__call__(scope, receive, send)

    def tell(self, scope: Scope, status: int, seconds: float) -> None:
        level = logging.DEBUG if scope["path"].startswith("/health/") else logging.INFO
        log.log(level, "request", method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 4))


def _request_id(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if (request_id := correlation_id.get()) is not None:
        event.setdefault("request_id", request_id)
    return event


def _without_secrets(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name in event.keys() & _SECRETS:
        event[name] = "[not logged]"
    return event

"""Every error the client raises, drawn once.

    KmserveClientError
    ├── ConnectionFailed         no answer: refused or cut
    │   └── TimedOut             the server took the request and did not answer in time
    ├── UnexpectedResponse       an answer that is not this API's
    ├── WaitTimeout              `wait` ran out of time; the work goes on
    ├── DocumentFailed           `wait` met a document that will not get there; carries code and detail
    └── ApiError                 a problem document: status, code, detail, extra
        ├── InvalidInput         422, 400
        ├── Unauthorized         401
        ├── Forbidden            403
        ├── NotFound             404
        ├── Conflict             409
        ├── TooLarge             413
        ├── UnsupportedMediaType 415
        ├── TooManyRequests      429
        └── Unavailable          503

`code` is the stable name to branch on, for example `module_not_ready`; `detail` is a sentence for people.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PROBLEM_MEMBERS = frozenset({"type", "title", "status", "detail", "code"})


class KmserveClientError(Exception):
    """The root: catch this to catch everything the client raises."""


class ConnectionFailed(KmserveClientError):
    pass


class TimedOut(ConnectionFailed):
    pass


class UnexpectedResponse(KmserveClientError):
    pass


class WaitTimeout(KmserveClientError, TimeoutError):
    pass


class DocumentFailed(KmserveClientError):
    def __init__(self, document_id: str, code: str, detail: str) -> None:
        super().__init__(f"{document_id}: {detail} [{code}]")
        self.document_id = document_id
        self.code = code
        self.detail = detail


class ApiError(KmserveClientError):
    """The server refused. `extra` holds the problem document's further members, `retry_after` seconds where it named them."""

    def __init__(self, status: int, code: str, detail: str, extra: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(f"{detail} [{status} {code}]")
        self.status = status
        self.code = code
        self.detail = detail
        self.extra = extra
        self.retry_after = retry_after


class InvalidInput(ApiError):
    pass


class Unauthorized(ApiError):
    pass


class Forbidden(ApiError):
    pass


class NotFound(ApiError):
    pass


class Conflict(ApiError):
    pass


class TooLarge(ApiError):
    pass


class UnsupportedMediaType(ApiError):
    pass


class TooManyRequests(ApiError):
    pass


class Unavailable(ApiError):
    pass


BY_STATUS: Mapping[int, type[ApiError]] = {
    400: InvalidInput,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedMediaType,
    422: InvalidInput,
    429: TooManyRequests,
    503: Unavailable,
}


def api_error(status: int, body: bytes, retry_after: float | None = None) -> ApiError:
    """The error of a refusal, from its problem document where it has one (a proxy's may be HTML)."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    return problem_error(problem if isinstance(problem, dict) else {}, status, retry_after)


def problem_error(problem: Mapping[str, Any], status: int, retry_after: float | None = None) -> ApiError:
    """The error of a parsed problem document; `status` is used where the document names none."""
    status = int(problem.get("status") or status)
    code = str(problem.get("code") or f"http_{status}")
    detail = str(problem.get("detail") or problem.get("title") or "the server gave no reason")
    extra = {name: value for name, value in problem.items() if name not in PROBLEM_MEMBERS}
    return BY_STATUS.get(status, ApiError)(status, code, detail, extra, retry_after)

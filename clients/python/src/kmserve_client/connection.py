"""How a `Call` becomes an httpx2 request and an httpx2 outcome a `Reply`: all that the blocking and the async client share."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from kmserve_client.effects import Call, Reply
from kmserve_client.errors import ConnectionFailed, TimedOut
from kmserve_client.retries import Retries

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the server is and how to talk to it. `timeout` is seconds without a byte; a slow CPU may need a minute for an answer."""

    url: str = DEFAULT_URL
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    retries: Retries = field(default_factory=Retries)

    def client_options(self) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {
            "base_url": self.url,
            "headers": headers,
            "timeout": self.seconds(None),
            "trust_env": not is_loopback(httpx2.URL(self.url).host),
        }

    def seconds(self, timeout: float | None) -> httpx2.Timeout:
        return httpx2.Timeout(timeout or self.timeout, connect=min(CONNECT_SECONDS, timeout or self.timeout))

    @contextmanager
    def request(self, client: httpx2.Client | httpx2.AsyncClient, call: Call) -> Iterator[httpx2.Request]:
        """The call as a request of `client`; an upload's file is open while the context is."""
        options: dict[str, Any] = {"params": call.params, "headers": call.headers, "timeout": self.seconds(call.timeout)}
        if call.file is None:
            yield client.build_request(call.method, call.path, json=call.json, **options)
            return
        with call.file.open() as stream:
            files = {"file": (call.file.name, stream)}
            yield client.build_request(call.method, call.path, data=dict(call.form), files=files, **options)


def reply_of(response: httpx2.Response, body: bytes) -> Reply:
    headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
    return Reply(status=response.status_code, headers=headers, body=body)


def connection_failed(error: httpx2.TransportError, url: str) -> ConnectionFailed:
    """`error` in words that name the server."""
    failed: ConnectionFailed
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        failed = ConnectionFailed(f"no server answers at {url}: {error}")
    elif isinstance(error, httpx2.TimeoutException):
        failed = TimedOut(f"{url} did not answer in time")
    else:
        failed = ConnectionFailed(f"the connection to {url} broke: {error or type(error).__name__}")
    failed.__cause__ = error
    return failed


def is_loopback(host: str) -> bool:
    """A proxy of the environment cannot reach this machine's own loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

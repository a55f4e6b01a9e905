"""The API behind a real server: endless uploads, early refusals, clients that close their connection."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from server.api_keys import repository
from server.app import create_app
from server.settings import Settings
from tests.support.api import fake_parts
from tests.support.databases import migrated
from tests.support.fakes import Counter, FakeEngine, FakeIndex
from tests.support.live_api import served
from tests.support.training_rig import PATIENCE, eventually

GIB = 1024**3
HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="big.bin"\r\n\r\n'
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


@dataclass(frozen=True, kw_only=True)
class Live:
    url: str
    key: str
    root: Path
    engine: FakeEngine

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def connection(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=PATIENCE)

    def head(self, path: str, content_type: str) -> str:
        """Of a POST request, to which its length and an empty line are to be added."""
        host = self.url.removeprefix("http://")
        return f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {self.key}\r\nContent-Type: {content_type}\r\n"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    settings = Settings(data_dir=tmp_path, max_upload_bytes=1024 * 1024)
    database, engine = migrated(settings.sql_url), FakeEngine()
    parts = fake_parts(settings, engine, FakeIndex(), Counter())
    new = parts.keys.new()
    with database.write() as session:
        repository.ensure_tenant(session, "acme")
        repository.add(session, tenant_id="acme", name="test", prefix=new.prefix, key_hash=new.hash, scopes=["documents:write", "ask"])
    database.close()
    with served(create_app(settings, parts)) as url:
        yield Live(url=url, key=new.text, root=tmp_path, engine=engine)


class Endless:
    """A gigabyte in pieces, and how much of it was taken."""

    def __init__(self) -> None:
        self.sent = 0

    def __iter__(self) -> Iterator[bytes]:
        yield HEAD
        while self.sent < GIB:
            self.sent += 64 * 1024
            yield b"x" * 64 * 1024


def test_a_gigabyte_without_a_length_is_refused_while_it_is_sent(live: Live) -> None:
    body = Endless()
    response = httpx2.post(f"{live.url}/documents", content=iter(body), headers={**live.headers, **FORM}, timeout=PATIENCE)
    assert (response.status_code, response.json()["code"]) == (413, "upload_too_large")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["connection"] == "close"
    assert body.sent < 32 * 1024 * 1024, "what the sockets' buffers hold, and no more"
    assert list((live.root / "blobs" / ".incoming").iterdir()) == []


def test_a_gigabyte_that_is_announced_is_refused_before_it_is_sent(live: Live) -> None:
    """As curl does: the body is sent when the server says that it will take it."""
    head = live.head("/documents", FORM["Content-Type"])
    with live.connection() as connection:
        connection.sendall(f"{head}Content-Length: {GIB}\r\nExpect: 100-continue\r\n\r\n".encode())
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_an_upload_without_a_key_is_not_read(live: Live) -> None:
    body = Endless()
    response = httpx2.post(f"{live.url}/documents", content=iter(body), headers=FORM, timeout=PATIENCE)
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert body.sent < 32 * 1024 * 1024


def test_a_connection_that_breaks_in_an_upload_leaves_nothing(live: Live) -> None:
    head = live.head("/documents", FORM["Content-Type"])
    incoming = live.root / "blobs" / ".incoming"
    with live.connection() as connection:
        connection.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + HEAD + b"half")
        eventually(lambda: incoming.exists() and len(list(incoming.iterdir())) == 1)
    eventually(lambda: not list(incoming.iterdir()))


@pytest.mark.parametrize("stream", [True, False])
def test_a_connection_that_closes_cancels_the_answer(live: Live, stream: bool) -> None:
    live.engine.gate = asyncio.Event()
    body = json.dumps({"question": "?", "mode": "base", "stream": stream}).encode()
    with live.connection() as connection:
        head = live.head("/ask", "application/json")
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        eventually(lambda: len(live.engine.requests) == 1)
    eventually(lambda: live.engine.cancelled == [live.engine.requests[0].request_id])
    assert live.engine.closed == 1

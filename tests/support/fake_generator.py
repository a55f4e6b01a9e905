"""An OpenAI-compatible service on 127.0.0.1 that answers by a script, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An answer that is no completion."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str = '{"error": {"message": "no"}}'


class FakeGenerator(ThreadingHTTPServer):
    """Each request takes the next of `script`; after it, and for None, `text` is the answer. `seconds` is how long each takes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[Refusal | None] = []
        self.text: str | None = "A text about it."
        self.seconds = 0.0
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def take(self, path: str, key: str | None, body: dict[str, Any]) -> Refusal | None:
        with self._lock:
            self.asked.append(body)
            self.times.append(time.monotonic())
            self.paths.append(path)
            self.keys.append(key)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            refusal = self.script.pop(0) if self.script else None
        time.sleep(self.seconds)
        with self._lock:
            self._at_once -= 1
        return refusal

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeGenerator
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refusal = self.server.take(self.path, self.headers.get("Authorization"), body)
        if refusal is None:
            message = {"role": "assistant", "content": self.server.text}
            refusal = Refusal(status=200, body=json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}))
        content = refusal.body.encode()
        self.send_response(refusal.status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **refusal.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def fake_generator() -> Iterator[FakeGenerator]:
    server = FakeGenerator()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

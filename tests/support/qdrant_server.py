"""A Qdrant server for tests: the part of its REST interface that the index uses, over qdrant-client's own in-memory engine.

It checks requests against Qdrant's models and asks for an API key. It has no payload indexes; it writes down those it was asked for.
"""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import BaseModel
from qdrant_client import QdrantClient, models

API_KEY = "test-key"


class QdrantServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.engine = QdrantClient(":memory:")
        self.lock = threading.Lock()
        self.payload_indexes: dict[str, Any] = {}
        self.created: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Any:
        for (verb, pattern), action in _ACTIONS.items():
            if verb == method and (match := re.fullmatch(pattern, path)):
                with self.lock:
                    return action(self, *match.groups(), body)
        raise LookupError(f"{method} {path}")


@contextmanager
def qdrant_server(port: int = 0) -> Iterator[QdrantServer]:
    with warnings.catch_warnings():
        server = QdrantServer(port)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: QdrantServer
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.headers.get("api-key") != API_KEY:
            return self._reply(401, {"status": {"error": "Invalid API key"}})
        try:
            result = self.server.answer(self.command, self.path.partition("?")[0], body)
        except (LookupError, ValueError) as error:
            return self._reply(400, {"status": {"error": str(error)}})
        return self._reply(200, {"result": result, "status": "ok", "time": 0.0})

    do_GET = do_PUT = do_POST = _serve

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def _json(value: BaseModel) -> Any:
    return value.model_dump(mode="json")


def _create(server: QdrantServer, name: str, body: dict[str, Any]) -> bool:
    server.created.append(body)
    wanted = models.CreateCollection.model_validate(body)
    return server.engine.create_collection(name, vectors_config=wanted.vectors, metadata=wanted.metadata)


def _index(server: QdrantServer, _name: str, body: dict[str, Any]) -> Any:
    models.CreateFieldIndex.model_validate(body)
    server.payload_indexes[body["field_name"]] = body["field_schema"]
    return {"operation_id": 0, "status": "completed"}


def _upsert(server: QdrantServer, name: str, body: dict[str, Any]) -> Any:
    return _json(server.engine.upsert(name, models.PointsList.model_validate(body).points))


def _query(server: QdrantServer, name: str, body: dict[str, Any]) -> Any:
    asked = models.QueryRequest.model_validate(body)
    found = server.engine.query_points(name, query=asked.query, query_filter=asked.filter, limit=asked.limit or 10, with_payload=True)
    return _json(found)


def _delete(server: QdrantServer, name: str, body: dict[str, Any]) -> Any:
    return _json(server.engine.delete(name, models.FilterSelector.model_validate(body)))


def _count(server: QdrantServer, name: str, body: dict[str, Any]) -> Any:
    return _json(server.engine.count(name, count_filter=models.CountRequest.model_validate(body).filter))


_ACTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("GET", "/collections"): lambda server, _body: _json(server.engine.get_collections()),
    ("GET", "/collections/([^/]+)/exists"): lambda server, name, _body: {"exists": server.engine.collection_exists(name)},
    ("GET", "/collections/([^/]+)"): lambda server, name, _body: _json(server.engine.get_collection(name)),
    ("PUT", "/collections/([^/]+)"): _create,
    ("PUT", "/collections/([^/]+)/index"): _index,
    ("PUT", "/collections/([^/]+)/points"): _upsert,
    ("POST", "/collections/([^/]+)/points/query"): _query,
    ("POST", "/collections/([^/]+)/points/delete"): _delete,
    ("POST", "/collections/([^/]+)/points/count"): _count,
}

"""A stand-in for the whole server, for tests of the command line, the demo and the benchmark: every upload trains in an instant.

Run as a program it takes the port and the data directory from the environment, as the API does. It knows the documents it was given,
and "learns" a text by remembering it: scores depend on the mode alone, answers are the first words of the document.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "kms_test_key"
LOG_LIKELIHOOD = {"base": -9.0, "closed_book": -2.0, "retrieval": -3.0, "open_book": -1.0}
"""Of the first text to score; of the others it is -5."""


class FakeExtractors:
    """The part that trains and switches extractors, at once. `outcome` is the state that each training ends in."""

    def __init__(self) -> None:
        self.outcome = "succeeded"
        self.requests: list[bytes] = []
        self.items: dict[str, dict[str, Any]] = {}
        self.jobs: dict[str, list[dict[str, Any]]] = {}
        """What a job will be, the next one first; the last one stays."""

    def train(self, body: bytes) -> dict[str, Any]:
        self.requests.append(body)
        number = len(self.requests)
        job: dict[str, Any] = {"id": f"job_{number}", "kind": "extractor", "state": "queued", "attempt": 0}
        running = {**job, "state": "running", "stage": "fitting", "progress": {"done": 1, "total": 4, "unit": "steps"}}
        ended = {**job, "state": self.outcome, "extractor_id": f"ext_{number}"}
        if self.outcome == "failed":
            ended |= {"extractor_id": None, "error": {"code": "gate_not_passed", "message": "it learned too little"}}
        else:
            self.items[f"ext_{number}"] = show_extractor(f"ext_{number}", active=b"activate" in body)
        self.jobs[job["id"]] = [running, ended]
        return job

    def job(self, job_id: str) -> dict[str, Any]:
        steps = self.jobs[job_id]
        return steps.pop(0) if len(steps) > 1 else steps[0]

    def listed(self) -> dict[str, Any]:
        going = [steps[0] for steps in self.jobs.values() if steps[0]["state"] == "running"]
        return {"items": list(self.items.values()), "jobs": going}

    def switch(self, extractor_id: str, active: bool) -> dict[str, Any]:
        self.items[extractor_id]["active"] = active
        return {**self.items[extractor_id], "retraining": 2 if active else 0}


class FakeKmserve(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0, *, outcome: str = "ready", likelihood: dict[str, float] | None = None) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.outcome = outcome
        self.likelihood = likelihood or LOG_LIKELIHOOD
        self.documents: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.uploads: list[bytes] = []
        self.trainings: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.never_settles = False
        self.extractors = FakeExtractors()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, body: bytes, title: str) -> dict[str, Any]:
        with self.lock:
            self.uploads.append(body)
            document_id = f"doc_{len(self.documents) + 1}"
            row = self.documents[document_id] = show(document_id, title, "ingesting")
        return row

    def settle(self, document_id: str) -> list[dict[str, Any]]:
        """The document's life from here on, each step as an event shows it."""
        title = self.documents[document_id]["title"]
        steps = [show(document_id, title, "training", done=done) for done in (1, 2)]
        last = show(document_id, title, self.outcome)
        self.documents[document_id] = last
        return [*steps, last]


def show(document_id: str, title: str, status: str, done: int | None = None) -> dict[str, Any]:
    job: dict[str, Any] = {"id": f"job_of_{document_id}", "kind": "train", "state": "succeeded", "attempt": 1}
    error = None
    if done is not None:
        job |= {"state": "running", "stage": "fitting", "progress": {"done": done, "total": 4, "unit": "steps", "eta_seconds": 61.0}}
    if status == "retrieval_ready":
        error = {"code": "gate_not_passed", "message": "the module was not better"}
        job |= {"state": "failed", "error": error}
    module = {"version": 1, "digest": "ab", "state": "published", "gate": {}} if status == "ready" else None
    return {"id": document_id, "title": title, "status": status, "module": module, "job": job, "error": error, "row_version": 1}


def show_extractor(extractor_id: str, active: bool) -> dict[str, Any]:
    digests = {"lora": "a" * 64, "composition": "b" * 64, "base_fingerprint": "f" * 64, "scope": "all"}
    return {"id": extractor_id, "owner": "default", "name": "Short", "active": active, "worn_by": 3, "created_at": 1.0, **digests}


class Handler(BaseHTTPRequestHandler):
    server: FakeKmserve

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts == ["health", "ready"]:
            return self._send(200, {})
        if parts == ["extractors"]:
            return self._send(200, self.server.extractors.listed())
        if parts[0] == "jobs":
            return self._send(200, self.server.extractors.job(parts[1]))
        if parts[0] == "extractors":
            return self._extractor(parts[1])
        if parts == ["documents"]:
            return self._send(200, {"items": list(self.server.documents.values()), "next": None})
        if parts[1] not in self.server.documents:
            return self._problem(404, "document_not_found", "no such document")
        if parts[2:] == ["events"]:
            return self._events(parts[1])
        if "wait=" in self.path:
            self.server.documents[parts[1]] = self.server.settle(parts[1])[0]
        return self._send(200, self.server.documents[parts[1]])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.headers["authorization"] != f"Bearer {KEY}":
            return self._problem(401, "unauthorized", "the API key is unknown")
        if self.path == "/documents":
            return self._upload(body)
        if self.path == "/extractors":
            return self._send(202, self.server.extractors.train(body))
        if self.path.startswith("/extractors/"):
            _, _, extractor_id, step = self.path.split("/")
            return self._send(200, self.server.extractors.switch(extractor_id, step == "activate"))
        wanted = json.loads(body)
        if self.path.endswith("/modules"):
            return self._train(self.path.split("/")[2], wanted)
        if self.path == "/search":
            return self._send(200, {"hits": [cite(document_id) for document_id in self.server.documents]})
        return self._ask(wanted)

    def do_DELETE(self) -> None:
        document_id = self.path.rsplit("/", 1)[1]
        if document_id in self.server.extractors.items:
            return self._delete_extractor(document_id)
        del self.server.documents[document_id]
        removed = {"passages": 3, "revisions": 1, "modules": ["ab"], "jobs": 2}
        self._send(200, {"document_id": document_id, "deleted_at": 1.0, "complete": True, "removed": removed})

    def _extractor(self, extractor_id: str) -> None:
        if extractor_id not in self.server.extractors.items:
            return self._problem(404, "extractor_not_found", "no such extractor")
        return self._send(200, self.server.extractors.items[extractor_id])

    def _delete_extractor(self, extractor_id: str) -> None:
        if self.server.extractors.items[extractor_id]["active"]:
            return self._problem(409, "extractor_in_use", "the extractor is active")
        del self.server.extractors.items[extractor_id]
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _upload(self, body: bytes) -> None:
        if b"refuse me" in body:
            return self._problem(413, "upload_too_large", "a document has at most 5 bytes")
        title = json.loads(body).get("title", "text") if self.headers["content-type"] == "application/json" else _filename(body)
        self._send(202, {**self.server.add(body, title), "eta_seconds": 190.0})

    def _train(self, document_id: str, wanted: dict[str, Any]) -> None:
        if document_id not in self.server.documents:
            return self._problem(404, "document_not_found", "no such document")
        if "steps" in wanted.get("recipe", {}):
            return self._problem(422, "invalid_input", "recipe.steps: Extra inputs are not permitted")
        self.server.trainings.append(wanted)
        row = show(document_id, self.server.documents[document_id]["title"], "training", done=0)
        self.server.documents[document_id] = row
        self._send(202, row)

    def _events(self, document_id: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        if self.server.never_settles:
            time.sleep(600)
        for number, step in enumerate(self.server.settle(document_id), start=1):
            self._event("document", step, number)

    def _ask(self, wanted: dict[str, Any]) -> None:
        self.server.asked.append(wanted)
        mode = "retrieval" if wanted.get("mode", "auto") == "auto" else wanted["mode"]
        if mode == "closed_book" and self.server.outcome != "ready":
            return self._problem(409, "module_not_ready", "this document has no published module yet")
        km = {"document_id": "doc_1", "version": 1, "digest": "ab"} if mode in ("closed_book", "open_book") else None
        used: dict[str, Any] = {
            "mode": mode,
            "base": "fake",
            "km": km,
            "ke": None,
            "composition": None,
            "passages": [],
            "dropped_passages": [],
        }
        scores = [
            self._score(text, self.server.likelihood[mode] if number == 0 else -5.0) for number, text in enumerate(wanted.get("score", []))
        ]
        text = f"{mode} says 31 days"
        answer = {
            "answer": text,
            "citations": [cite(document_id) for document_id in self.server.documents] if mode in ("retrieval", "open_book") else [],
            "used": used,
            "usage": {"prompt_tokens": 20, "completion_tokens": 4},
            "scores": scores or None,
            "finish_reason": "stop",
            "request_id": "req_1",
        }
        if not wanted.get("stream"):
            return self._send(200, answer)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self._event("answer.started", {"request_id": "req_1", "used": used}, 1)
        for number, word in enumerate(text.split(" "), start=2):
            self._event("answer.delta", {"text": f"{word} "}, number)
        self._event("answer.completed", answer, 99)

    @staticmethod
    def _score(text: str, total: float) -> dict[str, Any]:
        return {"text": text, "logprobs": [total / 2, total / 2], "total": total}

    def _event(self, name: str, data: dict[str, Any], number: int) -> None:
        self.wfile.write(f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode())

    def _problem(self, status: int, code: str, detail: str) -> None:
        self._send(status, {"status": status, "code": code, "detail": detail, "title": code})

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def cite(document_id: str) -> dict[str, Any]:
    place = {"passage_id": f"p_{document_id}", "document_id": document_id, "revision": "rev_1", "filename": "policy.md", "page": 2}
    return {**place, "char_start": 0, "char_end": 7, "quote": "Everyone gets\n31 days.", "score": 0.71}


def _filename(body: bytes) -> str:
    return body.partition(b'filename="')[2].partition(b'"')[0].decode()


@contextmanager
def running(server: FakeKmserve) -> Iterator[FakeKmserve]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    root = Path(os.environ["KMSERVE_DATA_DIR"])
    root.mkdir(parents=True, exist_ok=True)
    (root / "admin.key").write_text(KEY)
    server = FakeKmserve(int(os.environ["KMSERVE_PORT"]), outcome=os.environ.get("FAKE_OUTCOME", "ready"))
    server.never_settles = "--never-settles" in sys.argv
    server.serve_forever()


if __name__ == "__main__":
    main()

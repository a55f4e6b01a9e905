"""Answers and scores, each computed once: a run that was killed goes on from what it had, and rows that ask the same share it.

What was computed lies in a file of JSON lines under a digest of all that it depends on: the reader, the base's fingerprint and dtype,
the prompt's ids, the adapters' digests, the sampling or the ids that were scored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from server.engine.base_model import BaseModel
from server.engine.batch_engine import BatchEngine
from server.engine.generate import generate_on
from server.engine.options import EngineOptions
from server.engine.prompt import Prompt
from server.engine.request import EngineRequest, Scope
from server.engine.score import score_on
from server.modules.canonical import canonical_json

Tokens = tuple[int, ...]
Ask = tuple[EngineRequest, Sequence[Tokens]]
"""A prompt and the continuations to score after it."""
Logprobs = list[tuple[float, ...]]
"""Of each continuation, token by token."""


class Reader(Protocol):
    """A way to read prompts. `name` tells it from others whose numbers differ."""

    @property
    def name(self) -> str: ...

    def prompt_tokens(self, prompt: Prompt) -> int: ...

    def session(self) -> AbstractContextManager[None]:
        """Entered around `generate` and `score`: within it, what was read of a prompt for one may serve the other."""
        ...

    def generate(self, requests: Sequence[EngineRequest], on_finished: Callable[[int, str], None]) -> None:
        """Calls `on_finished(index, text)` as each answer ends, in any order."""
        ...

    def score(self, asks: Sequence[Ask], on_finished: Callable[[int, Logprobs], None]) -> None: ...


class EngineReader:
    """The serving engine, as a library. One engine serves a session, so that a prompt is read once for its answer and its scores."""

    name = "engine"

    def __init__(self, base: BaseModel, options: EngineOptions) -> None:
        self._base = base
        self._options = options
        self._engine: BatchEngine | None = None

    def prompt_tokens(self, prompt: Prompt) -> int:
        return len(prompt)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        try:
            yield
        finally:
            if self._engine is not None:
                self._engine.close()
                self._engine = None

    def generate(self, requests: Sequence[EngineRequest], on_finished: Callable[[int, str], None]) -> None:
        generate_on(self._running(), requests, on_finished)

    def score(self, asks: Sequence[Ask], on_finished: Callable[[int, Logprobs], None]) -> None:
        score_on(self._running(), asks, lambda index, scores: on_finished(index, [score.logprobs for score in scores]))

    def _running(self) -> BatchEngine:
        """Started by the first that is asked: rows that are remembered need none."""
        if self._engine is None:
            self._engine = BatchEngine(self._base, self._options)
        return self._engine


class Results:
    """Digest to JSON value, in a file that is only ever appended to; a line that a kill tore is as if it had not been written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else ():
            with contextlib.suppress(ValueError, TypeError):
                self._known.update(json.loads(line))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def keep(self, key: str, value: Any) -> None:
        """On its own line, behind whatever a kill left of the last one."""
        self._known[key] = value
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps({key: value})}")


class Remembered:
    """A reader that computes only what `results` does not hold."""

    def __init__(self, base: BaseModel, results: Results) -> None:
        self._base = base
        self._results = results

    def generate(self, reader: Reader, requests: Sequence[EngineRequest], on_progress: Callable[[int], None]) -> list[str]:
        """The answers in order; `on_progress` hears how many there are by now."""
        keys = [self._key(reader, request, sampling=asdict(request.sampling)) for request in requests]

        def compute(missing: Sequence[int], keep: Callable[[int, Any], None]) -> None:
            reader.generate([requests[index] for index in missing], keep)

        return [str(value) for value in self._all(keys, compute, on_progress)]

    def score(self, reader: Reader, asks: Sequence[Ask], on_progress: Callable[[int], None]) -> list[Logprobs]:
        keys = [self._key(reader, request, continuations=[list(ids) for ids in continuations]) for request, continuations in asks]

        def compute(missing: Sequence[int], keep: Callable[[int, Any], None]) -> None:
            reader.score([asks[index] for index in missing], keep)

        return [[tuple(logprobs) for logprobs in value] for value in self._all(keys, compute, on_progress)]

    def _all(
        self,
        keys: Sequence[str],
        compute: Callable[[Sequence[int], Callable[[int, Any], None]], None],
        on_progress: Callable[[int], None],
    ) -> list[Any]:
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        missing = [index for key, index in sorted(first.items(), key=lambda pair: pair[1]) if key not in self._results]
        left = len(missing)
        on_progress(len(keys) - left)

        def keep(number: int, value: Any) -> None:
            nonlocal left
            self._results.keep(keys[missing[number]], value)
            left -= 1
            on_progress(len(keys) - left)

        if missing:
            compute(missing, keep)
        return [self._results[key] for key in keys]

    def _key(self, reader: Reader, request: EngineRequest, **asked: Any) -> str:
        module, extractor = request.module, request.extractor
        depends = {
            "reader": reader.name,
            "base": self._base.fingerprint,
            "dtype": str(self._base.dtype),
            "bare": list(request.prompt.bare),
            "adapted": list(request.prompt.adapted),
            "module": None if module is None else [module.digest, Scope(module.scope)],
            "extractor": None if extractor is None else [extractor.digest, extractor.composition, Scope(extractor.scope)],
            **asked,
        }
        return hashlib.sha256(canonical_json(depends)).hexdigest()

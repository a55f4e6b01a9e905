"""What a generator is asked, and that every text is on disk before it is used."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from worker.synthesis.prompts import question_prompt

POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One generation: a chat instruction over a context, or (instruction empty) a plain text to go on with."""

    context: str
    instruction: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    completion: str = field(default="", repr=False)
    """The plain text. Empty: that of questions about the context."""

    @property
    def key(self) -> str:
        """What is stored under it stays good: a field that is added since has no part in the key where it is empty."""
        return hashlib.sha256((repr(self) + self.completion).encode()).hexdigest()[:32]

    @property
    def plain_text(self) -> str:
        """What an ask without an instruction goes on with."""
        return self.completion or question_prompt(self.context)


class Generator(Protocol):
    def __call__(self, asks: Sequence[Ask], on_finished: Callable[[int, str], None]) -> None:
        """Generate each; `on_finished(index, text)` as they end, on the caller's thread. May return early when it is told to stop."""
        ...


def derived_seed(seed: int, *parts: object) -> int:
    """A generator seed for (job seed, kind, chunk or window, n), the same whatever else runs."""
    return int.from_bytes(hashlib.sha256(repr((seed, *parts)).encode()).digest()[:7], "big")


def generated(asks: Sequence[Ask], generate: Generator, store: Path, step: Callable[[int, int], None]) -> dict[str, str]:
    """Texts by the asks' keys. What `store` (JSON lines) holds is not generated again; a text is kept there before it is used.

    Trainings of one document may share a store: while one of them writes, others wait for its texts, and `step` is called meanwhile.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("a", encoding="utf-8") as file:
        _alone(file, lambda: step(0, len(asks)))
        done = _stored(store)
        missing = [ask for ask in asks if ask.key not in done]
        left = len(missing)
        step(len(asks) - left, len(asks))
        if store.stat().st_size:
            file.write("\n")  # ends a line that a kill tore

        def keep(index: int, text: str) -> None:
            nonlocal left
            done[missing[index].key] = text
            file.write(json.dumps({missing[index].key: text}) + "\n")
            file.flush()
            left -= 1
            step(len(asks) - left, len(asks))

        if missing:
            generate(missing, keep)
            step(len(asks) - left, len(asks))  # raises if the generator was told to stop
    return done


def _stored(store: Path) -> dict[str, str]:
    """What earlier attempts generated; a line that a kill tore is generated again, and of two under one key the first was used."""
    done: dict[str, str] = {}
    for line in store.read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(ValueError):
            done = json.loads(line) | done
    return done


def _alone(file: IO[str], waiting: Callable[[], None]) -> None:
    """Returns once no other process writes to it; the lock ends with the file."""
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            time.sleep(POLL_SECONDS)

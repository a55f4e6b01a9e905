"""The trainer as a child process. Knows its pipes and signals, and nothing of jobs or training.

The child holds the read end of a pipe whose only writer is this process: when this process dies, however it dies, the child reads an end
of file and exits. It runs in a session of its own, so that a Ctrl-C meant for the worker does not reach it, and with lower priority.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from worker.events import Event, parse_event

NICE: Final = 10
_TAIL_BYTES: Final = 4096


class TrainerProcess:
    """Use as a context: whatever happens in it, no child is left behind it.

    `command` gets the job's directory as its last argument; what it writes on standard error is appended to `log`. Its environment is
    ours and `secrets`, which are to be in no file.
    """

    def __init__(
        self, command: Sequence[str], directory: Path, log: Path, *, grace_seconds: float, secrets: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        self._grace = grace_seconds
        self._asked_at: float | None = None
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [*command, str(directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **(secrets or {})},
                start_new_session=True,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, NICE)

    def __enter__(self) -> TrainerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.kill()
        self._process.__exit__(kind, error, traceback)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def asked_to_stop(self) -> bool:
        return self._asked_at is not None

    def events(self) -> Iterator[Event]:
        """What it says, until it closes its output, which it does at the latest by ending."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if (event := parse_event(line)) is not None:
                yield event

    def wait(self) -> int:
        """Its exit code; negative for the signal that ended it."""
        return self._process.wait()

    def stop(self) -> None:
        """Ask it to write a checkpoint and exit. To be called again until it has: after the grace it is killed."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self._process.send_signal(signal.SIGTERM)
        elif time.monotonic() - self._asked_at > self._grace:
            self.kill()

    def kill(self) -> None:
        """End it and what it started, at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The end of its log."""
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").strip()

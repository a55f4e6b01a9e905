"""The API and the worker as children of this process: started in order, watched, and stopped whatever happens.

    with terminable(), Stack(settings, environ, log_dir) as stack:
        stack.start_api() ... stack.start_worker() ... stack.check()

Knows nothing of the API's requests. Each child has a process group of its own, so that Ctrl-C reaches this process alone and the
children are stopped by it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from server.presence import running_url
from server.settings import ENV_PREFIX, Settings, load_settings

API = ("-m", "server.app")
WORKER = ("-m", "worker.celery_app")
GRACE_SECONDS = 45.0
"""A training that is told to stop writes a checkpoint first."""
_LOOK_SECONDS = 0.5
_TAIL_LINES = 25
_SHARED = (
    *("environment", "secret_key", "database_url", "broker_url", "qdrant_url", "qdrant_api_key"),
    *("generator_url", "generator_model", "generator_api_key"),
)
"""What may lead to data or services outside the data directory."""

T = TypeVar("T")


class StackError(Exception):
    """A child could not be started or died; the message says which, and how its log ends."""


@dataclass(frozen=True, kw_only=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path | None

    def obituary(self) -> str:
        message = f"{self.name} ended with exit code {self.process.returncode}"
        if self.log is None:
            return message
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"{message}; its log ends:", *lines])


class Stack:
    """`environ` is the children's whole environment, `api` and `worker` the arguments of their interpreters. Their logs go to `log_dir`,
    or where this process' own go."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        *,
        log_dir: Path | None = None,
        api: Sequence[str] = API,
        worker: Sequence[str] = WORKER,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.settings = settings
        self._api = api
        self._worker = worker
        self._grace_seconds = grace_seconds
        self._environ = dict(environ)
        self._log_dir = log_dir
        self._children: list[Child] = []

    @property
    def url(self) -> str:
        return self.settings.url

    @property
    def key_file(self) -> Path:
        return self.settings.root / "admin.key"

    def start_api(self) -> None:
        """Raises StackError when the data directory is in use, or the port is taken: another server would answer in this one's place."""
        if (other := running_url(self.settings)) is not None:
            raise StackError(f"a server at {other} uses {self.settings.root}; stop it, or choose another with --data-dir")
        require_free(self.settings.host, self.settings.port)
        self._start("the API", self._api)

    def start_worker(self) -> None:
        """Only once the API is ready: it has migrated the database by then."""
        self._start("the worker", self._worker)

    def check(self) -> None:
        """Raises StackError if a child has died."""
        for child in self._children:
            if child.process.poll() is not None:
                raise StackError(child.obituary())

    def stop(self) -> None:
        """End all children, the last started first asked; after the grace period, or on another Ctrl-C, they are killed."""
        for child in reversed(self._children):
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + self._grace_seconds
        try:
            for child in self._children:
                child.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            pass
        finally:
            for child in self._children:
                _signal(child, signal.SIGKILL)
                child.process.wait()
            self._children.clear()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _start(self, name: str, command: Sequence[str]) -> None:
        log = None if self._log_dir is None else self._log_dir / f"{name.split()[-1].lower()}.log"
        output = None if log is None else log.open("ab")
        try:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()
        self._children.append(Child(name=name, process=process, log=log))


def configured(**overrides: Any) -> tuple[Settings, dict[str, str]]:
    """The settings with `overrides` (None: not given), and the environment that makes a child read the same.

    Raises ValueError for a setting that is unknown or wrong.
    """
    load_settings()
    given = {name: value for name, value in overrides.items() if value is not None}
    return Settings(**given), {**os.environ, **{_variable(name): str(value) for name, value in given.items()}}


def isolated(data_dir: Path, **overrides: Any) -> tuple[Settings, dict[str, str]]:
    """Like `configured`, for a server of its own in `data_dir`, on a free port: services that the environment names are not touched."""
    own = {name: Settings.model_fields[name].default for name in _SHARED}
    given = {"data_dir": data_dir, "host": "127.0.0.1", "port": free_port(), **overrides}
    _, environ = configured(**given)
    hidden = {_variable(name) for name in _SHARED}
    return Settings(**{**own, **given}), {name: value for name, value in environ.items() if name not in hidden}


def _variable(name: str) -> str:
    return f"{ENV_PREFIX}{name.upper()}"


async def while_alive(stack: Stack, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when a child dies. Raises StackError."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait((task,), timeout=_LOOK_SECONDS)
            stack.check()
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def require_free(host: str, port: int) -> None:
    """Raises StackError unless a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StackError(
                f"cannot listen on {host}:{port} ({error.strerror}); choose another port with --port, or 0 for a free one"
            ) from None


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM and a hangup interrupt like Ctrl-C, and Ctrl-C works even where a shell started this process ignoring it."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _interrupt, signal.SIGHUP: _interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_: int, __: FrameType | None) -> None:
    signal.raise_signal(signal.SIGINT)


def _signal(child: Child, number: signal.Signals) -> None:
    """To the child's whole group when it is to be killed: nothing that it started is left over."""
    try:
        if number == signal.SIGKILL:
            os.killpg(child.process.pid, number)
        elif child.process.poll() is None:
            child.process.send_signal(number)
    except ProcessLookupError:
        pass

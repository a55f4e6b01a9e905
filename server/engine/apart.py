"""Work with torch beside the engine's thread: on a thread that ends, so that its team of CPU threads ends with it.

Every thread that computes in parallel keeps a team of OpenMP threads for its lifetime. Once there are more of them than cores, the OpenMP
library no longer lets an idle one spin for a moment but puts it to sleep at once, and waking it may cost more than the small products of
a decoding step (docs/adr/0012).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def apart(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call it on a thread of its own and wait for the result; raises what it raises."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(function(*args, **kwargs))
        except BaseException as error:
            result.set_exception(error)

    thread = Thread(target=run, name="apart")
    thread.start()
    try:
        return result.result()
    finally:
        thread.join()

"""What to do when a part that answers cannot be loaded: try again where waiting may mend it, with ever longer pauses.

A Qdrant server that starts later than this one, a full disk, a hub out of reach: those pass. A setting that names nothing does not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from server.errors import (
    BaseModelNotFound,
    BaseModelUnusable,
    DeviceUnavailable,
    EmbedderNotFound,
    IndexMismatch,
    KmserveError,
    StorageFull,
    Unavailable,
)
from server.parts import Loading
from server.problems import known

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0
_SETTINGS: Final = (BaseModelNotFound, BaseModelUnusable, DeviceUnavailable, EmbedderNotFound, IndexMismatch)
"""What someone has to change a setting, or what it names, for."""


async def until_it_works(
    step: Callable[[], Awaitable[T]],
    loading: Loading[Any],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """The result of `step`, which is tried again until it has one. Raises the KmserveError of what does not pass by itself."""
    for pause in pauses():
        try:
            return await step()
        except Exception as error:
            found = explained(error)
            if not passes(error):
                if found is error:
                    raise
                raise found from error
            logger.warning("not ready [%s]: %s; tried again in %.0f s", found.code, found.detail, pause, exc_info=error)
        # Not within the handler: its error would keep what was loaded, which may be gigabytes, in memory meanwhile.
        loading.failed(found.code, found.detail, retry_in=pause)
        await sleep(pause)
    raise AssertionError("pauses never end")


def pauses() -> Iterator[float]:
    """1, 2, 4, ... seconds, up to half a minute, without end."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def passes(error: BaseException) -> bool:
    """Whether waiting may mend it. What is not known may: only settings are certain to stay as they are."""
    if not isinstance(error, _SETTINGS):
        return True
    causes = list(_causes(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return False
    return any(_passing(cause) for cause in causes)


def explained(error: Exception) -> KmserveError:
    """For people: a full disk is said to be one whatever failed over it."""
    for cause in _causes(error):
        if isinstance(_known(cause), StorageFull):
            return StorageFull("the server's storage is full; make room for the models")
    return _known(error) or Unavailable("the models cannot be served; the server's log says why")


def _passing(cause: BaseException) -> bool:
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code >= 500 or cause.response.status_code == 429
    return isinstance(cause, LocalEntryNotFoundError | ConnectionError | TimeoutError) or isinstance(_known(cause), StorageFull)


def _known(error: BaseException) -> KmserveError | None:
    return known(error) if isinstance(error, Exception) else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__

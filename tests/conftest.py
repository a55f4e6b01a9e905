"""What holds for every test of the repository: half a million objects of torch and transformers stay until the end of the run, and the
collector need not walk them, neither while they are imported nor later."""

from __future__ import annotations

import gc


def pytest_sessionstart() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()

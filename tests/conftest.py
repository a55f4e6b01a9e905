"""What holds for every test of the repository, and saves each of them a few milliseconds."""

from __future__ import annotations

import gc
import logging


def pytest_sessionstart() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """Half a million objects of torch and transformers stay until the end of the run: the collector need not walk them, neither while
    they are imported nor later."""
    gc.freeze()
    gc.enable()
    _let_torch_log_through_the_root()


def _let_torch_log_through_the_root() -> None:
    """pytest hangs its handlers on every logger that does not propagate, six times a test, and torch has sixty of them."""
    for name, logger in logging.getLogger().manager.loggerDict.items():
        if name.startswith("torch") and isinstance(logger, logging.Logger):
            logger.propagate = True

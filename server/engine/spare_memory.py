"""Host memory for the adapters to come, its pages in hand: the system gives each out at its first use, and for all of an adapter this
can take longer than reading or converting it (docs/performance.md). Any thread may call it."""

from __future__ import annotations

import logging
from threading import Lock

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class SpareMemory:
    """One piece at most, as large as the last that was taken: adapters of one server are mostly of one size."""

    def __init__(self, dtype: torch.dtype, *, locked: bool) -> None:
        """`locked`: page-locked, for it will cross to a GPU."""
        self._dtype = dtype
        self._locked = locked
        self._lock = Lock()
        self._wanted = 0
        self._spare: Tensor | None = None
        self._renewing = False

    def take(self, elements: int) -> Tensor:
        """Memory for so many elements, uninitialised."""
        with self._lock:
            self._wanted = elements
            spare, self._spare = self._spare, None
        if spare is not None and spare.numel() == elements:
            return spare
        return self._new(elements)

    def renew(self) -> None:
        """Have a piece ready, if there was need for one. Takes milliseconds: for when a load is done, not before."""
        with self._lock:
            elements = self._wanted
            if not elements or self._renewing or self._fits():
                return
            self._renewing = True
        spare = None
        try:
            spare = self._new(elements)
            if not self._locked:  # locked pages are in hand already
                spare.zero_()
        finally:
            with self._lock:
                self._renewing = False
                if elements == self._wanted:
                    self._spare = spare

    def _fits(self) -> bool:
        return self._spare is not None and self._spare.numel() == self._wanted

    def _new(self, elements: int) -> Tensor:
        """Page-locked where that is wanted and the system locks pages: copies are slower without, and no request fails for that."""
        if self._locked:
            try:
                return torch.empty(elements, dtype=self._dtype, pin_memory=True)
            except RuntimeError:
                logger.warning("no page-locked memory for a module; copying it to the GPU will take longer", exc_info=True)
        return torch.empty(elements, dtype=self._dtype)

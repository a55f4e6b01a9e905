"""A LoRA's digest, computed portion by portion while its file is read: the disk reads on meanwhile, and the bytes are in the processor's
cache. Proves nothing by itself: what the file claims is checked once all of it is there."""

from __future__ import annotations

from collections import deque

from server.modules.digest import LoraDigest
from server.modules.layout import UNREADABLE, Place, layout_of
from server.modules.manifest import Manifest

_LENGTH = 8
"""Bytes at the beginning of a safetensors file that say how long its header is."""


class DigestedRead:
    def __init__(self, manifest: Manifest) -> None:
        self._digest = LoraDigest(manifest)
        self._left: deque[tuple[str, Place]] | None = None
        """In the digest's order; None until the header is there."""

    def see(self, data: memoryview, end: int) -> None:
        """`data` is the whole file, of which the first `end` bytes have been read."""
        if self._left is None and not self._begin(data, end):
            return
        assert self._left is not None
        while self._left and self._left[0][1].end <= end:
            name, place = self._left.popleft()
            self._digest.add(name, place.dtype, place.shape, data[place.start : place.end])

    def hexdigest(self, data: memoryview) -> str:
        """Of the whole file, which has been proven to be one."""
        self.see(data, len(data))
        return self._digest.hexdigest()

    def _begin(self, data: memoryview, end: int) -> bool:
        if end < _LENGTH or end < _LENGTH + int.from_bytes(data[:_LENGTH], "little"):
            return False
        try:
            places = layout_of(data).places
        except UNREADABLE:
            places = {}  # the checks of the whole file say what is wrong with it
        self._left = deque(sorted(places.items()))
        return True

"""A LoRA's digest, computed portion by portion while its file is read: the disk reads on meanwhile, and the bytes are in the processor's
cache. Proves nothing by itself: what the file claims is checked once all of it is there."""

from __future__ import annotations

from collections import deque

from server.modules.digest import LoraDigest
from server.modules.layout import UNREADABLE, Layout, Place, layout_of
from server.modules.manifest import Manifest
from server.modules.peft_format import tensor_names

_LENGTH = 8
"""Bytes at the beginning of a safetensors file that say how long its header is."""


class DigestedRead:
    def __init__(self, manifest: Manifest) -> None:
        self._digest = LoraDigest(manifest)
        self._expected = {name for layer in manifest.targets for name in tensor_names(layer)}
        self._left: deque[tuple[str, Place]] | None = None
        """In the digest's order; None until the header is there, or where it is not the expected one."""
        self._given_up = False
        self._file: object = None

    def see(self, data: memoryview, end: int) -> None:
        """`data` is the whole file, of which the first `end` bytes have been read."""
        self._file = data.obj
        if self._left is None:
            self._begin(data, end)
        while self._left and self._left[0][1].end <= end:
            name, place = self._left.popleft()
            self._digest.add(name, place.dtype, place.shape, data[place.start : place.end])

    def hexdigest(self, data: memoryview, layout: Layout) -> str:
        """Of the whole file, whose layout has been proven. ValueError for another file than was seen."""
        if self._file is not None and self._file is not data.obj:
            raise ValueError("the file is not the one that was read")
        if self._left is None:
            self._left = deque(sorted(layout.places.items()))
        self.see(data, len(data))
        return self._digest.hexdigest()

    def _begin(self, data: memoryview, end: int) -> None:
        if self._given_up or end < _LENGTH or end < _LENGTH + int.from_bytes(data[:_LENGTH], "little"):
            return
        try:
            places = layout_of(data).places
        except UNREADABLE:  # the checks of the whole file say what is wrong with it
            places = {}
        self._given_up = places.keys() != self._expected
        if not self._given_up:
            self._left = deque(sorted(places.items()))

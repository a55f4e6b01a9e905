"""Where the tensors of a safetensors file lie, and views of them. Knows no adapters.

The format's own library reads the headers. Equal headers are read once: all modules of one base model and rank are laid out alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from operator import mul
from types import MappingProxyType

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

_LAYOUTS = 16
UNREADABLE = (SafetensorError, ValueError, KeyError, RuntimeError, AssertionError)
"""What reading the header of something that is no such file may raise."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """`start` and `end` count bytes of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`places` by name, in the order of the file, without gaps up to its end. `rows` are the names again: tensors of one shape that lie
    evenly spaced, as those of one kind do layer by layer."""

    places: Mapping[str, Place]
    rows: Sequence[Sequence[str]]


def layout_of(data: bytearray | memoryview) -> Layout:
    """Looks at no byte behind the header. Raises one of UNREADABLE."""
    return _layout(bytes(data[: 8 + int.from_bytes(data[:8], "little")]), len(data))


def views(data: bytearray, layout: Layout) -> tuple[Tensor, dict[str, Tensor]]:
    """All elements in one vector, and each tensor as a view of it. `layout` is of `data`, of one dtype, and has tensors, no scalars. A row
    at a time: each of hundreds of steps would give the interpreter's lock away and wait for it."""
    first = next(iter(layout.places.values()))
    size = first.dtype.itemsize
    aligned = first.start % size == 0
    flat = torch.frombuffer(data if aligned else data[first.start :], dtype=first.dtype, offset=first.start if aligned else 0)
    found: dict[str, Tensor] = {}
    for row in layout.rows:
        shape = layout.places[row[0]].shape
        starts = [(layout.places[name].start - first.start) // size for name in row[:2]]
        inner = tuple(accumulate(reversed(shape[1:]), mul, initial=1))[::-1]
        together = flat.as_strided((len(row), *shape), (starts[-1] - starts[0], *inner), starts[0])
        found.update(zip(row, together.unbind(), strict=True))
    return flat, found


@lru_cache(maxsize=_LAYOUTS)
def _layout(head: bytes, size: int) -> Layout:
    # The library proves that the tensors fill the file and do not overlap; it looks at no byte behind the header, so zeros do.
    tensors = safetensors.torch.load(head + bytes(size - len(head)))
    header = json.loads(head[8:])
    found = {}
    for name, tensor in tensors.items():
        start, end = (len(head) + offset for offset in header[name]["data_offsets"])
        found[name] = Place(dtype=tensor.dtype, shape=tuple(tensor.shape), start=start, end=end)
    places = dict(sorted(found.items(), key=lambda item: item[1].start))
    return Layout(places=MappingProxyType(places), rows=_rows(places))


def _rows(places: Mapping[str, Place]) -> tuple[tuple[str, ...], ...]:
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, place in places.items():
        alike.setdefault((re.sub(r"\d+", "", name), place.shape), []).append(name)
    rows: list[tuple[str, ...]] = []
    for names in alike.values():
        even = len({places[later].start - places[earlier].start for earlier, later in pairwise(names)}) <= 1
        rows += [tuple(names)] if even else [(name,) for name in names]
    return tuple(rows)

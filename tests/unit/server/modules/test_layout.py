from __future__ import annotations

from collections.abc import Callable

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from server.modules.layout import _layout, layout_of, views

TENSORS = {"b": torch.arange(6).reshape(2, 3).float(), "a": torch.arange(4).reshape(4, 1).float(), "c": torch.ones(1)}


def file(**metadata: str) -> bytes:
    return safetensors.torch.save(TENSORS, metadata=metadata)


def test_tensors_are_found_where_they_lie() -> None:
    data = bytearray(file(format="pt"))
    layout = layout_of(data)
    found = layout.places
    assert [(name, place.shape, place.dtype) for name, place in found.items()] == [
        (name, tuple(TENSORS[name].shape), torch.float32) for name in ("a", "b", "c")
    ]
    flat, tensors = views(data, layout)
    assert flat.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 1]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    for name, place in found.items():
        assert bytes(data[place.start : place.end]) == TENSORS[name].numpy().tobytes()
        assert tensors[name].untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


def test_tensors_of_one_kind_are_seen_together_where_they_are_evenly_spaced() -> None:
    kinds = {
        f"layers.{layer}.{kind}": torch.full((2, width), float(layer + width))
        for layer in range(12)
        for kind, width in (("q", 3), ("o", 3), ("up", 5))
    }
    data = bytearray(safetensors.torch.save(kinds | {"norm": torch.ones(2, 4)}))
    layout = layout_of(data)
    assert sorted(len(row) for row in layout.rows) == [1, 12, 12, 12]
    _, tensors = views(data, layout)
    assert tensors.keys() == layout.places.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in kinds.items())


def test_tensors_of_one_kind_that_are_not_evenly_spaced_are_seen_one_by_one() -> None:
    tensors = {"x.0": torch.ones(2), "x.0.bias": torch.zeros(3), "x.1": torch.full((2,), 2.0), "x.2": torch.full((2,), 3.0)}
    data = bytearray(safetensors.torch.save(tensors))
    layout = layout_of(data)
    assert sorted(map(tuple, layout.rows)) == [("x.0",), ("x.0.bias",), ("x.1",), ("x.2",)]
    _, found = views(data, layout)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("spaces", range(1, 8))
def test_a_header_of_any_length_will_do(spaces: int) -> None:
    """Then the tensors lie at no multiple of their elements' size."""
    plain = file()
    length = int.from_bytes(plain[:8], "little")
    data = (length + spaces).to_bytes(8, "little") + plain[8 : 8 + length] + b" " * spaces + plain[8 + length :]
    _, tensors = views(bytearray(data), layout_of(bytearray(data)))
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_equal_headers_are_read_once() -> None:
    first, second = (bytearray(file(run="once")) for _ in range(2))
    second[-1:] = b"x"
    layout_of(first)
    before = _layout.cache_info().misses
    assert layout_of(second) is layout_of(first)
    assert _layout.cache_info().misses == before


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "no header": lambda data: data[:8],
    "half": lambda data: data[: len(data) // 2],
    "a byte less": lambda data: data[:-1],
    "a byte more": lambda data: data + b"x",
    "a header beyond the file": lambda data: (1 << 63).to_bytes(8, "little") + data[8:],
    "no JSON": lambda data: data[:8] + b"x" + data[9:],
    "overlapping": lambda data: data.replace(b"[16,40]", b"[12,36]"),
    "beyond the end": lambda data: data.replace(b"[40,44]", b"[44,48]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_no_file_of_the_format_though_a_good_one_was_read_before(damage: Callable[[bytes], bytes]) -> None:
    layout_of(bytearray(file()))
    changed = damage(file())
    assert changed != file()
    with pytest.raises((SafetensorError, ValueError)):
        layout_of(bytearray(changed))

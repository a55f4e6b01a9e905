"""Attention by torch's FlexAttention: one kernel for all rows of a pool, with windows and capped scores inside it.

Compiled (Triton) on a GPU; without compilation it writes all scores out, which serves tests on a CPU. It takes our rows as they lie,
with their shared heads, and skips blocks of keys that no token of a row sees.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from server.engine.attend import Kind, Seen

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Row, head, number of the asking token and of the key: whether it is seen."""
KERNELS = 64
"""Compiled for one process at most. A kind of layer takes five: one row or several, one token or several, with full blocks or none."""


class FlexAttend:
    def __init__(self, *, compiled: bool) -> None:
        self._attention: Callable[..., Any] = flex_attention
        if compiled:
            # Beyond torch's own limit, which two kinds of layers reach, it would go on without compilation, and slowly.
            torch._dynamo.config.recompile_limit = max(KERNELS, torch._dynamo.config.recompile_limit)
            self._attention = torch.compile(flex_attention, dynamic=True)
        self._blocks: WeakKeyDictionary[Seen, BlockMask] = WeakKeyDictionary()

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen, kind: Kind, /) -> Tensor:
        blocks = self._blocks.get(seen)
        if blocks is None:
            blocks = self._blocks[seen] = _blocks(seen)
        gqa = query.shape[1] != key.shape[1]
        out: Tensor = self._attention(
            query, key, value, score_mod=_capped(kind.softcap), block_mask=blocks, scale=kind.scaling, enable_gqa=gqa
        )
        return out


def _blocks(seen: Seen) -> BlockMask:
    """The layers of a step that see alike share one."""
    at = seen.at
    sees = _behind(at) if seen.reach is None else _within(at, seen.reach)
    return create_block_mask(sees, len(at), None, seen.asking, seen.end - seen.first, device=str(seen.device))


def _behind(at: Tensor) -> Sees:
    return lambda row, head, asked, key: key <= at[row] + asked


def _within(at: Tensor, reach: int) -> Sees:
    def sees(row: Tensor, head: Tensor, asked: Tensor, key: Tensor) -> Tensor:
        here = at[row] + asked
        return (key <= here) & (key > here - reach)

    return sees


@lru_cache
def _capped(softcap: float | None) -> Callable[..., Tensor] | None:
    """One function for each cap: a compiled kernel is kept by the function it was compiled for."""
    if softcap is None:
        return None

    def capped(score: Tensor, row: Tensor, head: Tensor, asked: Tensor, key: Tensor) -> Tensor:
        return torch.tanh(score / softcap) * softcap

    return capped

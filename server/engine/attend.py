"""The arithmetic of attention over rows of keys and values: what a layer asks for, what its tokens see, and torch's own fused kernels.

Another implementation is one more `Attend` (`attend_flex`); `attention_choice` says which one serves. Knows nothing of sequences or of
where rows come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a layer attends: its number, the factor on the scores, how far back it sees and the cap on the scores."""

    layer: int
    scaling: float
    window: int | None
    softcap: float | None


@dataclass(kw_only=True, eq=False)
class Seen:
    """Row `n` asks with `asking` tokens at positions `starts[n], starts[n] + 1, ...` about the keys of positions `first .. end - 1`,
    of which a token sees those up to its own and at most `reach` of them. `ends_there`: every row's last token is at `end - 1`."""

    starts: Sequence[int] | Tensor
    asking: int
    first: int
    end: int
    reach: int | None
    device: torch.device
    ends_there: bool = False
    _mask: Tensor | None = None

    @property
    def everything(self) -> bool:
        """Each row's only token sees all keys: nothing is to be masked."""
        return self.ends_there and self.asking == 1

    @property
    def causal(self) -> bool:
        """Tokens and keys are the same positions, with no window among them: what kernels call causal."""
        alike = self.ends_there and self.end - self.first == self.asking > 1
        return alike and (self.reach is None or self.reach >= self.asking)

    @property
    def at(self) -> Tensor:
        """`[N]`: `starts`, counted from `first`."""
        return torch.as_tensor(self.starts, device=self.device) - self.first

    @property
    def mask(self) -> Tensor:
        """`[N, 1, asking, end - first]`, True where a token may look. Made once: the layers of a step that see alike share it."""
        if self._mask is None:
            here = (self.at[:, None] + torch.arange(self.asking, device=self.device))[:, None, :, None]
            keys = torch.arange(self.end - self.first, device=self.device)
            self._mask = keys <= here
            if self.reach is not None:
                self._mask &= keys > here - self.reach
        return self._mask


class Attend(Protocol):
    """`query` `[N, heads, asking, dim]` over `key`, `value` `[N, kv heads, end - first, dim]` -> `[N, heads, asking, dim]`."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, seen: Seen, kind: Kind, /) -> Tensor: ...


def sdpa(query: Tensor, key: Tensor, value: Tensor, seen: Seen, kind: Kind, /) -> Tensor:
    """By `scaled_dot_product_attention`. On a GPU torch takes its flash kernel where nothing is masked or the mask is causal, and its
    memory-efficient one for other masks. Heads that share keys ask as one where each has one token: no copy of the keys."""
    batch, heads, asking, dim = query.shape
    shared = heads // key.shape[1]
    if asking == 1 and shared > 1:
        packed = query.reshape(batch, key.shape[1], shared, dim)
        return _scores(packed, key, value, seen, kind).reshape(batch, heads, 1, value.shape[3])
    if shared > 1:
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    return _scores(query, key, value, seen, kind)


def _scores(query: Tensor, key: Tensor, value: Tensor, seen: Seen, kind: Kind) -> Tensor:
    if kind.softcap is None:
        mask = None if seen.everything or seen.causal else seen.mask
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=seen.causal, scale=kind.scaling)
    scores = torch.tanh(query @ key.transpose(2, 3) * kind.scaling / kind.softcap) * kind.softcap
    if not seen.everything:
        scores = scores.masked_fill(~seen.mask, float("-inf"))
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    return torch.softmax(scores, dim=-1, dtype=precise).to(query.dtype) @ value

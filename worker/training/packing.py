"""Rows of tokens packed into one row: what several begin with is read once, nothing is padded where the model computes.

A pack is a tree. A node is a run of tokens that goes on from its parent's; the path from the root to a leaf is one of the rows. Linear
layers see each token once, side by side. Attention is over paths: nodes of about one length ask together, the shorter ones padded. Knows
token ids and places, nothing of examples or adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from server.engine.attend import Kind, Seen, sdpa

MIN_SHARED = 4
"""A shorter common beginning is not worth a node of its own."""
Ids = tuple[int, ...]
Places = tuple[int, ...]
"""Of tokens: those that an earlier pass read come first, then this pack's."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """`tokens`, of which the first `shared` may be read together with those of rows that begin alike, after the places `after` of an
    earlier pass. Rows of different `group` share nothing."""

    tokens: Ids
    shared: int
    after: Places = ()
    group: int = 0


@dataclass(frozen=True, kw_only=True)
class Node:
    """`tokens` at places `first`, `first + 1`, ..., which see the places `before` and each other's up to their own."""

    tokens: Ids
    first: int
    before: Places
    group: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """Tokens `start .. end - 1` of a pack, all of one group."""

    group: int
    start: int
    end: int


@dataclass(kw_only=True, eq=False)
class Pack:
    """`paths` are the places of each row's tokens, those before it included. `read` tokens were read by earlier passes, and `kept` has
    their keys and values by layer; those of this pass are added to it where it is one that `keeps` them."""

    nodes: Sequence[Node]
    paths: Sequence[Places]
    device: torch.device
    read: int = 0
    kept: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    keeps: bool = False
    made: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._asking = [_Asking(list(nodes), self.read, self.device) for _, nodes in groupby(sorted(self.nodes, key=_size), key=_size)]
        self._order = torch.tensor([place for asking in self._asking for place in asking.own], device=self.device).argsort()

    @property
    def ids(self) -> Tensor:
        """[1, T]"""
        return torch.tensor([[token for node in self.nodes for token in node.tokens]], device=self.device)

    @property
    def positions(self) -> Tensor:
        """[1, T]"""
        return torch.tensor([[len(node.before) + n for node in self.nodes for n in range(len(node.tokens))]], device=self.device)

    @property
    def tokens(self) -> int:
        return sum(len(node.tokens) for node in self.nodes)

    @property
    def padding(self) -> int:
        """Places of nodes that ask together and are shorter than the longest of them."""
        return sum(asking.places for asking in self._asking) - self.tokens

    @property
    def runs(self) -> list[Run]:
        ends = [(node.group, node.first - self.read, node.first - self.read + len(node.tokens)) for node in self.nodes]
        parts = [list(part) for _, part in groupby(ends, key=lambda end: end[0])]
        return [Run(group=part[0][0], start=part[0][1], end=part[-1][2]) for part in parts]

    def attend(self, kind: Kind, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """A layer's attention (server.engine.attention.Step): [1, heads, T, dim] -> [1, T, heads, dim]."""
        if kind.layer in self.kept:
            before = self.kept[kind.layer]
            key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
        if self.keeps:
            self.made[kind.layer] = (key, value)
        query_TH, key_TH, value_TH = (states[0].transpose(0, 1) for states in (query, key, value))
        parts = [asking.attend(kind, query_TH, key_TH, value_TH) for asking in self._asking]
        return torch.cat(parts).index_select(0, self._order)[None]


class _Asking:
    """Nodes that ask together."""

    def __init__(self, nodes: Sequence[Node], read: int, device: torch.device) -> None:
        longest = max(len(node.tokens) for node in nodes)
        seen = max(len(node.before) for node in nodes) + longest
        paths = [(*node.before, *range(node.first, node.first + len(node.tokens))) for node in nodes]
        self._shape = (len(nodes), longest, seen)
        self._device = device
        self._starts = [len(node.before) for node in nodes]
        self._seen: dict[int | None, Seen] = {}
        own = [range(node.first - read, node.first - read + len(node.tokens)) for node in nodes]
        self.own = [place for places in own for place in places]
        """Where its tokens are in the pack, in the order in which `attend` gives them."""
        self._queries = _padded(own, longest, device)
        self._keys = _padded(paths, seen, device)
        self._filled = torch.tensor([row * longest + n for row, places in enumerate(own) for n in range(len(places))], device=device)

    @property
    def places(self) -> int:
        return self._shape[0] * self._shape[1]

    def attend(self, kind: Kind, query_THD: Tensor, key_SHD: Tensor, value_SHD: Tensor) -> Tensor:
        """[its tokens, heads, dim], in the order of `own`."""
        rows, longest, seen = self._shape
        query = _rows(query_THD, self._queries, rows, longest)
        key, value = (_rows(states, self._keys, rows, seen) for states in (key_SHD, value_SHD))
        result = sdpa(query, key, value, self._seen_by(kind.window), kind).transpose(1, 2)
        return result.reshape(rows * longest, *result.shape[2:]).index_select(0, self._filled)

    def _seen_by(self, window: int | None) -> Seen:
        if window not in self._seen:
            _, longest, seen = self._shape
            self._seen[window] = Seen(
                starts=self._starts,
                asking=longest,
                first=0,
                end=seen,
                reach=window,
                device=self._device,
                ends_there=seen == longest,
            )
        return self._seen[window]


def pack(rows: Sequence[Row], device: torch.device, before: Pack | None = None) -> Pack:
    """One pass over all rows. `before` is an earlier pass that kept what it read; the rows' `after` are places in it."""
    read = before.read + before.tokens if before else 0
    nodes: list[Node] = []
    paths: dict[int, Places] = {}
    order = sorted(range(len(rows)), key=lambda number: (rows[number].group, rows[number].after, rows[number].tokens))
    for (group, after), numbers in groupby(order, key=lambda number: (rows[number].group, rows[number].after)):
        for number, path in _grow([(number, rows[number]) for number in numbers], 0, after, group, nodes, read):
            paths[number] = path
    return Pack(
        nodes=nodes, paths=[paths[number] for number in range(len(rows))], device=device, read=read, kept=before.made if before else {}
    )


def _grow(
    rows: Sequence[tuple[int, Row]], depth: int, before: Places, group: int, nodes: list[Node], read: int
) -> Iterator[tuple[int, Places]]:
    """Nodes for what the rows, sorted, hold from `depth` on. Yields (row's number, its path)."""
    for _, alike in groupby(rows, key=lambda row: _beginning(row[1], depth) or row[0]):
        together = list(alike)
        end = _common(together, depth) if len(together) > 1 else len(together[0][1].tokens)
        tokens = together[0][1].tokens[depth:end]
        first = nodes[-1].first + len(nodes[-1].tokens) if nodes else read
        nodes.append(Node(tokens=tokens, first=first, before=before, group=group))
        path = (*before, *range(first, first + len(tokens)))
        if len(together) > 1:
            yield from _grow(together, end, path, group, nodes, read)
        else:
            yield together[0][0], path


def _beginning(row: Row, depth: int) -> Ids:
    """What rows must have in common to be read together; nothing where a row has too little to share."""
    return row.tokens[depth : depth + MIN_SHARED] if row.shared - depth >= MIN_SHARED else ()


def _common(rows: Sequence[tuple[int, Row]], depth: int) -> int:
    """Where sorted rows part: their first and last do."""
    first, last = rows[0][1].tokens, rows[-1][1].tokens
    limit = min(row.shared for _, row in rows)
    return next((place for place in range(depth, limit) if first[place] != last[place]), limit)


def _size(node: Node) -> int:
    """Nodes of one size are padded to the longest of them: to twice their tokens at most."""
    return len(node.tokens).bit_length()


def _padded(rows: Sequence[Sequence[int]], width: int, device: torch.device) -> Tensor:
    return torch.tensor([place for row in rows for place in (*row, *[0] * (width - len(row)))], device=device)


def _rows(states_THD: Tensor, places: Tensor, rows: int, width: int) -> Tensor:
    """[rows, heads, width, dim]"""
    return states_THD.index_select(0, places).view(rows, width, *states_THD.shape[1:]).transpose(1, 2)

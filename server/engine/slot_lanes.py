"""Routed LoRA for a decoding step of fixed shape: one row a lane, its slot and factors read from buffers, no choices while it runs.

The slots that a step wears are multiplied once with all lanes, and a lane keeps the product of its own slot alone. A bare lane keeps
none. Does for a fixed shape what `Route` does for any.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from server.engine.adapter_bank import AdapterBank
from server.engine.routed_lora import Run

_BARE = -1


class SlotLanes:
    """`rank`: no slot worn in these lanes has a higher one."""

    def __init__(self, bank: AdapterBank, lanes: int, rank: int) -> None:
        self._bank = bank
        self._rank = rank
        self._used = min(lanes, bank.slots)
        self._planned: Sequence[Run] = ()
        self._slots = torch.zeros(self._used, dtype=torch.long, device=bank.device)
        self._places = torch.full((lanes,), _BARE, dtype=torch.long, device=bank.device)
        """Which of `_slots` each lane wears."""
        self._numbers = torch.arange(self._used, device=bank.device)
        self._factors = torch.zeros(bank.layers, lanes, 1, 1, dtype=bank.dtype, device=bank.device)
        self._own: Tensor | None = None

    def fill(self, runs: Sequence[Run]) -> None:
        """Write the step's plan into the buffers; `runs` are of one row each."""
        if runs == self._planned:
            return
        self._planned = runs
        worn = {run.start: run.worn for run in runs}
        used = list(range(self._bank.slots)) if self._whole else sorted({run.worn.slot for run in runs})
        places = {slot: place for place, slot in enumerate(used)}
        nothing = (0.0,) * self._bank.layers
        lanes = range(len(self._places))
        self._slots.copy_(torch.tensor(used + used[:1] * (self._used - len(used))))
        self._places.copy_(torch.tensor([places[worn[lane].slot] if lane in worn else _BARE for lane in lanes]))
        table = torch.tensor([worn[lane].factors if lane in worn else nothing for lane in lanes], dtype=self._bank.dtype)
        self._factors.copy_(table.T.reshape(self._factors.shape))

    def begin(self) -> None:
        """Before the layers of a step: what they share."""
        self._own = (self._places[:, None] == self._numbers).unsqueeze(2)

    def add(self, layer: int, x: Tensor, y: Tensor) -> None:
        assert self._own is not None
        lanes = len(self._places)
        down, up = (self._of_used(stored) for stored in self._bank.slots_at(layer, self._rank))
        inner = (x.reshape(lanes, -1) @ down.T).view(lanes, self._used, self._rank)
        # Chosen, not multiplied with zero: what is not finite in one lane's product stays there.
        own = torch.where(self._own, inner * self._factors[layer], 0.0)
        y.view(lanes, -1).addmm_(own.view(lanes, -1), up)

    @property
    def _whole(self) -> bool:
        return self._used == self._bank.slots

    def _of_used(self, stored: Tensor) -> Tensor:
        chosen = stored if self._whole else stored.index_select(0, self._slots)
        return chosen.reshape(self._used * self._rank, -1)

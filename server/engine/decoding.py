"""Decoding steps by shape: made at first use, recorded as a CUDA graph where there is one, replayed from then on.

A recording proves itself once against the same step computed call by call. Where recording fails or proves wrong, the reason is logged
and this engine decodes without it for good. Used by the engine's thread alone.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from server.engine.adapter_bank import AdapterBank
from server.engine.attend import Attend
from server.engine.attention import Span
from server.engine.decode_step import DecodeStep, Forward, Shape, pools_of, shape_of
from server.engine.routed_lora import Run

logger = logging.getLogger(__name__)

MOST = 64
"""Shapes kept; the least recently used one makes room."""

Compute = Callable[[], Tensor]
"""The logits of what a step's buffers hold."""
Record = Callable[[Compute], Compute]


class Decoding:
    """`record` None computes every step call by call."""

    def __init__(self, forward: Forward, banks: Sequence[AdapterBank], attend: Attend, device: torch.device, record: Record | None) -> None:
        self.record = record
        self.failed = False
        self.recorded = self.replayed = 0
        self._forward = forward
        self._banks = banks
        self._attend = attend
        self._device = device
        self._steps: OrderedDict[Shape, tuple[DecodeStep, Compute]] = OrderedDict()

    def run(self, ids: Sequence[int], spans: Sequence[Span], runs: Sequence[Sequence[Run]]) -> Tensor | None:
        """Logits `[N, vocabulary]` of one token each of `N` sequences; None once recording has failed."""
        if self.failed:
            return None
        shape = shape_of(spans, self._banks, runs)
        found = self._steps.get(shape)
        step = found[0] if found else DecodeStep(shape, pools_of(spans), self._banks, self._attend, self._forward, self._device)
        step.fill(ids, spans, runs)
        if found is None:
            return self._first(step)[: len(spans)]
        self._steps.move_to_end(shape)
        self.replayed += self.record is not None
        return found[1]()[: len(spans)].clone()  # the next replay writes over it

    def clear(self) -> None:
        self._steps.clear()

    def _first(self, step: DecodeStep) -> Tensor:
        """Compute a step that nothing is known of, and have it ready for the next of its shape."""
        self._steps = OrderedDict((shape, kept) for shape, kept in self._steps.items() if kept[0].valid)
        logits, again = step.compute().clone(), step.compute
        proof = logits.isfinite().all(1)
        if self.record is not None:
            if not proof.any():  # a broken module: no fault of the recording, and no proof of it
                return logits
            try:
                again = _proven(self.record(again), logits, proof)
                self.recorded += 1
            except Exception:
                logger.warning("decoding steps cannot be recorded; this engine decodes call by call", exc_info=True)
                self.failed = True
                self.clear()
                return logits
        self._steps[step.shape] = (step, again)
        if len(self._steps) > MOST:
            self._steps.popitem(last=False)
        return logits


def cuda_graphs(device: torch.device) -> Record:
    """Recording by CUDA graphs that share one pool of memory: each writes over what the one before left there."""
    memory = torch.cuda.graph_pool_handle()

    def record(compute: Compute) -> Compute:
        graph = torch.cuda.CUDAGraph()
        # Loader threads lock host memory meanwhile: theirs are not this capture's calls.
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            logits = compute()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    return record


def _proven(recorded: Compute, logits: Tensor, rows: Tensor) -> Compute:
    """Raises ValueError unless the recording computes what was computed. The step's keys and values are written once more, the same."""
    tolerance, expected = 0.1 if logits.dtype.itemsize < 4 else 1e-3, logits[rows]
    if not float((recorded()[rows] - expected).abs().max()) <= tolerance * float(expected.abs().max()):
        raise ValueError("a recorded decoding step computes something else than the step itself")
    return recorded

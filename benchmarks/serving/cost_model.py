"""What a decoding step has to move and to compute, against what this machine can: why km+ke costs what it costs.

    step = max(bytes / bandwidth, operations / matrix rate) + calls x seconds of a call

Weights are read once a step, whoever asks; each different module and the extractor once more; keys and values once a request. Calls are
what the interpreter and the library take for each operation of the model: where matrices are small they are most of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.serving.embedded import Embedded
from benchmarks.serving.figures import BASE, KM_KE, Cell, percentile, round_of, rounded
from benchmarks.serving.shelf import RANK, adapter_bytes, make_shelf, shapes_of
from benchmarks.serving.systems import Workshop
from benchmarks.serving.workload import PROMPT_TOKENS, jobs, question_source
from server.engine.apart import apart
from server.engine.base_model import BaseModel
from server.engine.thin import forward_of

STREAMED_BYTES = 256 << 20
_ROUNDS = 5
_CALLS = 2000
_DENSE_GROUPS = 4
"""Different modules that are computed one by one; more of them share one batched product, whose calls are about two such."""
_CALLS_OF_A_GROUP = 4
"""Two products and two views of rows."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    bytes_per_s: float
    call_seconds: float


@dataclass(frozen=True, kw_only=True)
class Step:
    """One decoding step of a cell."""

    weight_bytes: int
    lora_bytes: int
    kv_bytes: int
    operations: int
    calls: int

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.lora_bytes + self.kv_bytes

    def seconds(self, machine: Machine, operations_per_s: float) -> float:
        work = max(self.bytes / machine.bytes_per_s, self.operations / operations_per_s)
        return work + self.calls * machine.call_seconds


def step_of(base: BaseModel, cell: Cell, model_calls: int, context: int) -> Step:
    """`context` tokens are in each request's cache."""
    config: Any = base.model.config.get_text_config()
    shapes = shapes_of(base)
    head = config.hidden_size * config.vocab_size
    weights = sum(out * width for out, width in shapes.values()) + head
    worn = 0 if cell.scenario == BASE else 1 + (cell.scenario == KM_KE)
    loras = cell.adapters + (cell.scenario == KM_KE)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * head_dim * context
    lora_parameters = sum(map(sum, shapes.values())) * RANK
    groups = (min(cell.adapters, _DENSE_GROUPS) if cell.adapters <= _DENSE_GROUPS else 2) + (cell.scenario == KM_KE)
    return Step(
        weight_bytes=weights * base.dtype.itemsize,
        lora_bytes=loras * adapter_bytes(base),
        kv_bytes=cell.concurrency * context * kv * base.dtype.itemsize,
        operations=cell.concurrency * (2 * weights + 2 * worn * lora_parameters + attention),
        calls=model_calls + groups * len(shapes) * _CALLS_OF_A_GROUP,
    )


def measure_model(workshop: Workshop, told: Callable[[str], object]) -> dict[str, Any]:
    base, size = workshop.plain(), workshop.size
    told("model: bandwidth and matrix rates")
    machine = Machine(bytes_per_s=apart(bandwidth, base.device), call_seconds=apart(call_seconds, base.device))
    calls = apart(count_calls, base)
    shelf = make_shelf(base, workshop.folder / "model", size.most_modules)
    context = PROMPT_TOKENS + size.step_tokens // 2
    rows = []
    with closing(Embedded(base, workshop.options(), shelf)) as engine:
        source = question_source(base.tokenizer)
        for count in size.concurrency:
            told(f"model: a step of {count} requests")
            rate = apart(matrix_rate, base, count)
            for cell in (
                Cell(scenario=BASE, concurrency=count, adapters=0),
                Cell(scenario=KM_KE, concurrency=count, adapters=min(count, len(shelf.modules))),
            ):
                seconds = known_step(workshop.results, cell) or _measured(engine, base, cell, source, size.step_tokens)
                rows.append(_row(cell, step_of(base, cell, calls, context), machine, rate, seconds))
    return {
        "bandwidth_bytes_per_s": rounded(machine.bytes_per_s),
        "call_seconds": rounded(machine.call_seconds),
        "calls_of_the_model": calls,
        "steps": rows,
        "km_ke_of_base": explained(rows),
    }


def explained(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ratio of a km+ke step to a base step, predicted and measured, for each concurrency."""
    base = {row["concurrency"]: row for row in rows if row["scenario"] == BASE}
    found = []
    for row in rows:
        if row["scenario"] != BASE and (bare := base.get(row["concurrency"])):
            measured = row["measured_s"] / bare["measured_s"] if row["measured_s"] and bare["measured_s"] else None
            predicted = rounded(row["predicted_s"] / bare["predicted_s"])
            found.append({"concurrency": row["concurrency"], "predicted": predicted, "measured": rounded(measured)})
    return found


def bandwidth(device: torch.device) -> float:
    """Bytes per second, the better of reading a matrix once (a product with a vector) and of a copy."""
    side = int((STREAMED_BYTES / 4) ** 0.5)
    matrix, vector = torch.ones(side, side, device=device), torch.ones(side, device=device)
    target = torch.empty_like(matrix)
    read = matrix.nbytes / best_seconds(lambda: torch.mv(matrix, vector), device)
    copied = 2 * matrix.nbytes / best_seconds(lambda: target.copy_(matrix), device)
    return max(read, copied)


def matrix_rate(base: BaseModel, rows: int) -> float:
    """Operations per second of the model's largest layer with so many rows, as the engine computes it."""
    out, width = max(shapes_of(base).values(), key=lambda shape: shape[0] * shape[1])
    x = torch.ones(rows, width, dtype=base.dtype, device=base.device)
    layer = torch.nn.Linear(width, out, bias=False, dtype=base.dtype, device=base.device).requires_grad_(False)
    product = forward_of(layer)
    return 2 * rows * out * width / best_seconds(lambda: product(x), base.device, repeats=20)


def call_seconds(device: torch.device) -> float:
    """Of an operation that computes next to nothing."""
    x = torch.ones(1, 1, device=device)
    return best_seconds(lambda: torch.add(x, x), device, repeats=_CALLS)


def best_seconds(action: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """The fastest of a few rounds of `repeats`, per call."""
    action()
    times = []
    for _ in range(_ROUNDS):
        _settled(device)
        started = time.perf_counter()
        for _ in range(repeats):
            action()
        _settled(device)
        times.append((time.perf_counter() - started) / repeats)
    return min(times)


class _Count(TorchDispatchMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def count_calls(base: BaseModel) -> int:
    """Operations of the library for one token through the model as transformers runs it."""
    counted = _Count()
    with torch.no_grad(), counted:
        base.model(input_ids=torch.ones(1, 1, dtype=torch.long, device=base.device), use_cache=False)
    return counted.calls


def known_step(results: Sequence[dict[str, Any]], cell: Cell) -> float | None:
    """Seconds between our engine's tokens at this point, where the same run has measured them."""
    wanted = {"system": "kmserve", "scenario": cell.scenario, "concurrency": cell.concurrency, "adapters": cell.adapters}
    return next((row["itl_p50"] for row in results if wanted.items() <= row.items()), None)


def _measured(engine: Embedded, base: BaseModel, cell: Cell, source: Any, new_tokens: int) -> float | None:
    asked = [jobs(base.tokenizer, cell.scenario, cell.adapters, cell.concurrency, source, tokens) for tokens in (2, new_tokens)]
    engine.run(asked[0])
    return percentile(round_of(engine.run(asked[1]), new_tokens).itl, 0.5)


def _row(cell: Cell, step: Step, machine: Machine, rate: float, seconds: float | None) -> dict[str, Any]:
    moving, computing = step.bytes / machine.bytes_per_s, step.operations / rate
    return {
        "scenario": cell.scenario,
        "concurrency": cell.concurrency,
        "adapters": cell.adapters,
        "weight_bytes": step.weight_bytes,
        "lora_bytes": step.lora_bytes,
        "kv_bytes": step.kv_bytes,
        "operations": step.operations,
        "operations_per_s": rounded(rate),
        "calls": step.calls,
        "memory_s": rounded(moving),
        "compute_s": rounded(computing),
        "calls_s": rounded(step.calls * machine.call_seconds),
        "predicted_s": rounded(step.seconds(machine, rate)),
        "measured_s": rounded(seconds),
        "share_of_bandwidth_limit": rounded(moving / seconds) if seconds else None,
    }


def _settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

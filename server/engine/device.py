"""Which device and which dtype a model runs in, with the reason in the log."""

from __future__ import annotations

import logging
import time

import torch

from server.errors import DeviceUnavailable

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_PROBE = (64, 576, 1536)
_ROUNDS = 3
_TAKEN = 0.2
"""Share of a device's memory; a process's own CUDA context, which nobody reports, stays far below it."""
_CLEARLY = 0.9
"""bfloat16 must take less than this share of float32's time, so that noise does not decide."""


def choose_device(setting: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU. Raises DeviceUnavailable."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError as error:
        raise DeviceUnavailable("The configured device is none: use auto, cpu, cuda or cuda:<number>.") from error
    if not _is_there(device):
        raise DeviceUnavailable(f"The configured device {device} is not there. Use auto or cpu.")
    return device


def taken_by_others(setting: str) -> bool:
    """Whether other processes hold so much of a CUDA device that waiting may help one that found no room on it."""
    device = choose_device(setting)
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device) > _TAKEN * total


def choose_dtype(device: torch.device, setting: str) -> torch.dtype:
    """The configured dtype, or for `auto` what the device is fast and safe with."""
    dtype, reason = (DTYPES[setting], "configured") if setting != "auto" else _automatic(device)
    logger.info("base model dtype %s on %s: %s", dtype, device, reason)
    return dtype


def _is_there(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    return device.type == "cpu" or (device.type == "mps" and torch.backends.mps.is_available())


def _automatic(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU computes in bfloat16"
        return torch.float32, "the GPU has no bfloat16, and float16 overflows in models trained in bfloat16"
    if device.type == "cpu":
        return faster_on_cpu(matmul_seconds(torch.bfloat16), matmul_seconds(torch.float32))
    return torch.float32, "the device's bfloat16 is not known to be complete"


def faster_on_cpu(bfloat16: float, float32: float) -> tuple[torch.dtype, str]:
    """bfloat16 where it is clearly faster: without hardware for it, it is several times slower than float32."""
    measured = f"bfloat16 {bfloat16 * 1e3:.1f} ms, float32 {float32 * 1e3:.1f} ms for one matrix product"
    return (torch.bfloat16 if bfloat16 < _CLEARLY * float32 else torch.float32), measured


def matmul_seconds(dtype: torch.dtype) -> float:
    """The best of a few products of the size of a small model's layer."""
    rows, inner, columns = _PROBE
    x, w = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        torch.mm(x, w)
        times.append(time.perf_counter() - started)
    return min(times)

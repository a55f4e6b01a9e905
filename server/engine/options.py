"""What an embedded engine may use of its machine. Knows nothing of the settings' file or of who else uses the machine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol


class CpuShare(Protocol):
    """This process's part of the CPU, shared with a trainer."""

    def threads(self) -> int:
        """Threads the next step may use."""
        ...

    def active(self) -> AbstractContextManager[object]:
        """Held while the engine has work."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """`kv_tokens` bounds the tokens of all live requests together, prompt and answer reserved; a longer request is refused."""

    slots: int = 16
    """Modules resident on the device at once; extractors have three slots of their own."""
    host_bytes: int = 1 << 30
    max_rank: int = 64
    max_batch: int = 16
    """Requests that run together."""
    max_queue: int = 64
    """Requests that may wait for a place before new ones are turned away."""
    kv_tokens: int = 32768
    prefix_tokens: int = 8192
    """Tokens whose keys and values are kept behind their requests, for others that start the same way; 0 keeps nothing."""
    block_tokens: int = 16
    """What is kept is shared in blocks of this size."""
    step_tokens: int = 512
    """Prompt tokens read in one step: bounds how long a long prompt holds up the others' next token."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """`auto`: by model and device."""
    static_decode: bool | None = None
    """Decode in buffers of fixed shapes, recorded as CUDA graphs where there is CUDA; None: there alone."""
    threads: int | None = None
    cores: CpuShare | None = None
    """Overrides `threads`, asked before every step."""

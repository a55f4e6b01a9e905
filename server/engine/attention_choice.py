"""Which implementation of attention serves a model on this machine, with the reason in the log.

SDPA has fused kernels for what most models ask for and is what a CPU is served with. FlexAttention fuses capped scores too, which SDPA
would write out in full; it needs a GPU that Triton compiles for. Whichever is chosen has to pass the runner's check of the model, else
SDPA takes its place.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from server.engine.attend import Attend, sdpa
from server.engine.base_model import BaseModel

SDPA, FLEX = "sdpa", "flex"
_LEAST_CAPABILITY = (8, 0)
_LEAST_HEAD = 16
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Features:
    """Of the model and of the machine."""

    device: str
    dtype: torch.dtype
    head_dim: int
    softcap: bool = False
    capability: tuple[int, int] = (0, 0)
    """Of a CUDA device."""
    triton: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    name: str
    reason: str


def features(base: BaseModel) -> Features:
    config = base.model.config.get_text_config()
    return Features(
        device=base.device.type,
        dtype=base.dtype,
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
        softcap=getattr(config, "attn_logit_softcapping", None) is not None,
        capability=torch.cuda.get_device_capability(base.device) if base.device.type == "cuda" else (0, 0),
        triton=importlib.util.find_spec("triton") is not None,
    )


def choose(setting: str, found: Features) -> Choice:
    """The configured one where it can run, or for `auto` what fits."""
    lack = _lack(found)
    if setting == SDPA:
        return Choice(name=SDPA, reason="configured")
    if setting == FLEX:
        return Choice(name=SDPA, reason=f"flex is configured, but {lack}") if lack else Choice(name=FLEX, reason="configured")
    if not found.softcap:
        return Choice(name=SDPA, reason="its fused kernels serve all that this model asks for")
    if lack:
        return Choice(name=SDPA, reason=f"the model caps its scores, but {lack}")
    return Choice(name=FLEX, reason="the model caps its scores, which SDPA would write out in full")


def implementation(name: str, device: torch.device) -> Attend:
    if name == SDPA:
        return sdpa
    from server.engine.attend_flex import FlexAttend  # its import brings in half of torch's compiler

    return FlexAttend(compiled=device.type != "cpu")


def _lack(found: Features) -> str | None:
    """Why FlexAttention cannot be compiled for this model here."""
    if found.device != "cuda":
        return "FlexAttention is fused on CUDA devices alone"
    if not found.triton:
        return "Triton is not installed"
    if found.capability < _LEAST_CAPABILITY:
        return f"the GPU's compute capability is {found.capability[0]}.{found.capability[1]}, and FlexAttention wants 8.0"
    if found.dtype not in _DTYPES:
        return f"FlexAttention is not compiled for {found.dtype}"
    if found.head_dim < _LEAST_HEAD:
        return f"its heads are {found.head_dim} wide, and FlexAttention wants {_LEAST_HEAD}"
    return None

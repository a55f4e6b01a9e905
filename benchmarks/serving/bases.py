"""The base model of a run: prepared once in the user's cache, loaded as often as systems need one of their own.

On a GPU without `--model` it has the shapes of Llama-3.1-8B and random weights: speed does not depend on what the numbers are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from server.engine.base_convert import Progress
from server.engine.base_model import DEFAULT_BASE, BaseModel, PreparedBase, load_base, prepare_base
from server.engine.fingerprint import load_tokenizer

RANDOM_8B = "llama-3.1-8b-shapes"
_LLAMA_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, kw_only=True)
class Bases:
    """`prepared` is on disk; `random` says that its tokenizer alone is used, for a model made of random weights."""

    prepared: PreparedBase
    device: str
    dtype: torch.dtype
    random: bool = False

    @property
    def name(self) -> str:
        return RANDOM_8B if self.random else self.prepared.name

    def load(self) -> BaseModel:
        """One more copy in memory."""
        if self.random:
            return random_base(load_tokenizer(self.prepared.directory), LlamaConfig(**_LLAMA_8B), self.device, self.dtype)
        return load_base(self.prepared, device=self.device, dtype=str(self.dtype).removeprefix("torch."))


def find_base(source: str | None, device: str, dtype: torch.dtype, progress: Progress | None = None) -> Bases:
    """Raises BaseModelNotFound, BaseModelUnusable."""
    prepared = prepare_base(source or DEFAULT_BASE, cache_dir() / "serving-models", progress)
    return Bases(prepared=prepared, device=device, dtype=dtype, random=source is None and device == "cuda")


def random_base(tokenizer: PreTrainedTokenizerBase, config: LlamaConfig, device: str, dtype: torch.dtype) -> BaseModel:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.eval()  # type: ignore[no-untyped-call]
    model.set_attn_implementation("sdpa")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return BaseModel(
        name=RANDOM_8B,
        model=model.requires_grad_(False),
        tokenizer=tokenizer,
        fingerprint="0" * 64,
        device=torch.device(device),
        dtype=dtype,
        eos_ids=frozenset(),
        context_limit=int(config.max_position_embeddings),
    )


def cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kmserve"

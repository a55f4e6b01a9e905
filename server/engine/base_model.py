"""The base model: prepared once on disk, then loaded frozen for whoever runs it. Knows nothing of adapters or requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from server.engine.base_convert import Progress, converted, quiet
from server.engine.base_source import DEFAULT_BASE, SourceKind, resolve
from server.engine.device import choose_device, choose_dtype
from server.engine.fingerprint import load_tokenizer, weight_files
from server.engine.fingerprint_cache import remembered_fingerprint
from server.engine.prompt import end_of_turn_ids
from server.errors import BaseModelUnusable

__all__ = ["DEFAULT_BASE", "BaseModel", "PreparedBase", "adapted_layers", "load_base", "prepare_base"]

_LENGTH_DEPENDENT_ROPE = frozenset({"longrope", "dynamic"})


@dataclass(frozen=True, kw_only=True)
class PreparedBase:
    """A directory of safetensors, config and tokenizer, and the fingerprint of its content."""

    name: str
    directory: Path
    fingerprint: str


@dataclass(frozen=True, kw_only=True, eq=False)
class BaseModel:
    """The frozen causal LM that every request shares. `context_limit` counts prompt and answer; `eos_ids` end an answer."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    device: torch.device
    dtype: torch.dtype
    eos_ids: frozenset[int]
    context_limit: int


def prepare_base(source: str, models_dir: Path, progress: Progress | None = None) -> PreparedBase:
    """Find the configured base model, convert or fetch it into `models_dir` if it is not there yet, and fingerprint it.

    A local directory is used in place; only a hub id is downloaded. `progress(stage, done, total)` is called along the way. Raises
    BaseModelNotFound, BaseModelUnusable.
    """
    report = progress or _unheard
    found = resolve(source)
    directory = Path(found.location) if found.kind is SourceKind.DIRECTORY else converted(found, models_dir, report)
    return PreparedBase(name=found.name, directory=directory, fingerprint=remembered_fingerprint(directory, models_dir, report))


def load_base(prepared: PreparedBase, *, device: str = "auto", dtype: str = "auto") -> BaseModel:
    """Load a prepared base model from disk: frozen, in eval mode, SDPA attention. Raises BaseModelUnusable, DeviceUnavailable."""
    target = choose_device(device)
    weight_files(prepared.directory)
    try:
        tokenizer = load_tokenizer(prepared.directory)
        model = _load(prepared.directory, target, choose_dtype(target, dtype))
        _give_pad_token(model, tokenizer)
        eos_ids = end_of_turn_ids(tokenizer, _eos_ids(model, tokenizer))
    except (OSError, ValueError, SafetensorError) as error:
        raise BaseModelUnusable(f"The base model {prepared.name} cannot be loaded as a causal language model.") from error
    return BaseModel(
        name=prepared.name,
        model=model,
        tokenizer=tokenizer,
        fingerprint=prepared.fingerprint,
        device=target,
        dtype=model.dtype,
        eos_ids=eos_ids,
        context_limit=context_limit(model.config),
    )


def adapted_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Every linear layer but the output head, by full name as in the causal LM, sorted."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}
    return dict(sorted(linear.items()))


def output_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The output head by name; nothing for a model whose head is not a linear layer."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is head}


def context_limit(config: PretrainedConfig) -> int:
    """The longest sequence served. RoPE kinds that change with the length stay below their original context, where they are constant."""
    text = config.get_text_config()
    limit = int(text.max_position_embeddings)
    for rope in _rope_parameters(text):
        if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            original = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
            limit = min(limit, int(original or limit))
    return limit


def _rope_parameters(config: PretrainedConfig) -> list[dict[str, Any]]:
    """One set, or one for each kind of attention layer."""
    found = getattr(config, "rope_parameters", None) or {}
    return [found] if "rope_type" in found else [value for value in found.values() if isinstance(value, dict)]


def _load(directory: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    with quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model: PreTrainedModel
    model, info = loaded
    if info["missing_keys"]:  # transformers fills them with random numbers
        raise ValueError(f"the weights lack {sorted(info['missing_keys'])}")
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    nn.Module.to(model, device)
    return model


def _give_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    config, generation = model.config.get_text_config(), model.generation_config
    found: set[int | None] = set()
    for value in (getattr(generation, "eos_token_id", None), config.eos_token_id, tokenizer.eos_token_id):
        found |= set(value) if isinstance(value, Iterable) else {value}
    return sorted(index for index in found if index is not None)


def _unheard(stage: str, done: int, total: int) -> None:
    """Progress nobody asked for."""

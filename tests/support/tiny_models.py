"""Two-layer random models, a byte tokenizer and random adapters: everything an engine needs, in milliseconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from server.engine.base_model import BaseModel, adapted_layers, context_limit
from server.engine.prompt import Prompt
from server.engine.request import ArtefactRef, EngineRequest, Sampling, Scope
from server.errors import ModuleCorrupt
from server.modules.artefact import Artefact
from server.modules.composition import Composition
from server.modules.manifest import ArtefactKind, Manifest
from tests.support.byte_tokenizer import byte_tokenizer as byte_tokenizer

DEVICE = os.environ.get("KMSERVE_TEST_DEVICE", "cpu")
"""Of the models, for the tests that `make gpu` runs on CUDA."""
WINDOW = 8
"""Sliding window of the models that have one: shorter than the prompts of the tests."""
BYTES = 256
EOS = 257
VOCABULARY = 260
CONTEXT = 512
FINGERPRINT = "0" * 64

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 256,
    "eos_token_id": EOS,
    "pad_token_id": 258,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}


def tiny_llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_SHAPE))


def tiny_phi3() -> PreTrainedModel:
    return Phi3ForCausalLM(Phi3Config(**_SHAPE, sliding_window=None))


def tiny_qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_SHAPE, head_dim=16))


def tiny_mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**_SHAPE, sliding_window=WINDOW))


def tiny_gemma3() -> PreTrainedModel:
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3ForCausalLM(Gemma3TextConfig(**_SHAPE, head_dim=16, query_pre_attn_scalar=16, sliding_window=WINDOW, layer_types=kinds))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "phi3": tiny_phi3,
    "qwen3": tiny_qwen3,
    "mistral": tiny_mistral,
    "gemma3": tiny_gemma3,
}


def tiny_base(family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0) -> BaseModel:
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    nn.Module.to(model, device=DEVICE, dtype=dtype)
    model.eval()  # type: ignore[no-untyped-call]
    return base_of(model.requires_grad_(False))


def base_of(model: PreTrainedModel) -> BaseModel:
    return BaseModel(
        name="tiny",
        model=model,
        tokenizer=byte_tokenizer(),
        fingerprint=FINGERPRINT,
        device=model.device,
        dtype=model.dtype,
        eos_ids=frozenset({EOS}),
        context_limit=context_limit(model.config),
    )


def tiny_artefact(
    base: BaseModel,
    seed: int,
    *,
    rank: int = 4,
    scope: Scope = Scope.ALL,
    size: float = 1.0,
    extractor: bool = False,
    targets: int | None = None,
) -> Artefact:
    """A random adapter on all linear layers, or on the first `targets`; an extractor has random weights per layer."""
    source = torch.Generator().manual_seed(seed)
    layers = list(adapted_layers(base.model).items())[:targets]
    names = tuple(name for name, _ in layers)
    a = {name: torch.randn(rank, linear.in_features, generator=source) * linear.in_features**-0.5 for name, linear in layers}
    b = {name: torch.randn(linear.out_features, rank, generator=source) * size * rank**-0.5 for name, linear in layers}
    weights = [torch.rand(len(names), generator=source) + 0.5 for _ in range(2)]
    return Artefact(
        manifest=_manifest(base, names, rank, scope, extractor),
        a=a,
        b=b,
        composition=Composition(layers=names, w_km=weights[0], w_ke=weights[1]) if extractor else None,
    )


class Shelf:
    """Artefacts by digest in place of files. `read` is an engine's `read`; a digest in `corrupt` fails as a damaged file would."""

    def __init__(self) -> None:
        self.artefacts: dict[str, Artefact] = {}
        self.corrupt: set[str] = set()
        self.reads: list[str] = []

    def put(self, digest: str, artefact: Artefact) -> ArtefactRef:
        self.artefacts[digest] = artefact
        composition = None if artefact.composition is None else f"{digest}-composition"
        scope = Scope(artefact.manifest.scope)
        return ArtefactRef(digest=digest, manifest_sha256="", directory=Path(digest), scope=scope, composition=composition)

    def read(self, ref: ArtefactRef, fingerprint: str, shapes: Any, max_rank: int) -> Artefact:
        self.reads.append(ref.digest)
        if ref.digest in self.corrupt or ref.digest not in self.artefacts:
            raise ModuleCorrupt("The files of this module are damaged.", reason="test")
        return self.artefacts[ref.digest]


def tiny_prompt(seed: int, bare: int = 12, adapted: int = 9) -> Prompt:
    """Random bytes behind a BOS."""
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(BYTES, (bare - 1 + adapted,), generator=source).tolist()
    return Prompt(bare=(BYTES, *ids[: bare - 1]), adapted=tuple(ids[bare - 1 :]))


def tiny_request(
    request_id: str,
    prompt: Prompt,
    module: ArtefactRef | None = None,
    extractor: ArtefactRef | None = None,
    **sampling: Any,
) -> EngineRequest:
    chosen = replace(Sampling(max_tokens=8), **sampling)
    return EngineRequest(request_id=request_id, tenant="tenant", prompt=prompt, module=module, extractor=extractor, sampling=chosen)


def _manifest(base: BaseModel, targets: tuple[str, ...], rank: int, scope: Scope, extractor: bool) -> Manifest:
    return Manifest(
        kind=ArtefactKind.KNOWLEDGE_EXTRACTOR if extractor else ArtefactKind.KNOWLEDGE_MODULE,
        base_fingerprint=base.fingerprint,
        rank=rank,
        alpha=1.5 * rank,
        targets=tuple(sorted(targets)),
        scope=scope,
        wears=None,
        document_revision=None,
        objective="lm",
        recipe={},
        data={},
        seed=0,
        held_out_loss_before=2.0,
        held_out_loss_after=1.0,
        gate={},
        versions={},
        created="2026-01-01T00:00:00Z",
    )

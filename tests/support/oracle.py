"""The slow, obvious engine: PEFT, one sequence at a time, the model's own attention and cache. What the real one must agree with."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from server.engine.base_model import BaseModel
from server.engine.prompt import Prompt
from server.engine.request import Scope
from server.modules.artefact import Artefact


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, the end-of-turn token included, and the logits `[tokens, vocabulary]` that each was chosen from."""

    tokens: tuple[int, ...]
    logits: Tensor


class Oracle:
    def __init__(self, base: BaseModel) -> None:
        """Copies the model as it is: make it before an engine takes hold of the model."""
        self._base = base
        self._model = copy.deepcopy(base.model)

    def greedy(self, prompt: Prompt, max_tokens: int, module: Artefact | None = None, extractor: Artefact | None = None) -> Answer:
        tokens: list[int] = []
        logits: list[Tensor] = []
        with self._wearing(module, extractor) as worn:
            last = worn.prefill(prompt)
            while True:
                logits.append(last)
                tokens.append(int(last.argmax()))
                if tokens[-1] in self._base.eos_ids or len(tokens) == max_tokens:
                    return Answer(tuple(tokens), torch.stack(logits))
                last = worn.feed(tokens[-1:])[-1]

    def follow(self, prompt: Prompt, tokens: Sequence[int], module: Artefact | None = None, extractor: Artefact | None = None) -> Tensor:
        """Logits `[len(tokens), vocabulary]` that each of the given tokens would be chosen from."""
        with self._wearing(module, extractor) as worn:
            first = worn.prefill(prompt)[None]
            return torch.cat((first, worn.feed(tokens[:-1]))) if len(tokens) > 1 else first

    @contextmanager
    def _wearing(self, module: Artefact | None, extractor: Artefact | None) -> Iterator[_Worn]:
        adapters = {name: artefact for name, artefact in (("km", module), ("ke", extractor)) if artefact is not None}
        if not adapters:
            yield _Worn(self._base, self._model, {})
            return
        peft = _peft(copy.deepcopy(self._model), adapters)
        _weigh(peft, adapters)
        yield _Worn(self._base, peft, adapters)


class _Worn:
    """A model with its adapters and the cache of one sequence."""

    def __init__(self, base: BaseModel, model: PreTrainedModel | PeftModel, adapters: dict[str, Artefact]) -> None:
        self._base = base
        self._model = model
        self._adapters = adapters
        self._cache = DynamicCache(config=base.model.config)

    def prefill(self, prompt: Prompt) -> Tensor:
        """The bare prefix with only the adapters that act everywhere, then the rest with all; logits `[vocabulary]` at the end."""
        self._activate([name for name, artefact in self._adapters.items() if artefact.manifest.scope == Scope.ALL])
        logits = self.feed(prompt.bare) if prompt.bare else None
        self._activate(list(self._adapters))
        logits = self.feed(prompt.adapted) if prompt.adapted else logits
        assert logits is not None
        return logits[-1]

    @torch.no_grad()
    def feed(self, ids: Sequence[int]) -> Tensor:
        logits: Tensor = self._model(input_ids=torch.tensor([list(ids)]), past_key_values=self._cache, use_cache=True).logits[0]
        return logits

    def _activate(self, names: list[str]) -> None:
        if not isinstance(self._model, PeftModel):
            return
        for layer in self._model.modules():
            if isinstance(layer, LoraLayer):
                layer.enable_adapters(bool(names))
                if names:
                    layer.set_adapter(names)


def _peft(model: PreTrainedModel, adapters: dict[str, Artefact]) -> PeftModel:
    peft: PeftModel | None = None
    for name, artefact in adapters.items():
        manifest = artefact.manifest
        config = LoraConfig(r=manifest.rank, lora_alpha=manifest.alpha, target_modules=list(artefact.a), lora_dropout=0.0)  # type: ignore[arg-type]
        if peft is None:
            peft = get_peft_model(model, config, adapter_name=name, autocast_adapter_dtype=False)
        else:
            peft.add_adapter(name, config, autocast_adapter_dtype=False)
    assert peft is not None
    return peft.eval()


def _weigh(peft: PeftModel, adapters: dict[str, Artefact]) -> None:
    """Put the tensors in, and make each layer's scaling the composition's weight times alpha / r."""
    extractor = adapters.get("ke")
    for path, layer in peft.named_modules():
        if not isinstance(layer, LoraLayer) or not isinstance(layer, nn.Module):
            continue
        name = path.removeprefix("base_model.model.")
        w_km, w_ke = extractor.composition.weights(name) if extractor and extractor.composition else (1.0, 1.0)
        for adapter, weight in (("km", w_km), ("ke", w_ke)):
            if adapter in adapters and name in adapters[adapter].a:
                parameters = dict(layer.named_parameters())
                parameters[f"lora_A.{adapter}.weight"].data.copy_(adapters[adapter].a[name])
                parameters[f"lora_B.{adapter}.weight"].data.copy_(adapters[adapter].b[name])
                layer.scaling[adapter] = weight * adapters[adapter].scaling

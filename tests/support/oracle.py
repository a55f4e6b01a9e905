"""The slow, obvious engine: PEFT, one sequence at a time, the model's own attention and cache. What the real one must agree with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
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
        self._model: PreTrainedModel | PeftModel = copy.deepcopy(base.model)
        self._known: list[Artefact] = []
        self._layers: list[tuple[str, LoraLayer]] = []
        """Those that have an adapter, by their names in the causal LM."""
        self._active: list[str] | None = None
        """The names of the adapters that are on; None after another was added, which PEFT may have turned on."""

    def cast(self, base: BaseModel) -> Oracle:
        """The same adapters on the same model in another precision, that of `base`."""
        other = Oracle(base)
        other._model = copy.deepcopy(self._model)
        nn.Module.to(other._model, dtype=base.dtype)
        other._known = list(self._known)
        other._find_layers()
        return other

    def greedy(self, prompt: Prompt, max_tokens: int, module: Artefact | None = None, extractor: Artefact | None = None) -> Answer:
        cache = DynamicCache(config=self._base.model.config)
        tokens: list[int] = []
        logits = [self._prefill(cache, prompt, module, extractor)]
        while True:
            tokens.append(int(logits[-1].argmax()))
            if tokens[-1] in self._base.eos_ids or len(tokens) == max_tokens:
                return Answer(tuple(tokens), torch.stack(logits))
            logits.append(self._feed(cache, tokens[-1:])[-1])

    def follow(self, prompt: Prompt, tokens: Sequence[int], module: Artefact | None = None, extractor: Artefact | None = None) -> Tensor:
        """Logits `[len(tokens), vocabulary]` that each of the given tokens would be chosen from."""
        cache = DynamicCache(config=self._base.model.config)
        first = self._prefill(cache, prompt, module, extractor)[None]
        return torch.cat((first, self._feed(cache, tokens[:-1]))) if len(tokens) > 1 else first

    def _prefill(self, cache: DynamicCache, prompt: Prompt, module: Artefact | None, extractor: Artefact | None) -> Tensor:
        """The bare prefix with only the adapters that act everywhere, then the rest with all; logits `[vocabulary]` at the end."""
        worn = [artefact for artefact in (module, extractor) if artefact is not None]
        self._weigh(module, extractor)
        self._activate([artefact for artefact in worn if artefact.manifest.scope == Scope.ALL])
        logits = self._feed(cache, prompt.bare) if prompt.bare else None
        self._activate(worn)
        logits = self._feed(cache, prompt.adapted) if prompt.adapted else logits
        assert logits is not None
        return logits[-1]

    @torch.no_grad()
    def _feed(self, cache: DynamicCache, ids: Sequence[int]) -> Tensor:
        logits: Tensor = self._model(
            input_ids=torch.tensor([list(ids)], device=self._base.device), past_key_values=cache, use_cache=True
        ).logits[0]
        return logits

    def _activate(self, artefacts: list[Artefact]) -> None:
        names = [self._name(artefact) for artefact in artefacts]
        if names == self._active:
            return
        for _, layer in self._layers:
            layer.enable_adapters(bool(names))
            if names:
                layer.set_adapter(names)
        self._active = names

    def _weigh(self, module: Artefact | None, extractor: Artefact | None) -> None:
        """Make each layer's scaling the composition's weight times alpha / r."""
        for artefact, side in ((module, 0), (extractor, 1)):
            if artefact is not None:
                name = self._name(artefact)
                for path, layer in self._layers:
                    weights = extractor.composition.weights(path) if extractor and extractor.composition else (1.0, 1.0)
                    layer.scaling[name] = weights[side] * artefact.scaling

    def _name(self, artefact: Artefact) -> str:
        """The artefact's name in the PEFT model, which gets it the first time it is asked for."""
        number = next((number for number, known in enumerate(self._known) if known is artefact), None)
        if number is None:
            number = len(self._known)
            self._known.append(artefact)
            self._add(f"adapter-{number}", artefact)
        return f"adapter-{number}"

    def _add(self, name: str, artefact: Artefact) -> None:
        self._active = None
        manifest = artefact.manifest
        config = LoraConfig(r=manifest.rank, lora_alpha=manifest.alpha, target_modules=list(artefact.a), lora_dropout=0.0)  # type: ignore[arg-type]
        if isinstance(self._model, PeftModel):
            self._model.add_adapter(name, config, autocast_adapter_dtype=False)
        else:
            self._model = get_peft_model(self._model, config, adapter_name=name, autocast_adapter_dtype=False).eval()
        self._find_layers()
        for path, layer in self._layers:
            if path in artefact.a:
                layer.lora_A.get_submodule(name).weight.data.copy_(artefact.a[path])  # type: ignore[operator]
                layer.lora_B.get_submodule(name).weight.data.copy_(artefact.b[path])  # type: ignore[operator]

    def _find_layers(self) -> None:
        modules = self._model.named_modules()
        self._layers = [(path.removeprefix("base_model.model."), layer) for path, layer in modules if isinstance(layer, LoraLayer)]

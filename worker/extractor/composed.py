"""What is fitted: an extractor over the frozen modules of many documents, with a learned weight for either in every layer.

    y = W x + w_km[l] s_km B_km A_km x + w_ke[l] s_ke B_ke A_ke x      (Caccia et al. 2025, eq. 5; each row of a batch has its own KM)

Learned are A_ke, B_ke, w_km and w_ke, or the weights alone over an extractor that modules wear already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from server.engine.base_model import BaseModel, adapted_layers
from server.modules.artefact import Artefact
from server.modules.composition import Composition
from worker.extractor.recipe import ExtractorRecipe
from worker.training.blockwise import nll_from_states
from worker.training.states import Worn, head_of, prompt_states
from worker.training.student import Student
from worker.training.worn import Wearing, like, taken_off, wearing

W_KM, W_KE = "w_km", "w_ke"
NOTHING = -1


@contextmanager
def composed(
    base: BaseModel, recipe: ExtractorRecipe, seed: int, modules: Mapping[int, Artefact], start: Artefact | None = None
) -> Iterator[Composed]:
    """Puts everything on the base model and takes it off again. `modules` by their document's number; `start` is where the extractor
    begins, and with `learn: weights` the lora whose weights are learned.

    Raises ValueError for modules of several shapes.
    """
    made = Composed(base, recipe, modules, start)
    with wearing(base.model, made.wearings):
        try:
            made.put_on(seed)
            yield made
        finally:
            made.take_off()


class Composed:
    """A `fit.Trainable`, to be made by `composed`."""

    def __init__(self, base: BaseModel, recipe: ExtractorRecipe, modules: Mapping[int, Artefact], start: Artefact | None) -> None:
        if recipe.learn == "weights" and start is None:
            raise ValueError("weights alone are learned over an extractor that is there")
        self.layers = tuple(adapted_layers(base.model))
        self._base, self._recipe, self._start = base, recipe, start
        self._place = {document: place for place, document in enumerate(modules)}
        self._index = {layer: index for index, layer in enumerate(self.layers)}
        before = start.composition if start is not None else None
        self.w_km = self._weights(before, 0, recipe.start_weight if modules else 1.0)
        self.w_ke = self._weights(before, 1, recipe.start_weight)
        self._modules = Wearing(list(modules.values()), self._km, like(base)) if modules else None
        worn = [Wearing([start], self._ke, like(base))] if start is not None and recipe.learn == "weights" else []
        self.wearings = [*([self._modules] if self._modules else []), *worn]
        self.student: Student | None = None

    def put_on(self, seed: int) -> None:
        """The lora that is learned, over what is worn."""
        if self._recipe.learn == "all":
            self.student = Student(self._base.model, self._recipe, seed, self._ke)
            if self._start is not None:
                self.student.wear(self._start.a, self._start.b)

    def take_off(self) -> None:
        if self.student is not None:
            self.student.unload()

    def parameters(self) -> dict[str, nn.Parameter]:
        weights = {W_KE: self.w_ke, **({W_KM: self.w_km} if self._modules else {})}
        return {**(self.student.parameters() if self.student else {}), **weights}

    def factors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.student is not None:
            return self.student.factors()
        assert self._start is not None
        return dict(self._start.a), dict(self._start.b)

    def round(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The factors as they are published, in half the bytes; from now on these are worn. A lora that is there already stays as it is."""
        a, b = self.factors()
        if self.student is None:
            return a, b
        rounded = tuple({layer: tensor.to(torch.bfloat16) for layer, tensor in side.items()} for side in (a, b))
        self.student.wear(*rounded)
        return rounded[0], rounded[1]

    def composition(self) -> Composition:
        return Composition(layers=self.layers, w_km=self.w_km.detach().cpu().clone(), w_ke=self.w_ke.detach().cpu().clone())

    def train(self, mode: bool) -> None:
        if self.student is not None:
            self.student.train(mode)

    def loss(self, batch: Sequence[Any]) -> Tensor:
        """Mean negative log-likelihood of the answers' tokens."""
        prompts, targets = [e.student for e in batch], [e.target for e in batch]
        device, body = self._base.device, self._base.model.base_model
        unworn = self._nothing_on if self._recipe.scope == "answer" else None
        final = prompt_states(body, prompts, targets, device, unworn=unworn, worn=self._worn(batch))[-1]
        tokens = torch.tensor([token for target in targets for token in target], device=device)
        return nll_from_states(final, tokens, head_of(self._base.model))

    @contextmanager
    def _nothing_on(self) -> Iterator[None]:
        with self.student.bare() if self.student is not None else nullcontext(), taken_off(self.wearings):
            yield

    def _worn(self, batch: Sequence[Any]) -> Worn | None:
        """Each row its document's module."""
        if self._modules is None:
            return None
        return Worn(of_rows=[self._place.get(example.module, NOTHING) for example in batch], tell=partial(setattr, self._modules, "runs"))

    def _km(self, layer: str) -> Tensor:
        return self.w_km[self._index[layer]].to(self._base.dtype)

    def _ke(self, layer: str) -> Tensor:
        return self.w_ke[self._index[layer]].to(self._base.dtype)

    def _weights(self, before: Composition | None, side: int, first: float) -> nn.Parameter:
        """`first`: of every layer where no composition comes before."""
        values = [first if before is None else before.weights(layer)[side] for layer in self.layers]
        return nn.Parameter(torch.tensor(values, dtype=torch.float32, device=self._base.device))

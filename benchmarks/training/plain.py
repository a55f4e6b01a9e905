"""Distillation as anyone would write it first: PEFT's wrapper, whole logits of both sides, the teacher run again at every step.

With `cached` the teacher's logits and states are computed once and kept in memory: all else is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import kl_div

from benchmarks.training.curve import Curve
from benchmarks.training.task import SEED, Task
from server.engine.base_model import BaseModel, adapted_layers
from worker.training.examples import Example
from worker.training.fit import batch_at, schedule
from worker.training.recipe import Recipe
from worker.training.student import Student

Outputs = tuple[Tensor, Tensor]
"""Logits [N, V] and states [L, N, H] at the positions that predict the targets of a batch."""


def run_plain(base: BaseModel, task: Task, curve: Curve, *, cached: bool) -> None:
    recipe = task.recipe
    begins = _first_factors(base, recipe)
    targets = sorted(adapted_layers(base.model))
    model = get_peft_model(
        base.model, LoraConfig(r=recipe.rank, lora_alpha=int(recipe.alpha), target_modules=targets, task_type="CAUSAL_LM")
    )
    named = dict(model.named_parameters())
    with torch.no_grad():
        for layer, first_RI in begins.items():
            named[f"base_model.model.{layer}.lora_A.default.weight"].copy_(first_RI)
    parameters = [parameter for _, parameter in sorted(model.named_parameters()) if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    kept: dict[Example, Outputs] = {}

    def teacher(batch: Sequence[Example]) -> Outputs:
        if not cached:
            return _teacher(model, batch)
        for example in batch:
            if example not in kept:
                kept[example] = _teacher(model, [example])
        return torch.cat([kept[each][0] for each in batch]), torch.cat([kept[each][1] for each in batch], dim=1)

    for step in range(recipe.max_steps):
        batch = batch_at(task.training, recipe.batch_size, SEED, step)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, recipe)
        with curve.step():
            loss = _loss(model, batch, teacher)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        curve.trained(float(loss.detach()))
        if (step + 1) % recipe.evaluate_every == 0:
            with torch.no_grad():
                curve.evaluated(step + 1, float(_loss(model, task.held_out, teacher)))
    model.unload()


def _first_factors(base: BaseModel, recipe: Recipe) -> dict[str, Tensor]:
    """A by layer [r, in], as our trainer draws it: PEFT draws in another order, and curves that begin elsewhere are not alike."""
    student = Student(base.model, recipe, SEED)
    try:
        return student.factors()[0]
    finally:
        student.unload()


def _loss(model: PeftModel, batch: Sequence[Example], teacher: Callable[[Sequence[Example]], Outputs]) -> Tensor:
    """Eq. 2 as it reads."""
    teacher_NV, teacher_LNH = teacher(batch)
    student_NV, student_LNH = _outputs(model, [(e.student.ids, e.target) for e in batch])
    divergence = kl_div(student_NV.log_softmax(-1), teacher_NV.log_softmax(-1), log_target=True, reduction="batchmean")
    hidden = (teacher_LNH - student_LNH).abs().sum((1, 2)) / teacher_LNH.abs().sum((1, 2))
    return divergence + hidden.mean()


@torch.no_grad()
def _teacher(model: PeftModel, batch: Sequence[Example]) -> Outputs:
    with model.disable_adapter():
        return _outputs(model, [(e.context.ids, e.target) for e in batch])


def _outputs(model: PeftModel, rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Outputs:
    width = max(len(prompt) + len(target) for prompt, target in rows)
    ids = torch.tensor([[*prompt, *target, *[0] * (width - len(prompt) - len(target))] for prompt, target in rows])
    mask = torch.tensor([[1] * (len(p) + len(t)) + [0] * (width - len(p) - len(t)) for p, t in rows])
    output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    places = [(row, len(prompt) - 1 + n) for row, (prompt, target) in enumerate(rows) for n in range(len(target))]
    at = tuple(torch.tensor(side) for side in zip(*places, strict=True))
    return output.logits[at], torch.stack([state[at] for state in output.hidden_states[1:]])

"""Runs a causal LM over prompts with targets and takes the states at the positions that predict target tokens.

Position t predicts token t+1, so the states of a target of n tokens begin at the prompt's last token and end before the target's last.
Unshifted positions are those of the target's own tokens. All prompts pass in one pack: what they begin with alike is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from server.engine import attention
from server.engine.prompt import Prompt
from worker.training.packing import Pack, Places, Row, Run, pack
from worker.training.recipe import Reading

OURS = Reading()
Unworn = Callable[[], AbstractContextManager[None]]
"""Within it the body wears nothing."""


@dataclass(frozen=True, kw_only=True)
class Worn:
    """Which LoRA each row wears, for bodies whose rows wear different ones; `tell` hears where its tokens are before they are read."""

    of_rows: Sequence[int]
    tell: Callable[[Sequence[Run]], None]


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The output head. Raises ValueError for models that bend the logits after it: states alone do not rebuild those."""
    if getattr(model.config, "final_logit_softcapping", None):
        raise ValueError("models with final logit soft-capping cannot be distilled from states")
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear):
        raise ValueError("the model has no linear output head")
    return head


def target_states(
    body: nn.Module,
    prompts: Sequence[tuple[int, ...]],
    targets: Sequence[tuple[int, ...]],
    device: torch.device,
    *,
    before: Pack | None = None,
    after: Sequence[Places] | None = None,
    reading: Reading = OURS,
    worn: Worn | None = None,
) -> list[Tensor]:
    """States of all layers 1..L as a list of [N, H]; N = all target tokens, example after example.

    `body` is the decoder below the head. `before` is what was read earlier, of which each prompt goes on from the places `after`; then
    each prompt has at least one token. Gradients flow through what prompts share as if each had read it alone.
    """
    places = after if after is not None else [()] * len(prompts)
    groups = worn.of_rows if worn is not None else [0] * len(prompts)
    rows = [
        Row(tokens=prompt + target, shared=len(prompt) - 1, after=at, group=group)
        for prompt, target, at, group in zip(prompts, targets, places, groups, strict=True)
    ]
    packed = pack(rows, device, before)
    if worn is not None:
        worn.tell(packed.runs)
    states = read(body, packed, reading)
    shift = 1 if reading.positions == "shifted" else 0
    starts = [len(at) + len(prompt) - shift for prompt, at in zip(prompts, places, strict=True)]
    wanted = [
        place - packed.read
        for path, start, target in zip(packed.paths, starts, targets, strict=True)
        for place in path[start : start + len(target)]
    ]
    index = torch.tensor(wanted, device=device)
    return [state[0].index_select(0, index) for state in states]


def prompt_states(
    body: nn.Module,
    prompts: Sequence[Prompt],
    targets: Sequence[tuple[int, ...]],
    device: torch.device,
    *,
    unworn: Unworn | None = None,
    reading: Reading = OURS,
    worn: Worn | None = None,
) -> list[Tensor]:
    """`target_states` of prompts in two segments. `unworn` is given under scope `answer`: the bare segments are read within it, and no
    gradient flows into them; adapters act on the adapted ones and the targets."""
    if unworn is None or not any(prompt.bare for prompt in prompts):
        return target_states(body, [prompt.ids for prompt in prompts], targets, device, reading=reading, worn=worn)
    with torch.no_grad(), unworn():
        before = prefixes(body, [prompt.bare for prompt in prompts], device)
    adapted = [prompt.adapted for prompt in prompts]
    return target_states(body, adapted, targets, device, before=before, after=before.paths, reading=reading, worn=worn)


def prefixes(body: nn.Module, rows: Sequence[tuple[int, ...]], device: torch.device) -> Pack:
    """Rows read for others to go on from; `paths` say where each is. Rows may be empty, alike, or begin alike."""
    different = [row for row in dict.fromkeys(rows) if row]
    packed = pack([Row(tokens=row, shared=len(row) - 1) for row in different], device)
    packed.keeps = True
    _pass(body, packed, states=False)
    found = dict(zip(different, packed.paths, strict=True))
    packed.paths = [found.get(row, ()) for row in rows]
    return packed


def read(body: nn.Module, packed: Pack, reading: Reading) -> list[Tensor]:
    """States [1, T, H] of a pack's tokens, layer by layer."""
    return list(_pass(body, packed, states=True).hidden_states[0 if reading.embeddings else 1 :])


def _pass(body: nn.Module, packed: Pack, *, states: bool) -> Any:
    """Without `states` for what is kept of keys and values alone: a long prefix's states are much, and nobody reads them."""
    with _attending(body), attention.packing(packed):
        return body(input_ids=packed.ids, position_ids=packed.positions, output_hidden_states=states, use_cache=False)


@contextmanager
def _attending(body: nn.Module) -> Iterator[None]:
    """Within, the body attends as packs do."""
    assert isinstance(body, PreTrainedModel)
    own = body.config._attn_implementation
    attention.register()
    body.set_attn_implementation(attention.PACKED)
    try:
        yield
    finally:
        body.set_attn_implementation(own)


def token_nll(
    model: PreTrainedModel,
    body: nn.Module,
    prompt: Prompt,
    target: tuple[int, ...],
    device: torch.device,
    unworn: Unworn | None = None,
) -> float:
    """Mean negative log-likelihood (nats) of the target's tokens after the prompt."""
    with torch.no_grad():
        final = prompt_states(body, [prompt], [target], device, unworn=unworn)[-1]
        logprobs = head_of(model)(final).float().log_softmax(-1)
    return float(-logprobs.gather(1, torch.tensor(target, device=device)[:, None]).mean())

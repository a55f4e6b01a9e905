"""Runs a causal LM over prompts with targets and takes the states at the positions that predict target tokens.

Position t predicts token t+1, so the states of a target of n tokens begin at the prompt's last token and end before the target's last.
Unshifted positions are those of the target's own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from server.engine.prompt import Prompt
from worker.training.recipe import Reading

OURS = Reading()
MIN_SHARED = 8
"""A shorter common prefix is not worth a forward pass of its own."""
Unworn = Callable[[], AbstractContextManager[None]]
"""Within it the body wears nothing."""


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What was read before: its keys and values, of one row for all or of each row, and which of its places hold tokens [rows, places]."""

    cache: DynamicCache
    mask_BP: Tensor

    def of_rows(self, count: int) -> Prefix:
        """A single row's becomes that of `count` rows."""
        if len(self.mask_BP) == count:
            return self
        self.cache.batch_repeat_interleave(count)
        return Prefix(cache=self.cache, mask_BP=self.mask_BP.expand(count, -1))


def head_of(model: PreTrainedModel) -> nn.Linear:
    """The output head. Raises ValueError for models that bend the logits after it: states alone do not rebuild those."""
    if getattr(model.config, "final_logit_softcapping", None):
        raise ValueError("models with final logit soft-capping cannot be distilled from states")
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Linear):
        raise ValueError("the model has no linear output head")
    return head


def pad(rows: Sequence[Sequence[int]], device: torch.device, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Right-padded (ids_BT, mask_BT)."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def predicting(prompts: Sequence[int], targets: Sequence[int], device: torch.device, reading: Reading = OURS) -> tuple[Tensor, Tensor]:
    """Row and column indices of the predicting positions, from prompt and target lengths; rows one after the other."""
    shift = 1 if reading.positions == "shifted" else 0
    rows = torch.tensor([row for row, count in enumerate(targets) for _ in range(count)], device=device)
    columns = torch.tensor(
        [column for prompt, count in zip(prompts, targets, strict=True) for column in range(prompt - shift, prompt - shift + count)],
        device=device,
    )
    return rows, columns


def target_states(
    body: nn.Module,
    prompts: Sequence[tuple[int, ...]],
    targets: Sequence[tuple[int, ...]],
    device: torch.device,
    prefix: Prefix | None = None,
    reading: Reading = OURS,
    alike: bool = True,
) -> list[Tensor]:
    """States of all layers 1..L as a list of [N, H]; N = all target tokens, example after example.

    `body` is the decoder below the head. `prefix` is what `prompts` go on from, and is used up; then each prompt has at least one token.
    What all prompts begin with (header and instruction, half of a short question's tokens) is read once for the batch, unless their
    prefixes differ; gradients flow through it as through a padded batch. `alike`: all rows wear the same, so that they may share it.
    """
    same = alike and (prefix is None or len(prefix.mask_BP) == 1)
    if same and (shared := common_length(prompts)) >= MIN_SHARED:
        prefix = shared_prefix(body, prompts[0][:shared], device, prefix)
        prompts = [prompt[shared:] for prompt in prompts]
    ids, mask = pad([prompt + target for prompt, target in zip(prompts, targets, strict=True)], device)
    extra: dict[str, Any] = {}
    if prefix is not None:
        prefix = prefix.of_rows(len(prompts))
        positions = prefix.mask_BP.sum(dim=1, keepdim=True) + torch.arange(ids.shape[1], device=device)
        mask = torch.cat([prefix.mask_BP, mask], dim=1)
        extra = {"past_key_values": prefix.cache, "use_cache": True, "position_ids": positions}
    output = body(input_ids=ids, attention_mask=mask, output_hidden_states=True, **{"use_cache": False, **extra})
    rows, columns = predicting([len(prompt) for prompt in prompts], [len(target) for target in targets], device, reading)
    return [state[rows, columns] for state in output.hidden_states[0 if reading.embeddings else 1 :]]


def prompt_states(
    body: nn.Module,
    prompts: Sequence[Prompt],
    targets: Sequence[tuple[int, ...]],
    device: torch.device,
    *,
    unworn: Unworn | None = None,
    reading: Reading = OURS,
    alike: bool = True,
) -> list[Tensor]:
    """`target_states` of prompts in two segments. `unworn` is given under scope `answer`: the bare segments are read within it, and no
    gradient flows into them; adapters act on the adapted ones and the targets."""
    if unworn is None or not any(prompt.bare for prompt in prompts):
        return target_states(body, [prompt.ids for prompt in prompts], targets, device, reading=reading, alike=alike)
    with torch.no_grad(), unworn():
        bare = [prompt.bare for prompt in prompts]
        prefix = shared_prefix(body, bare[0], device) if len(set(bare)) == 1 else _prefixes(body, bare, device)
    return target_states(body, [prompt.adapted for prompt in prompts], targets, device, prefix=prefix, reading=reading, alike=alike)


def common_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all of several prompts begin with, leaving each at least its last one; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    longest = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(longest) if len({prompt[i] for prompt in prompts}) > 1), longest)


def shared_prefix(body: nn.Module, tokens: tuple[int, ...], device: torch.device, before: Prefix | None = None) -> Prefix:
    """Tokens that are the same in all rows, read once, behind a prefix of one row, which is used up."""
    cache = DynamicCache() if before is None else before.cache
    body(input_ids=torch.tensor([tokens], device=device), past_key_values=cache, use_cache=True)
    return Prefix(cache=cache, mask_BP=torch.ones(1, cache.get_seq_length(), dtype=torch.long, device=device))


def _prefixes(body: nn.Module, rows: Sequence[tuple[int, ...]], device: torch.device) -> Prefix:
    """Each row's own. Padded on the left, so that a sliding window, which counts places, counts tokens."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    cache = DynamicCache()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    body(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    return Prefix(cache=cache, mask_BP=mask)


def token_nll(
    model: PreTrainedModel, body: nn.Module, prompt: Prompt, target: tuple[int, ...], device: torch.device, unworn: Unworn | None = None
) -> float:
    """Mean negative log-likelihood (nats) of the target's tokens after the prompt."""
    with torch.no_grad():
        final = prompt_states(body, [prompt], [target], device, unworn=unworn)[-1]
        logprobs = head_of(model)(final).float().log_softmax(-1)
    return float(-logprobs.gather(1, torch.tensor(target, device=device)[:, None]).mean())

"""Runs a causal LM over prompts with targets and takes the states at the positions that predict target tokens.

Position t predicts token t+1, so the states of a target of n tokens begin at the prompt's last token and end before the target's last.
Unshifted positions are those of the target's own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from worker.training.recipe import Reading

OURS = Reading()
MIN_SHARED = 8
"""A shorter common prefix is not worth a forward pass of its own."""


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
    prefix: Any = None,
    reading: Reading = OURS,
    alike: bool = True,
) -> list[Tensor]:
    """States of all layers 1..L as a list of [N, H]; N = all target tokens, example after example.

    `body` is the decoder below the head. `prefix` is a cache of shared prompt tokens that `prompts` go on from; then each prompt
    has at least one token. Without it, what all prompts begin with (header and instruction, half of a short question's tokens) is read
    once for the batch; gradients flow through it as through a padded batch. `alike`: all rows wear the same, so that they may share it.
    """
    if prefix is None and alike and (shared := common_length(prompts)) >= MIN_SHARED:
        prefix = shared_prefix(body, prompts[0][:shared], device)
        prefix.batch_repeat_interleave(len(prompts))
        prompts = [prompt[shared:] for prompt in prompts]
    ids, mask = pad([prompt + target for prompt, target in zip(prompts, targets, strict=True)], device)
    extra: dict[str, Any] = {}
    if prefix is not None:
        past = prefix.get_seq_length()
        mask = torch.cat([mask.new_ones(len(prompts), past), mask], dim=1)
        extra = {"past_key_values": prefix, "use_cache": True, "position_ids": torch.arange(past, past + ids.shape[1], device=device)[None]}
    output = body(input_ids=ids, attention_mask=mask, output_hidden_states=True, **{"use_cache": False, **extra})
    rows, columns = predicting([len(prompt) for prompt in prompts], [len(target) for target in targets], device, reading)
    return [state[rows, columns] for state in output.hidden_states[0 if reading.embeddings else 1 :]]


def common_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all of several prompts begin with, leaving each at least its last one; 0 for a single prompt."""
    if len(prompts) < 2:
        return 0
    longest = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(longest) if len({prompt[i] for prompt in prompts}) > 1), longest)


def shared_prefix(body: nn.Module, tokens: tuple[int, ...], device: torch.device) -> DynamicCache:
    """A cache of `tokens`, read once; repeat it with `batch_repeat_interleave`."""
    cache = DynamicCache()
    body(input_ids=torch.tensor([tokens], device=device), past_key_values=cache, use_cache=True)
    return cache


def token_nll(model: PreTrainedModel, body: nn.Module, prompt: tuple[int, ...], target: tuple[int, ...], device: torch.device) -> float:
    """Mean negative log-likelihood (nats) of the target's tokens after the prompt."""
    with torch.no_grad():
        final = target_states(body, [prompt], [target], device)[-1]
        logprobs = head_of(model)(final).float().log_softmax(-1)
    return float(-logprobs.gather(1, torch.tensor(target, device=device)[:, None]).mean())

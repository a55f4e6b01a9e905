"""Prompts that fit: the worst passages are dropped until question, passages and answer go into the model's context.

Knows nothing of documents or requests. The prompt itself is `engine/prompt.py`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final

from transformers import PreTrainedTokenizerBase

from server.engine.prompt import Prompt, Turn, answer_prompt, plain_ids
from server.errors import ContextLimit

HOPELESS: Final = 4
"""Another tokenizer may make fewer tokens of a text, but not so many times fewer that one of so many contexts would fit."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """`kept` of the offered passages, counted from the best, are in the prompt."""

    prompt: Prompt
    kept: int


class Prompter:
    """Thread-safe. A fast tokenizer is changed by calls that treat special tokens differently, so it has a copy and a lock of its own."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context_limit: int) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = Lock()
        self.context_limit = context_limit

    def fit(self, question: str, passages: Sequence[str] = (), history: Sequence[Turn] = (), *, reserve: int, least: int = 0) -> Fitted:
        """`passages` come best first and stand in the prompt best last; `reserve` tokens are left for the answer.

        Raises ContextLimit when it does not fit with the `least` best passages.
        """
        kept = len(passages)
        with self._lock:
            while True:
                prompt = answer_prompt(self._tokenizer, question, list(reversed(passages[:kept])), history)
                if len(prompt) + reserve <= self.context_limit:
                    return Fitted(prompt=prompt, kept=kept)
                if kept <= least:
                    raise self._too_long(len(prompt), reserve)
                kept -= 1

    def require_room(self, tokens: int, reserve: int) -> None:
        """Refuse a document that cannot fit before it is read and tokenised. `tokens` may be another base model's count: near the limit
        `fit` counts itself. Raises ContextLimit."""
        if tokens > HOPELESS * self.context_limit:
            raise self._too_long(tokens, reserve)

    def longest(self, texts: Sequence[str]) -> int:
        """Tokens of the longest of these texts."""
        with self._lock:
            return max((len(plain_ids(self._tokenizer, text)) for text in texts), default=0)

    def _too_long(self, tokens: int, reserve: int) -> ContextLimit:
        detail = (
            f"the prompt has {tokens} tokens and the answer may take {reserve}, but the model's context has {self.context_limit}; "
            "ask for a shorter answer, send a shorter question or fewer messages, or choose another mode"
        )
        return ContextLimit(detail, prompt_tokens=tokens, max_tokens=reserve, limit=self.context_limit)

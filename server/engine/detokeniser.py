"""Token ids to text, piece by piece: never half a character, nothing of a stop string. Knows nothing of requests."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"
"""What a tokenizer decodes the bytes of an unfinished character to."""


class Detokeniser:
    """Text of a growing list of ids.

    A token's text depends on its left neighbour (leading spaces, characters split over tokens), so each piece is the difference
    of two decodings that start at the piece before.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(text for text in stop if text)
        self._ids: list[int] = []
        self._context = 0
        self._read = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that `token` makes certain."""
        self._ids.append(token)
        before = self._decode(self._ids[self._context : self._read])
        text = self._decode(self._ids[self._context :])
        if text.endswith(_BROKEN) or len(text) <= len(before):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return self._release(text[len(before) :])

    def finish(self) -> str:
        """What was still held back, without an unfinished character."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._context : self._read])
        tail = self._decode(self._ids[self._context :])[len(before) :].rstrip(_BROKEN)
        text = self._release(tail)
        if self.stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _release(self, piece: str) -> str:
        """Move `piece` behind the held text; give out all that cannot be part of a stop string."""
        self._held += piece
        ends = [found for stop in self._stop if (found := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            text, self._held = self._held[: min(ends)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)

"""Retrieval within one document, in memory: the passages that serving would cut, ranked by cosine similarity."""

from __future__ import annotations

from server.retrieval.passages import SPECIAL_TOKENS, Count, split
from server.retrieval.types import Embedding, Page, ParsedDocument


class Retriever:
    def __init__(self, text: str, embedder: Embedding, count: Count, passage_tokens: int) -> None:
        """`count` says how many tokens of the base model a text has."""
        parsed = ParsedDocument(media_type="text/plain", pages=(Page(number=None, text=text),))
        room = embedder.max_tokens - SPECIAL_TOKENS
        found = split(parsed, base=count, embedder=embedder.count, passage_tokens=passage_tokens, embedder_tokens=room)
        self.passages = [passage.text for passage in found]
        self._embedder = embedder
        self._vectors = embedder.encode(self.passages)
        self._ranked: dict[str, list[int]] = {}

    def best(self, question: str, k: int) -> list[str]:
        """The `k` nearest passages, or all where there are fewer, best last."""
        return [self.passages[index] for index in self._rank(question)[:k][::-1]]

    def _rank(self, question: str) -> list[int]:
        if question not in self._ranked:
            (query,) = self._embedder.encode([question])
            scores = [sum(a * b for a, b in zip(query, vector, strict=True)) for vector in self._vectors]
            self._ranked[question] = sorted(range(len(scores)), key=lambda index: -scores[index])
        return self._ranked[question]

"""Cut a parsed document into passages: as long as both models allow, at the most sensible boundary, never over two pages.

Knows nothing of tokenizers but how many tokens a text has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from semantic_text_splitter import TextSplitter
from tokenizers import Tokenizer

from server.retrieval.types import PAGE_BREAK, ParsedDocument, PassageText

SPECIAL_TOKENS: Final = 2
"""What an embedding model adds to a text: passages leave room for them."""
_BLOCK_CHARACTERS: Final = 20_000
"""The splitter's time grows with the square of a text without breaks; a longer one is cut first."""
_BREAKS: Final = (re.compile(r"\n{3}"), re.compile(r"\n\n"), re.compile(r"\n"), re.compile("[.!?\u3002\uff01\uff1f] ?"), re.compile(r"\s"))

Count = Callable[[str], int]


def token_counter(tokenizer: Any) -> Count:
    """How many tokens a Hugging Face tokenizer makes of a text, special ones not counted.

    A copy of the tokenizer counts, without truncation and padding: a fast tokenizer is changed by every call that sets them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
    counter = Tokenizer.from_str(backend.to_str())
    counter.no_truncation()
    counter.no_padding()
    return lambda text: len(counter.encode(text, add_special_tokens=False).ids)


def split(parsed: ParsedDocument, *, base: Count, embedder: Count, passage_tokens: int, embedder_tokens: int) -> list[PassageText]:
    """Passages of at most `passage_tokens` tokens by `base` and `embedder_tokens` by `embedder`, in reading order.

    A passage is exactly its span of `parsed.text`, white space around it left out; passages do not overlap.
    """
    splitter = TextSplitter.from_callback(_size(base, embedder, passage_tokens, embedder_tokens), passage_tokens)
    found: list[PassageText] = []
    offset = 0
    for page in parsed.pages:
        for start, text in _pieces(splitter, page.text):
            span = {"char_start": offset + start, "char_end": offset + start + len(text)}
            found.append(PassageText(ordinal=len(found), text=text, page=page.number, tokens=base(text), **span))
        offset += len(page.text) + len(PAGE_BREAK)
    return found


def _size(base: Count, embedder: Count, passage_tokens: int, embedder_tokens: int) -> Count:
    """A text's size in base tokens, or its embedder tokens on the same scale if that is more: over the limit of one, over the capacity."""

    def size(text: str) -> int:
        tokens = base(text)
        if tokens > passage_tokens:
            return tokens
        return max(tokens, -(-embedder(text) * passage_tokens // embedder_tokens))

    return size


def _pieces(splitter: TextSplitter, text: str) -> Iterator[tuple[int, str]]:
    for start, block in _blocks(text):
        for offset, piece in splitter.chunk_indices(block):
            if piece.strip():
                yield start + offset, piece


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    while len(text) - start > _BLOCK_CHARACTERS:
        end = _last_break(text, start + _BLOCK_CHARACTERS // 2, start + _BLOCK_CHARACTERS)
        yield start, text[start:end]
        start = end
    yield start, text[start:]


def _last_break(text: str, start: int, end: int) -> int:
    """Where the last of the best breaks in [start, end) ends, or `end` where there is none."""
    for pattern in _BREAKS:
        ends = [match.end() for match in pattern.finditer(text, start, end)]
        if ends:
            return ends[-1]
    return end

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from server.retrieval.formats.html import html_to_text
from server.retrieval.passages import split, token_counter
from server.retrieval.types import Page, ParsedDocument, PassageText
from tests.support.embeddings import count_words

BASE, EMBEDDER = 40, 25


def count_letters(text: str) -> int:
    """Another tokenizer than the base model's: three characters a token."""
    return -(-len(text.replace(" ", "")) // 3)


def document(*texts: str, paged: bool = False) -> ParsedDocument:
    pages = tuple(Page(number=number if paged else None, text=text) for number, text in enumerate(texts, start=1))
    return ParsedDocument(media_type="text/plain", pages=pages)


def passages_of(parsed: ParsedDocument) -> list[PassageText]:
    return split(parsed, base=count_words, embedder=count_letters, passage_tokens=BASE, embedder_tokens=EMBEDDER)


words = st.text(st.sampled_from("ab é漢🙂.,!\n\t "), max_size=400)
prose = st.lists(st.sampled_from(["A sentence of words.", "Another, longer sentence!", "\n\n", "x" * 200, "漢字" * 60]), max_size=40)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(words, prose.map(" ".join)), min_size=1, max_size=4))
@example(["", "second page"])
@example(["\n \n", " lead and trail \n"])
def test_spans_are_exact_and_within_both_limits(texts: list[str]) -> None:
    parsed = document(*texts, paged=True)
    passages = passages_of(parsed)
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + len(text) + 2)
    covered = bytearray(len(parsed.text))
    for ordinal, passage in enumerate(passages):
        assert passage.ordinal == ordinal
        assert parsed.text[passage.char_start : passage.char_end] == passage.text
        assert passage.text.strip()
        assert passage.tokens == count_words(passage.text) <= BASE
        assert count_letters(passage.text) <= EMBEDDER
        assert passage.page is not None
        assert starts[passage.page - 1] <= passage.char_start < passage.char_end <= starts[passage.page] - 2
        assert not any(covered[passage.char_start : passage.char_end])
        covered[passage.char_start : passage.char_end] = b"\x01" * len(passage.text)
    assert all(seen or character.isspace() for seen, character in zip(covered, parsed.text, strict=True))


def test_a_short_text_is_one_passage() -> None:
    (passage,) = passages_of(document("Thirty days of leave."))
    assert passage == PassageText(ordinal=0, text="Thirty days of leave.", page=None, char_start=0, char_end=21, tokens=5)


def test_sentences_stay_whole() -> None:
    sentences = [f"Rule {number} gives {number} days." for number in range(20)]
    for passage in passages_of(document(" ".join(sentences))):
        assert passage.text.startswith("Rule")
        assert passage.text.endswith("days.")


def test_a_heading_goes_with_its_section() -> None:
    body = "Every employee has many days of leave in a year."
    text = html_to_text("".join(f"<h2>Part {number}</h2><p>{body}</p>" for number in range(6)))
    assert [passage.text for passage in passages_of(document(text))] == [f"Part {number}\n\n{body}" for number in range(6)]


def test_a_text_of_white_space_has_no_passages() -> None:
    assert passages_of(document(" \n\n ", "", paged=True)) == []


def test_the_splitter_never_sees_a_long_text_whole() -> None:
    sizes = []

    def count(text: str) -> int:
        sizes.append(len(text))
        return len(text)

    passages = split(document("漢字" * 20_000), base=count, embedder=count, passage_tokens=5000, embedder_tokens=5000)
    assert sum(len(passage.text) for passage in passages) == 40_000
    assert max(sizes) <= 20_000


def test_the_counter_is_not_the_tokenizer_others_use() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()

    class Fast:
        backend_tokenizer = backend

    count = token_counter(Fast())
    backend.enable_truncation(2)
    backend.enable_padding(length=2)
    assert count("a a a b") == 4
    assert count("a") == 1


def test_a_slow_tokenizer_counts_too() -> None:
    def slow(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [0] * len(text)}

    assert token_counter(slow)("abc") == 3

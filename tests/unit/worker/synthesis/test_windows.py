"""Windows and chunks of a document's text."""

from __future__ import annotations

from worker.synthesis.windows import chunks, sentences, windows


def count(text: str) -> int:
    return len(text.split())


TEXT = "# A heading\n\nOne fact stands here today. Another fact follows it at once.\n\nA third, alone in its paragraph, ends it."


def test_sentences_split_at_ends_and_paragraphs() -> None:
    assert sentences(TEXT) == [
        "# A heading",
        "One fact stands here today.",
        "Another fact follows it at once.",
        "A third, alone in its paragraph, ends it.",
    ]


def test_windows_leave_headings_out() -> None:
    assert windows(TEXT, 20, count) == sentences(TEXT)[1:]


def test_a_long_sentence_is_cut_to_size() -> None:
    assert all(count(piece) <= 20 for piece in windows("word " * 500, 20, count))


def test_chunks_cover_the_text_and_overlap() -> None:
    text = " ".join(f"Sentence number {i} is here." for i in range(50))
    parts = chunks(text, 60, 0.2, count)
    assert all(f"number {i} " in " ".join(parts) for i in range(50))
    assert parts[1].split("\n")[0] in parts[0]
    assert all(count(part) <= 60 for part in parts)

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import BrokenDocument, DocumentTooLong, EmptyDocument, EncryptedDocument, NoTextLayer, ParseLimit, UndecodableText
from server.retrieval.formats import docx as docx_format
from server.retrieval.formats.html import html_to_text, read_html
from server.retrieval.formats.markdown import read_markdown
from server.retrieval.formats.text import clean, read_text
from server.retrieval.reading import read_document
from server.retrieval.types import PAGE_BREAK, ParsedDocument
from tests.support.documents import docx, paragraph, pdf, table, zipped


def read(tmp_path: Path, data: bytes, filename: str | None = None, max_characters: int = 10_000) -> ParsedDocument:
    path = tmp_path / "blob"
    path.write_bytes(data)
    return read_document(path, filename, max_characters)


class TestText:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
    def test_the_encoding_is_found(self, encoding: str) -> None:
        text = "Für Überstunden gibt es Freizeitausgleich, spätestens nach drei Wochen. " * 3
        assert read_text(text.encode(encoding)) == text.strip()

    def test_another_alphabet(self) -> None:
        text = "日本語のテキストです。文字コードは自動的に判別されます。" * 3
        assert read_text(text.encode("shift_jis")) == text

    def test_bytes_of_no_encoding(self) -> None:
        with pytest.raises(UndecodableText):
            read_text(bytes(range(128, 256)) * 20)

    def test_a_broken_utf16_file(self) -> None:
        with pytest.raises(UndecodableText):
            read_text(b"\xff\xfe" + b"\x00\xd8" * 9)

    def test_newlines_and_blank_lines(self) -> None:
        assert clean("a  \r\nb\rc\u2028d\n \n\n\n\ne\n\n") == "a\nb\nc\nd\n\n\ne"

    def test_what_no_database_stores_is_dropped(self) -> None:
        assert clean("a\x00b\ud800c\ufeffd\x1b[0m\u00a0e").encode() == b"abcd[0m e"


class TestHtml:
    def test_only_what_a_reader_sees(self) -> None:
        page = """<html><head><title>Tab</title><style>p {color: red}</style></head><body><nav>Menu</nav><script>track()</script>
        <h1>Leave</h1><p>Thirty   days<br>a <b>ye</b>ar.</p><p hidden>secret</p><noscript>old</noscript></body></html>"""
        assert html_to_text(page) == "Leave\n\nThirty days\na year."

    def test_lists(self) -> None:
        source = "<ul><li>one</li><li>two<ol start='4'><li>four</li><li>five</li></ol></li></ul>after"
        assert html_to_text(source) == "- one\n- two\n  4. four\n  5. five\n\nafter"

    def test_a_table_row_is_a_line(self) -> None:
        source = "<table><tr><th>Name</th><th>Days</th></tr><tr><td><p>Ann</p><p>Lee</p></td><td></td><td>30</td></tr></table>"
        assert html_to_text(source) == "Name | Days\nAnn Lee |  | 30"

    def test_a_table_that_lays_out_a_page_is_read_as_blocks(self) -> None:
        source = "<table><tr><td><ul><li>menu</li></ul></td><td><h1>Title</h1><p>Body</p></td></tr></table>"
        assert html_to_text(source) == "- menu\n\n\nTitle\n\nBody"

    def test_preformatted_text_keeps_its_shape(self) -> None:
        assert html_to_text("<p>x</p><pre>def f():\n    return 1</pre>") == "x\n\ndef f():\n    return 1"

    def test_entities_and_pictures(self) -> None:
        assert html_to_text("5 &lt; 6 &amp; <img alt='a chart'> &nbsp;end") == "5 < 6 & a chart end"

    def test_the_declared_encoding(self) -> None:
        assert read_html('<meta charset="windows-1251"><p>Привет, мир</p>'.encode("cp1251")) == "Привет, мир"

    def test_depth_does_not_matter(self) -> None:
        assert html_to_text("<b>" * 3000 + "deep") == "deep"


class TestMarkdown:
    def test_headings_lists_tables_and_code_stay_readable(self) -> None:
        source = b"""# Leave *policy*

Full-time staff have **30 days**, see [the list](https://x.y).

1. ask
2. wait

| Who | Days |
|-----|------|
| Ann | 30   |

```
code_stays = 1
```
"""
        expected = (
            "Leave policy\n\nFull-time staff have 30 days, see the list.\n\n1. ask\n2. wait\n\nWho | Days\nAnn | 30\n\ncode_stays = 1"
        )
        assert read_markdown(source) == expected

    def test_html_inside_is_read_too(self) -> None:
        assert read_markdown(b"a\n\n<div>b<script>x()</script></div>\n") == "a\n\nb"


class TestPdf:
    def test_pages_are_kept_apart_and_numbered(self, tmp_path: Path) -> None:
        parsed = read(tmp_path, pdf(["First page.\nSecond line (of it).", "", "Third page."]))
        assert [(page.number, page.text) for page in parsed.pages] == [
            (1, "First page.\nSecond line (of it)."),
            (2, ""),
            (3, "Third page."),
        ]
        assert parsed.text == PAGE_BREAK.join(["First page.\nSecond line (of it).", "", "Third page."])
        assert parsed.page_count == 3

    def test_no_text_layer(self, tmp_path: Path) -> None:
        with pytest.raises(NoTextLayer):
            read(tmp_path, pdf(["", ""]))

    def test_no_pages(self, tmp_path: Path) -> None:
        with pytest.raises((EmptyDocument, BrokenDocument)):
            read(tmp_path, pdf([]))

    def test_a_password(self, tmp_path: Path) -> None:
        with pytest.raises(EncryptedDocument):
            read(tmp_path, pdf(["secret"], encrypted=True))

    @pytest.mark.parametrize("data", [b"%PDF-1.4\n", b"%PDF-1.7\n" + b"garbage " * 100, pdf(["x"])[:40]])
    def test_a_broken_file(self, tmp_path: Path, data: bytes) -> None:
        with pytest.raises(BrokenDocument):
            read(tmp_path, data)

    def test_too_long_a_text_stops_at_its_page(self, tmp_path: Path) -> None:
        with pytest.raises(DocumentTooLong):
            read(tmp_path, pdf(["words and words"] * 50), max_characters=100)


class TestDocx:
    def test_paragraphs_headings_and_tables(self, tmp_path: Path) -> None:
        body = paragraph("Leave", "Heading1") + paragraph("Thirty days & more.") + table([["Who", "Days"], ["Ann", "30"]])
        parsed = read(tmp_path, docx(body))
        assert parsed.text == "Leave\n\nThirty days & more.\n\nWho | Days\nAnn | 30"
        assert parsed.page_count is None

    def test_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(EmptyDocument):
            read(tmp_path, docx(""))

    @pytest.mark.parametrize(
        "data",
        [
            pytest.param(docx(paragraph("x" * 5000))[:700], id="cut off"),
            pytest.param(zipped({"word/document.xml": "<w:document"}), id="broken XML"),
            pytest.param(zipped({"word/document.xml": b"\xff\xfe\x00"}), id="no XML"),
        ],
    )
    def test_a_broken_file(self, tmp_path: Path, data: bytes) -> None:
        with pytest.raises(BrokenDocument):
            read(tmp_path, data)

    def test_an_archive_that_unpacks_to_too_much(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(docx_format, "MAX_UNPACKED_BYTES", 100_000)
        with pytest.raises(ParseLimit):
            read(tmp_path, docx(paragraph("a" * 200_000)))

    def test_entities_do_not_explode(self, tmp_path: Path) -> None:
        entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20}">' for n in range(1, 12))
        bomb = f'<!DOCTYPE d [<!ENTITY e0 "boom">{entities}]><d>&e11;</d>'
        with pytest.raises(BrokenDocument):
            read(tmp_path, zipped({"word/document.xml": bomb}))

    def test_an_encrypted_archive(self, tmp_path: Path) -> None:
        data = bytearray(docx(paragraph("x")))
        start = data.find(b"PK\x01\x02")
        data[start + 8] |= 1
        with pytest.raises(EncryptedDocument):
            read(tmp_path, bytes(data))


def test_the_limit_is_in_characters(tmp_path: Path) -> None:
    assert read(tmp_path, "ü".encode() * 100, max_characters=100).text == "ü" * 100
    with pytest.raises(DocumentTooLong):
        read(tmp_path, b"a" * 101, max_characters=100)


def test_markup_around_nothing_is_empty(tmp_path: Path) -> None:
    with pytest.raises(EmptyDocument):
        read(tmp_path, b"<html><script>x()</script></html>")

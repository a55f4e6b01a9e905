"""Markdown to plain text by way of its HTML, so that headings, lists and tables read as they do there."""

from __future__ import annotations

from markdown_it import MarkdownIt

from server.retrieval.formats.html import html_to_text
from server.retrieval.formats.text import read_text


def read_markdown(data: bytes) -> str:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return html_to_text(parser.render(read_text(data)))

"""HTML to the text a reader would see: blocks on lines of their own, lists with marks, table rows with bars. Styles are not computed.

A heading has two blank lines before it, so that a text is cut rather there than within a section. Markdown and DOCX come through here
as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from selectolax.lexbor import LexborHTMLParser, LexborNode

from server.errors import BrokenDocument
from server.retrieval.formats.text import clean, decode

_DROPPED: Final = (
    "head, script, style, template, noscript, nav, svg, math, canvas, iframe, object, embed, audio, video, select, "
    "[hidden], [aria-hidden=true]"
)
_HEADING: Final = re.compile("h[1-6]")
_PARAGRAPH: Final = re.compile("p|h[1-6]|ul|ol|dl|table|pre|blockquote|section|article|main|aside|figure|form|hr")
_LINE: Final = re.compile("div|li|tr|dt|dd|address|header|footer|caption|figcaption|details|summary|fieldset|legend|body|thead|tbody|tfoot")
_LISTS: Final = frozenset(("ul", "ol"))
_CELLS: Final = frozenset(("td", "th"))
_NOT_IN_A_LINE: Final = "table, ul, ol, dl, pre, blockquote, h1, h2, h3, h4, h5, h6"
_CHARSET: Final = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]+)""", re.IGNORECASE)
_SPACES: Final = re.compile(r"[ \t\r\n\f\u00a0]+")
_META_WINDOW: Final = 4096


def read_html(data: bytes) -> str:
    declared = _CHARSET.search(data[:_META_WINDOW])
    return html_to_text(decode(data, declared.group(1).decode("ascii") if declared else None))


def html_to_text(html: str) -> str:
    try:
        tree = LexborHTMLParser(html)
    except (ValueError, RuntimeError) as error:
        raise BrokenDocument("the HTML cannot be read; open it in a browser and save it again") from error
    for node in tree.css(_DROPPED):
        node.decompose()
    writer = _Writer()
    if tree.body is not None:
        for node, entered in _walk(tree.body):
            writer.enter(node) if entered else writer.leave(node.tag or "")
    return clean(writer.text)


def _walk(root: LexborNode) -> Iterator[tuple[LexborNode, bool]]:
    """Every node twice, when it begins and when it ends; without recursion, for documents may be nested thousands deep."""
    stack = [(root, True)]
    while stack:
        node, entered = stack.pop()
        yield node, entered
        if entered:
            stack.append((node, False))
            children = list(node.iter(include_text=True))
            stack.extend((child, True) for child in reversed(children))


class _Writer:
    """Collects text. Breaks between blocks are owed and paid by the next text, so that nested blocks do not add up.

    `_row`: inside a table row that reads as one line; a row with lists or tables in its cells lays out a page and is read as blocks.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._owed = 0
        self._spaced = True
        self._mark = ""
        self._pre = 0
        self._row = False
        self._lists: list[int | None] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def enter(self, node: LexborNode) -> None:
        tag = node.tag or ""
        if node.is_text_node:
            self._write(node.text_content or "")
        elif tag == "br":
            self._parts.append("\n" if not self._owed else "")
            self._spaced = True
        elif tag == "img":
            self._write(f" {node.attributes.get('alt') or ''} ")
        elif _HEADING.fullmatch(tag):
            self._owed = 3
        self._break(tag)
        if tag in _LISTS:
            self._lists.append(_start(node) if tag == "ol" else None)
        elif tag == "li":
            self._mark = self._item_mark()
        elif tag == "tr":
            self._row = node.css_first(_NOT_IN_A_LINE) is None
        self._pre += tag == "pre"

    def leave(self, tag: str) -> None:
        self._pre -= tag == "pre"
        if tag in _LISTS:
            self._lists.pop()
        if tag in _CELLS and self._row:
            self._mark += " | "
        elif tag == "li":
            self._mark = ""
        elif tag == "tr":
            self._mark, self._row = "", False
        self._break(tag)

    def _break(self, tag: str) -> None:
        nested_list = tag in _LISTS and bool(self._lists)
        if self._row and tag != "tr":
            self._write(" " if _PARAGRAPH.fullmatch(tag) or _LINE.fullmatch(tag) else "")
        elif _PARAGRAPH.fullmatch(tag) and not nested_list:
            self._owed = max(self._owed, 2)
        elif nested_list or _LINE.fullmatch(tag):
            self._owed = max(self._owed, 1)

    def _item_mark(self) -> str:
        if not self._lists:
            return "- "
        number = self._lists[-1]
        if number is not None:
            self._lists[-1] = number + 1
        return "  " * (len(self._lists) - 1) + ("- " if number is None else f"{number}. ")

    def _write(self, text: str) -> None:
        if not self._pre:
            text = _SPACES.sub(" ", text)
            if self._owed or self._spaced or self._mark:
                text = text.lstrip(" ")
        if not text:
            return
        mark = self._mark.removeprefix(" ") if (self._owed or self._spaced) and "|" in self._mark else self._mark
        self._parts.append("\n" * self._owed + mark + text)
        self._owed, self._mark = 0, ""
        self._spaced = text[-1] in " \n"


def _start(node: LexborNode) -> int:
    start = node.attributes.get("start") or "1"
    return int(start) if start.isdecimal() and len(start) < 10 else 1

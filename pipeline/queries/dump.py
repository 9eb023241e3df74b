"""A MediaWiki XML export as pages, one at a time, from any range of the file.

The format is https://www.mediawiki.org/xml/export-0.11.xsd and its predecessors: <mediawiki>, <siteinfo>, then one <page> after the
other. The tags <page> and </page> are found as bytes, which is safe because MediaWiki escapes every `<` of a text and writes no CDATA; each
page is then parsed on its own by expat. A page belongs to the range in which its tag begins, so that ranges share the work without
overlapping, and nothing but a page's own elements is ever parsed: there is no place for a DOCTYPE, hence no entity to expand.

What is no article with text is not silently lost: `Page.kind` says what it is, and callers count it.
"""

import re
import xml.parsers.expat
from collections.abc import Iterator
from typing import Literal, NamedTuple
from xml.parsers.expat.errors import messages

from pipeline.contracts.errors import InputError
from pipeline.queries.pieces import Kind, Piece, kind_of, pieces

PageKind = Literal["article", "redirect", "other_namespace", "other_model", "too_large", "broken"]
"""article: namespace 0, wikitext. other_model: namespace 0, but its content is no wikitext. broken: its XML does not parse."""

_OPEN, _CLOSE, _END = b"<page>", b"</page>", b"</mediawiki>"
_HEADER_BYTES = 1 << 20
_HEAD_BYTES = 4096  # of a page that is too large: enough for its title
_TITLE = re.compile(rb"<title>([^<]{0,2000})</title>")
_REDIRECT = re.compile(r"\s*#redirect\b[^\[]{0,40}\[\[([^\]|#]{1,300})", re.IGNORECASE)


class Site(NamedTuple):
    """What <siteinfo> says: the names of all namespaces but the articles' own."""

    namespaces: tuple[str, ...]


class Page(NamedTuple):
    """A page. `text` is its last revision's, empty unless it is an article; `target` is the title that a redirect leads to."""

    kind: PageKind
    title: str
    text: str = ""
    target: str = ""


class _Raw(NamedTuple):
    """The bytes of a page from <page> to </page>; of one that is too large the first ones."""

    data: bytes
    whole: bool


def read_site(uri: str) -> Site:
    """The namespaces of a dump; none where it has no <siteinfo>. Raises InputError where it is no MediaWiki export."""
    kind = dump_kind(uri)
    head = b""
    for piece in pieces(uri, kind, 0, _HEADER_BYTES):
        head += piece.data
        if b"</siteinfo>" in head or _OPEN in head or len(head) > _HEADER_BYTES:
            break
    head = head[:_HEADER_BYTES]
    ends = [place for place in (head.find(b"</siteinfo>"), head.find(_OPEN)) if place != -1]
    root = re.search(rb"<mediawiki[\s>]", head)
    if root is None or not ends or not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise InputError(f"{uri}: no MediaWiki XML export (no <mediawiki> with a <page>); give a pages-articles dump")
    if b"<!DOCTYPE" in head[: min(ends)]:
        raise InputError(f"{uri}: declares a DOCTYPE, which no MediaWiki export does; give a genuine dump")
    return Site(tuple(_namespaces(head[root.start() : min(ends)])))


def dump_kind(uri: str) -> Kind:
    """How a dump is compressed. Raises InputError when it can be neither read whole nor in ranges."""
    kind = kind_of(uri)
    if kind == "gz":
        raise InputError(
            f"{uri}: a gzip file cannot be read in parts; give the dump as bz2, as Wikimedia does, or plain"
        )
    return kind


def _namespaces(header: bytes) -> Iterator[str]:
    for key, name in re.findall(rb'<namespace key="(-?\d+)"[^>]*>([^<]*)</namespace>', header):
        if key != b"0" and name:
            yield name.decode("utf-8", "replace")


def read_pages(uri: str, start: int, stop: int, namespaces: frozenset[str], max_page_bytes: int) -> Iterator[Page]:
    """The pages that begin in bytes [start, stop) of the stored file, in its order.

    `namespaces` are prefixes (casefolded) that tell other namespaces where a page has no <ns> (exports before 0.6). Holds one page.
    Raises InputError for a truncated or corrupt file.
    """
    for raw in _raw_pages(uri, pieces(uri, dump_kind(uri), start, stop), max_page_bytes):
        yield _page(raw, namespaces)


# ---- bytes to pages


def _raw_pages(uri: str, source: Iterator[Piece], max_page_bytes: int) -> Iterator[_Raw]:
    """Pages whose tag begins in the own pieces; the last one may end in a later piece."""
    stream = _Stream(source)
    while stream.seek(_OPEN):
        if not stream.begins_inside():
            return
        data, whole = stream.take_through(_CLOSE, max_page_bytes)
        if data is None:
            raise InputError(f"{uri}: ends inside a page; it is truncated, get it again")
        yield _Raw(data, whole)
    if stream.reached_end and not stream.tail.rstrip().endswith(_END):
        raise InputError(f"{uri}: ends without {_END.decode()}; it is truncated, get it again")


class _Stream:
    """The pieces as one run of bytes with a place in it; holds what lies between the place and the end of the last piece read, and, until
    the next one is read, what was passed in that piece: a page is not worth moving the rest."""

    def __init__(self, source: Iterator[Piece]) -> None:
        self._source = source
        self._data = b""
        self._at = 0  # the place in self._data
        self._passed = 0  # bytes before self._data
        self._own = 0  # bytes of the own pieces read so far
        self._foreign = False  # a piece beyond the own ones was read
        self.reached_end = False
        self.tail = b""

    def _more(self) -> bool:
        piece = next(self._source, None)
        if piece is None:
            self.reached_end |= bool(self._passed or self._data)  # a range in which nothing begins has seen no end
            return False
        self._passed, self._data, self._at = self._passed + self._at, self._data[self._at :] + piece.data, 0
        self._own += len(piece.data) if piece.own else 0
        self._foreign |= not piece.own
        self.tail = (self.tail + piece.data)[-64:]
        return True

    def begins_inside(self) -> bool:
        """Whether the place is one of the own bytes."""
        return self._passed + self._at < self._own

    def _unsearched(self, tag: bytes) -> int:
        """Where `tag` may still begin, once more is read."""
        return max(self._at, len(self._data) - len(tag) + 1)

    def seek(self, tag: bytes) -> bool:
        """Move to the next `tag`; False when there is none, or none that begins in the own pieces."""
        while (at := self._data.find(tag, self._at)) == -1:
            self._at = self._unsearched(tag)
            if (self._foreign and not self.begins_inside()) or not self._more():
                return False
        self._at = at
        return True

    def take_through(self, tag: bytes, limit: int) -> tuple[bytes | None, bool]:
        """(what lies before the place behind the next `tag`, whether all of it): of more than `limit` bytes, the first few. (None, False)
        when the file ends before."""
        searched, head = self._at, b""
        while (at := self._data.find(tag, searched)) == -1:
            if len(self._data) - self._at > limit or head:
                head = head or self._data[self._at : self._at + _HEAD_BYTES]
                self._at = self._unsearched(tag)
            searched = self._unsearched(tag) - self._at
            if not self._more():
                return None, False
        start, self._at = self._at, at + len(tag)
        whole = not head and self._at - start <= limit
        return head or self._data[start : self._at if whole else min(self._at, start + _HEAD_BYTES)], whole


# ---- one page


class _Reader:
    """What expat finds in one page: the elements that are looked at, by their path below <page>. Of deeper ones only the depth is kept,
    since a hostile page may nest a million."""

    _WANTED = frozenset({("title",), ("ns",), ("revision", "model"), ("revision", "text")})
    _DEEPEST = 2

    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self.redirect: str | None = None
        self._path: tuple[str, ...] = ()
        self._depth = -1  # below <page>, which is 0
        self._parts: list[str] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._parts = []
        if 0 < self._depth <= self._DEEPEST:
            self._path = (*self._path, name)
            if self._path == ("redirect",):
                self.redirect = attributes.get("title", "")

    def end(self, name: str) -> None:
        if 0 < self._depth <= self._DEEPEST:
            if self._path in self._WANTED:
                self.found["/".join(self._path)] = "".join(self._parts)  # of several revisions the last one
            self._path = self._path[:-1]
        self._depth -= 1

    def characters(self, text: str) -> None:
        self._parts.append(text)


def _page(raw: _Raw, namespaces: frozenset[str]) -> Page:
    if not raw.whole:
        title = _TITLE.search(raw.data)
        return Page("too_large", title[1].decode("utf-8", "replace") if title else "")
    reader = _Reader()
    parser = xml.parsers.expat.ParserCreate("UTF-8")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.characters
    try:
        parser.Parse(raw.data, True)
    except xml.parsers.expat.ExpatError as error:
        return Page("broken", reader.found.get("title", ""), messages[error.code])
    return _classified(reader, namespaces)


def _classified(reader: _Reader, namespaces: frozenset[str]) -> Page:
    title, text = reader.found.get("title", "").strip(), reader.found.get("revision/text", "")
    if not title:
        return Page("broken", "", "no title")
    namespace = reader.found.get("ns")
    prefix, colon, _ = title.partition(":")
    if namespace != "0" and (namespace is not None or (colon and prefix.casefold() in namespaces)):
        return Page("other_namespace", title)
    if reader.found.get("revision/model", "wikitext") != "wikitext":
        return Page("other_model", title)
    if reader.redirect is not None:
        return Page("redirect", title, target=reader.redirect)
    if written := _REDIRECT.match(text):  # exports before 0.4 have no <redirect>
        return Page("redirect", title, target=written[1].strip())
    return Page("article", title, text)

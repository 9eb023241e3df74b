"""One web page → the image references on it, each with its URL and the text that describes it.

Which text is the caption: the `alt` of the `<img>`, else the `<figcaption>` of the `<figure>` around it, else its `title`. An empty alt,
which marks decoration, counts as none. The rule gives one row a reference; the same pair twice on a page is the business of `exact`.

Which URL, in this order, the first that is not a `data:` URI (which placeholders are): the largest candidate of `srcset` or a lazy loader's
copy of it; a lazy loader's attribute (there `src` is the placeholder); `src`; the largest candidate of the `<source>` elements of the
`<picture>` around it, whose formats are newer. It is joined to the page's first `<base href>` and URL as browsers do it: white space around
it, tabs and line breaks inside it and its fragment vanish, backslashes are slashes. `<noscript>` is read like the page around it, so that
the fallback of a lazy picture counts. Elements in templates do not.

The charset: a byte order mark, else the HTTP header's, else a meta element's in the first kilobytes, else a guess (resiliparse).
HTML is parsed by resiliparse (lexbor, the WHATWG algorithm), whose own data structures bear a million nested elements; we never climb more
than MAX_CLIMB levels.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import urldefrag, urljoin

from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree
from resiliparse.parse.html.node import ElementNode

from pipeline.content import opt_out

MAX_CLIMB = 8
"""Elements between an image and its `<figure>` or `<picture>`, at most."""
_MAX_TEXT = 20_000  # characters of an attribute or a figcaption that are kept
_MAX_SRCSET = 200  # candidates of one attribute that are looked at
_MAX_SOURCES = 50  # children of a <picture> that are looked at

_LAZY_SRCSETS = ("data-srcset", "data-lazy-srcset", "data-src-set")
_LAZY_SOURCES = (
    "data-src",
    "data-original",
    "data-lazy-src",
    "data-lazy",
    "data-lazyload",
    "data-image-src",
    "data-img-src",
    "data-original-src",
    "data-full-src",
    "data-hi-res-src",
    "data-url",
)
_DESCRIPTOR = re.compile(r"(\d+(?:\.\d+)?)([wx])")
_META_CHARSET = re.compile(rb"<meta[^>]{0,1000}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{1,40})", re.IGNORECASE)
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_NO_LINE_BREAKS = str.maketrans("", "", "\t\n\r")
_AROUND = "".join(map(chr, range(0x21)))  # C0 controls and space


class Reference(NamedTuple):
    """An image on a page. `url` is None where none could be made, `text_from` is "alt", "figcaption", "title" or "none"."""

    url: str | None
    caption: str | None
    text_from: str


class Page(NamedTuple):
    """The references in document order, how many more there were, and the page's own opt-out."""

    references: list[Reference]
    left: int
    opt_out: str | None


def read(html: bytes, url: str, charset: str | None, most: int, agents: Collection[str] = ()) -> Page:
    """The image references of a page that came from `url`; `charset` is what its HTTP header says. At most `most` references."""
    document = HTMLTree.parse(decode(html, charset)).document
    if document is None:
        return Page([], 0, None)

    # `values` walks the document once; a collection that is indexed or iterated walks it again for every element.
    def all_of(tag: str) -> list[ElementNode]:
        return document.get_elements_by_tag_name(tag).values()

    metas = ((meta.getattr("name") or "", meta.getattr("content") or "") for meta in all_of("meta"))
    asked = next((found for name, content in metas if (found := opt_out.in_meta(name, content, agents))), None)
    href = next((found for base in all_of("base") if (found := base.getattr("href")) is not None), None)
    base = join(url, href or "") or url
    captions: dict[ElementNode, ElementNode] = {}
    for caption in all_of("figcaption"):
        if (figure := _above(caption, "figure")) is not None:
            captions.setdefault(figure, caption)
    images = all_of("img")
    return Page([_reference(image, base, captions) for image in images[:most]], max(0, len(images) - most), asked)


def decode(html: bytes, charset: str | None) -> str:
    """The page's text. Bytes that its charset does not have become U+FFFD."""
    for mark, name in _BOMS:
        if html.startswith(mark):
            return html[len(mark) :].decode(name, "replace")
    named = _META_CHARSET.search(html[: 16 << 10])
    for found in (charset, named[1].decode() if named else None, detect_encoding(html)):
        known = map_encoding_to_html5(found, fallback_utf8=False) if found else None
        # A page whose markup can be searched byte by byte is not UTF-16, whatever it says (HTML, "prescan a byte stream").
        known = "utf-8" if known and known.startswith("utf-16") and found != charset else known
        if known is not None:
            try:
                return bytes_to_str(html, known, errors="replace", fallback_encodings=())
            except LookupError:  # a charset of the HTML standard that Python lacks
                continue
    return html.decode("utf-8", "replace")


def join(base: str, reference: str) -> str | None:
    """The URL that a reference on a page means, without fragment; None where there is none."""
    reference = reference.strip(_AROUND).translate(_NO_LINE_BREAKS)
    head, sign, query = reference.partition("?")
    if not head[:11].lower().startswith(("data:", "javascript:")):
        reference = head.replace("\\", "/") + sign + query
    try:
        return urldefrag(urljoin(base, reference)).url if reference else None
    except ValueError:  # brackets that hold no IPv6 address
        return reference


# ---- one image


def _reference(image: ElementNode, base: str, captions: Mapping[ElementNode, ElementNode]) -> Reference:
    text_from, caption = "alt", image.getattr("alt")
    if not caption or not caption.strip():
        figure = _above(image, "figure") if captions else None
        described = captions.get(figure) if figure is not None else None
        if described is not None:
            text_from, caption = "figcaption", " ".join((described.text or "")[:_MAX_TEXT].split())
    if not caption or not caption.strip():
        text_from, caption = "title", image.getattr("title")
    if not caption or not caption.strip():
        text_from, caption = "none", None
    return Reference(_url(image, base), caption[:_MAX_TEXT] if caption else None, text_from)


def _above(element: ElementNode, tag: str) -> ElementNode | None:
    """The nearest element around this one that has the tag, or None within MAX_CLIMB levels."""
    above = element.parent_element
    for _ in range(MAX_CLIMB):
        if above is None or above.tag == tag:
            return above
        above = above.parent_element
    return None


def _url(image: ElementNode, base: str) -> str | None:
    """The first of the URLs that an image has which is not the picture itself; that one where there is no other."""
    placeholder = None
    for written in _written(image):
        if written and (url := join(base, written[: 2 * _MAX_TEXT])):
            if url[:5].lower() != "data:":
                return url
            placeholder = placeholder or url
    return placeholder


def _written(image: ElementNode) -> Iterator[str | None]:
    """The URLs of an image as they are written, best first."""
    for name in ("srcset", *_LAZY_SRCSETS):
        yield _largest(image.getattr(name))
    for name in (*_LAZY_SOURCES, "src"):
        yield image.getattr(name)
    if (picture := _above(image, "picture")) is not None:
        source = picture.first_element_child
        for _ in range(_MAX_SOURCES):
            if source is None:
                return
            if source.tag == "source":
                for name in ("srcset", *_LAZY_SRCSETS):
                    yield _largest(source.getattr(name))
            source = source.next_element_sibling


def _largest(srcset: str | None) -> str | None:
    """The candidate of a srcset (HTML, "parse a srcset attribute") with the largest descriptor; the first among equals."""
    best: tuple[float, str] | None = None
    text = (srcset or "")[: 2 * _MAX_TEXT]
    place = 0
    for _ in range(_MAX_SRCSET):
        start = place
        while start < len(text) and (text[start].isspace() or text[start] == ","):
            start += 1
        place = start
        while place < len(text) and not text[place].isspace():
            place += 1
        url, size = text[start:place], 1.0
        if not url:
            break
        if url.endswith(","):
            url = url.rstrip(",")
        else:
            end = text.find(",", place)
            end = len(text) if end < 0 else end
            found = _DESCRIPTOR.fullmatch(text[place:end].strip())
            size = float(found[1]) if found else 1.0
            place = end
        if url and (best is None or size > best[0]):
            best = (size, url)
    return best[1] if best else None

"""One web page → the image references on it, each with its URL and the text that describes it.

Which text is the caption: the `alt` of the `<img>`, else the `<figcaption>` of the `<figure>` around it as it is shown (without scripts and
styles, blocks apart), else its `title`. An empty alt, which marks decoration, counts as none. The rule gives one row a reference; the
same pair twice on a page is the business of `exact`.

Which URL, in this order, the first that can be fetched (`data:` URIs are placeholders): the largest candidate of a lazy loader's `srcset`,
then of the element's own; a lazy loader's attribute that looks like a URL (there `src` is the placeholder); `src`; the largest candidate of
the `<source>` elements of the `<picture>` around it, whose formats are newer. It is joined to the page's first `<base href>` and URL as
browsers do it: white space around it, tabs and line breaks inside it and its fragment vanish, backslashes are slashes. `<noscript>` is
read like the page around it, so that the fallback of a lazy picture counts. Elements in templates do not.

The charset: a byte order mark, else the HTTP header's, else a meta element's in the first kilobytes, outside of comments and scripts, else
a guess (resiliparse).
HTML is parsed by resiliparse (lexbor, the WHATWG algorithm), whose own data structures bear a million nested elements; we never climb more
than MAX_CLIMB levels. What images take from an element around them is made once, and over-long texts are cut (`urls.cut`): a base or a
caption that stands in every reference of a page must not multiply it. What a parser may cost that keeps the standard's rules has no such
bounds: `page_process` runs `read` under limits, in a process for which this module imports little.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import urldefrag, urljoin, urlsplit

from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree
from resiliparse.parse.html.exception import HTMLParserException
from resiliparse.parse.html.node import TEXT, ElementNode, Node

from pipeline.content import opt_out
from pipeline.sources.urls import cut

if TYPE_CHECKING:
    from pipeline.sources.files import SourcesConfig

MAX_CLIMB = 8
"""Elements between an image and its `<figure>` or `<picture>`, at most."""
_MAX_NODES = 500  # of a figcaption that are looked at
_MAX_RAW = 200_000  # characters of a figcaption, white space and all, that are looked at
_MAX_SRCSET = 40_000  # characters of one attribute that are looked at
_MAX_CANDIDATES = 200  # of one srcset that are looked at
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
_NOT_FETCHED = ("data:", "about:", "blob:", "javascript:")
_SPACE = " \t\n\f\r"
_BEFORE_CANDIDATE = re.compile(rf"[{_SPACE},]*")
_CANDIDATE_URL = re.compile(rf"[^{_SPACE}]*")
_DESCRIPTORS = re.compile(r"(?:[^,(]+|\([^)]*+\)?)*+")  # up to a comma outside of parentheses
_SIZE = re.compile(
    r"(?:(?P<w>[0-9]+)w(?: [0-9]+h)?|[0-9]+h (?P<hw>[0-9]+)w|(?P<x>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)x)?"
)
_PRESCAN = 16 << 10  # bytes of a page in which its meta elements may name the charset; the standard's 1,024 are too few
_TAG = re.compile(rb"<(?:!--|[!?]|(/?[A-Za-z][^\s/>]*+))")
_ATTRIBUTE = re.compile(
    rb"[\s/]*+(=?[^\s/>=]*+)(?:\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|(?![\"'])([^\s>]*+)))?", re.DOTALL
)
_RAW_END = {name: re.compile(rb"</" + name, re.IGNORECASE) for name in (b"script", b"style")}
_IN_CONTENT = re.compile(rb"charset\s*=\s*(?:\"([^\"]*+)\"|'([^']*+)'|([^\s;\"']++))", re.IGNORECASE)
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_NO_LINE_BREAKS = str.maketrans("", "", "\t\n\r")
_AROUND = "".join(map(chr, range(0x21)))  # C0 controls and space
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_NO_HOST = re.compile(r"[\x00-\x20<>^|]")  # in no host (URL Standard); what else is forbidden ends it or stops urlsplit
_NOT_SHOWN = frozenset(("script", "style", "template", "noscript"))
_BLOCKS = frozenset(
    ("address", "article", "aside", "blockquote", "br", "dd", "div", "dl", "dt", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header",
     "hr", "li", "main", "nav", "ol", "p", "pre", "section", "table", "td", "th", "tr", "ul")
)  # fmt: skip


class Limits(NamedTuple):
    """What of SourcesConfig is about pages; see there."""

    max_url_bytes: int
    max_caption_bytes: int
    max_images_per_page: int
    opt_out_agents: Collection[str]

    @classmethod
    def of(cls, config: "SourcesConfig") -> Self:
        return cls(config.max_url_bytes, config.max_caption_bytes, config.max_images_per_page, config.opt_out_agents)


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


def read(html: bytes, url: str, charset: str | None, limits: Limits) -> Page:
    """The image references of a page that came from `url`; `charset` is what its HTTP header says.

    At most `max_images_per_page` of them, with URLs and captions that are cut after `max_url_bytes` and `max_caption_bytes` characters.
    Raises MemoryError where the parser gives up: no text is wrong by the standard, so that is the only cause.
    """
    try:
        document = HTMLTree.parse(decode(html, charset)).document
    except HTMLParserException:
        raise MemoryError from None
    if document is None:
        return Page([], 0, None)

    # `values` walks the document once; a collection that is indexed or iterated walks it again for every element.
    def all_of(tag: str) -> list[ElementNode]:
        return document.get_elements_by_tag_name(tag).values()

    agents = limits.opt_out_agents
    metas = ((meta.getattr("name") or "", meta.getattr("content") or "") for meta in all_of("meta"))
    asked = next((found for name, content in metas if (found := opt_out.in_meta(name, content, agents))), None)
    href = next((found for base in all_of("base") if (found := base.getattr("href")) is not None), None)
    base = base_url(url, href or "", limits.max_url_bytes)
    around = _Around(all_of("figcaption"), limits.max_caption_bytes)
    images = all_of("img")
    most = limits.max_images_per_page
    references = [_reference(image, base, around, limits) for image in images[:most]]
    return Page(references, max(0, len(images) - most), asked)


def decode(html: bytes, charset: str | None) -> str:
    """The page's text. Bytes that its charset does not have become U+FFFD."""
    for mark, name in _BOMS:
        if html.startswith(mark):
            return html[len(mark) :].decode(name, "replace")
    for found in _charsets(html, charset):
        known = map_encoding_to_html5(found, fallback_utf8=False) if found else None
        # A page whose markup can be searched byte by byte is not UTF-16, whatever it says (HTML, "prescan a byte stream").
        known = "utf-8" if known and known.startswith("utf-16") and found != charset else known
        if known is not None:
            try:
                return bytes_to_str(html, known, errors="replace", fallback_encodings=())
            except LookupError:  # a charset of the HTML standard that Python lacks
                continue
    return html.decode("utf-8", "replace")


def _charsets(html: bytes, charset: str | None) -> Iterator[str | None]:
    """What may be the page's charset, most trusted first; each is looked for only where those before it do not serve."""
    yield charset
    yield _declared(html[:_PRESCAN])
    yield detect_encoding(html)


def _declared(start: bytes) -> str | None:
    """The first known charset that a meta element in the first bytes of a page names (HTML, "prescan a byte stream"): in its `charset`, or
    in its `content` where `http-equiv` says that this is a content type. Scripts and styles are passed over, unlike in the standard."""
    place = 0
    while (tag := _TAG.search(start, place)) is not None:
        place = tag.end()
        if tag[1] is None:
            mark = b"-->" if tag[0] == b"<!--" else b">"
            place = start.find(mark, tag.start() + 2)  # `<!-->` is a whole comment
            if place < 0:
                return None
            continue
        attributes: dict[bytes, bytes] = {}
        while (found := _ATTRIBUTE.match(start, place)) is not None and found[1]:
            place = found.end()
            attributes.setdefault(found[1].lower(), found[2] or found[3] or found[4] or b"")
        name = tag[1].lower()
        if name in _RAW_END:
            end = _RAW_END[name].search(start, place)
            if end is None:
                return None
            place = end.start()
        elif name == b"meta":
            said = attributes.get(b"charset")
            if said is None and attributes.get(b"http-equiv", b"").lower() == b"content-type":
                inside = _IN_CONTENT.search(attributes.get(b"content", b""))
                said = None if inside is None else inside[1] or inside[2] or inside[3]
            label = (said or b"").decode("latin-1").strip()
            if label and map_encoding_to_html5(label, fallback_utf8=False) is not None:
                return label
    return None


# ---- URLs


def base_url(url: str, href: str, most: int) -> str:
    """What references on a page are joined to: its base element's `href` where that is usable, else its own URL (HTML, "set the frozen base
    URL")."""
    found = join_bounded(url, href, most) or url
    try:
        parts = urlsplit(found)
        host, _ = parts.hostname, parts.port  # a port that is none raises
    except ValueError:
        return url
    without_host = parts.scheme in ("http", "https") and (not host or _NO_HOST.search(host) is not None)
    return url if without_host or parts.scheme in ("data", "javascript") else found


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


def join_bounded(base: str, reference: str, most: int) -> str | None:
    """`join`, for references and bases of any length: one of more than `most` characters comes out cut, and so does what would be joined to
    such a base."""
    reference = reference.strip(_AROUND)
    if len(reference) > most:
        return cut(reference, most)
    if len(base) > most and not _ABSOLUTE.match(reference):
        return cut(base, most)
    return join(base, reference)


# ---- one image


class _Around:
    """What images take from the elements around them, made once for each of those, however many images they hold."""

    def __init__(self, captions: Iterable[ElementNode], most: int) -> None:
        """`captions` are the page's figcaptions, of which `most` characters are taken."""
        self._most = most
        self._captions: dict[ElementNode, ElementNode] = {}
        for caption in captions:
            if (figure := _above(caption, "figure")) is not None:
                self._captions.setdefault(figure, caption)
        self._texts: dict[ElementNode, str] = {}
        self._sources: dict[ElementNode, list[str]] = {}

    def caption(self, image: ElementNode) -> str | None:
        """The caption of the figure around the image."""
        figure = _above(image, "figure") if self._captions else None
        if figure is None or figure not in self._captions:
            return None
        if figure not in self._texts:
            self._texts[figure] = cut(_shown(self._captions[figure]), self._most)
        return self._texts[figure]

    def sources(self, image: ElementNode) -> list[str]:
        """The largest candidates of each source of the picture around the image."""
        picture = _above(image, "picture")
        if picture is None:
            return []
        if picture not in self._sources:
            self._sources[picture] = [
                found
                for source in _children(picture, _MAX_SOURCES)
                if source.tag == "source"
                for found in _candidates(source)
            ]
        return self._sources[picture]


def _reference(image: ElementNode, base: str, around: _Around, limits: Limits) -> Reference:
    text_from, caption = "alt", image.getattr("alt")
    if not caption or not caption.strip():
        text_from, caption = "figcaption", around.caption(image)
    if not caption or not caption.strip():
        text_from, caption = "title", image.getattr("title")
    if not caption or not caption.strip():
        text_from, caption = "none", None
    caption = None if caption is None else cut(caption, limits.max_caption_bytes)
    return Reference(_url(image, base, around, limits.max_url_bytes), caption, text_from)


def _above(element: ElementNode, tag: str) -> ElementNode | None:
    """The nearest element around this one that has the tag, or None within MAX_CLIMB levels."""
    above = element.parent_element
    for _ in range(MAX_CLIMB):
        if above is None or above.tag == tag:
            return above
        above = above.parent_element
    return None


def _children(element: ElementNode, most: int) -> Iterator[ElementNode]:
    child = element.first_element_child
    for _ in range(most):
        if child is None:
            return
        yield child
        child = child.next_element_sibling


def _shown(element: ElementNode) -> str:
    """The text of an element's first nodes that a browser shows, words of different blocks apart, white space as one space."""
    parts: list[str] = []
    held = 0
    node: Node | None = element.first_child
    for _ in range(_MAX_NODES):
        if node is None or held > _MAX_RAW:
            break
        if node.type == TEXT:
            parts.append((node.value or "")[:_MAX_RAW])
            held += len(parts[-1])
        elif node.tag in _BLOCKS:
            parts.append(" ")
        following = node.first_child if node.tag not in _NOT_SHOWN else None
        while following is None and node is not None and node != element:
            if node.tag in _BLOCKS:
                parts.append(" ")
            following, node = node.next_sibling, node.parent
        node = following
    return " ".join("".join(parts).split())


def _url(image: ElementNode, base: str, around: _Around, most: int) -> str | None:
    """The first of the URLs that an image has which can be fetched; the first where none can."""
    placeholder = None
    for written in _written(image, around):
        if written and (url := join_bounded(base, written, most)):
            if not url[:11].lower().startswith(_NOT_FETCHED):
                return url
            placeholder = placeholder or url
    return placeholder


def _written(image: ElementNode, around: _Around) -> Iterator[str | None]:
    """The URLs of an image as they are written, best first."""
    yield from _candidates(image)
    for name in _LAZY_SOURCES:
        value = image.getattr(name) or ""
        if ("." in value or "/" in value) and not _is_template(value):  # unlike data-lazy="true"
            yield value
    yield image.getattr("src")
    yield from around.sources(image)


def _candidates(element: ElementNode) -> Iterator[str]:
    """The largest candidates of an element's srcsets, those of lazy loaders first, which replace the other."""
    for name in (*_LAZY_SRCSETS, "srcset"):
        value = element.getattr(name)
        if value and not (name != "srcset" and _is_template(value)) and (found := _largest(value)) is not None:
            yield found


def _is_template(value: str) -> bool:
    """Whether a lazy loader's value is still to be filled in by a script ("photo_{width}x.jpg"), or is JSON or markup for one."""
    return "{" in value or "<" in value


def _largest(srcset: str) -> str | None:
    """The candidate of a srcset (HTML, "parse a srcset attribute") with the largest width or density; the first among equals. One whose
    descriptors the standard does not know is none."""
    best: tuple[float, str] | None = None
    text = srcset[:_MAX_SRCSET]
    place = 0
    for _ in range(_MAX_CANDIDATES):
        start = _end(_BEFORE_CANDIDATE, text, place)
        place = _end(_CANDIDATE_URL, text, start)
        url, descriptors = text[start:place], ""
        if url.endswith(","):
            url = url.rstrip(",")
        else:
            end = _end(_DESCRIPTORS, text, place)
            descriptors, place = text[place:end], end
        if not url or (place == len(text) < len(srcset)):  # the last one of a text that was cut may be cut too
            break
        size = _size(descriptors)
        if size is not None and (best is None or size > best[0]):
            best = (size, url)
    return best[1] if best else None


def _size(descriptors: str) -> float | None:
    """Width or density of a candidate, 1 where neither is given; None for what is no descriptor."""
    found = _SIZE.fullmatch(" ".join(descriptors.split()))
    if found is None:
        return None
    width = found["w"] or found["hw"]
    return float(width or found["x"] or 1) if width is None or width.strip("0") else None


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    """Where what matches from `place` on ends; the patterns match nothing as well."""
    found = pattern.match(text, place)
    return place if found is None else found.end()

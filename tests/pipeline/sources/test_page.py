"""Image references of web pages: planted answers for each rule, and pages made to hurt."""

import html.parser
import time
from collections.abc import Sequence

import pytest

from pipeline.sources import page
from pipeline.sources.files import SourcesConfig
from pipeline.sources.page import Limits, Reference, decode, join, read

_URL = "http://e.org/dir/page.html"


def _read(text: str, most: int = 1000, agents: Sequence[str] = (), **values: int) -> page.Page:
    config = SourcesConfig.model_validate(
        {"paths": ["x"], "max_images_per_page": most, "opt_out_agents": agents, **values}
    )
    return read(text.encode(), _URL, "utf-8", Limits.of(config))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<img src=a.jpg alt='a dog'>", ("http://e.org/dir/a.jpg", "a dog", "alt")),
        ("<IMG SRC='/a.jpg' ALT='x &amp; y&#33;'>", ("http://e.org/a.jpg", "x & y!", "alt")),
        ("<img src=//cdn.org/a.jpg title=t>", ("http://cdn.org/a.jpg", "t", "title")),
        ("<img src=a.jpg alt='' title='a title'>", ("http://e.org/dir/a.jpg", "a title", "title")),
        ("<img src=a.jpg alt=' \n' title=''>", ("http://e.org/dir/a.jpg", None, "none")),
        ("<img alt='no source'>", (None, "no source", "alt")),
        (
            "<figure><a><img src=a.jpg title=t></a><figcaption>A <b>bold</b>\n caption</figcaption></figure>",
            ("http://e.org/dir/a.jpg", "A bold caption", "figcaption"),
        ),
        (
            "<figure><img src=a.jpg><figcaption>A<script>track()</script> dog<style>b{}</style>, <b>bo</b>ld<br>and<p>old</p>"
            "<p>by <i>me</i></p><!-- not this --></figcaption></figure>",
            ("http://e.org/dir/a.jpg", "A dog, bold and old by me", "figcaption"),
        ),
        ("<figure><img src=a.jpg alt=alt><figcaption>c</figcaption></figure>", ("http://e.org/dir/a.jpg", "alt", "alt")),
        ("<img src=s.jpg srcset='a.jpg 1x, b.jpg 2x' alt=d>", ("http://e.org/dir/b.jpg", "d", "alt")),
        ("<img srcset='a.jpg 320w, b,c.jpg 1280w,d.jpg 640w' alt=d>", ("http://e.org/dir/b,c.jpg", "d", "alt")),
        ("<img srcset='a.jpg, b.jpg 0.5x' alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img srcset='a.jpg nonsense, b.jpg 1.5x' alt=d>", ("http://e.org/dir/b.jpg", "d", "alt")),
        ("<img srcset=' , ' src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img srcset='a.jpg 300w 50h, b.jpg 200w' alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img srcset='b.jpg 200w, a.jpg 50h 300w' alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img srcset='b.jpg (x, 9w) 900w, a.jpg 2w' alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img srcset='b.jpg 2x 3x, c.jpg 0w, d.jpg -9x, e.jpg 9h, f.jpg 9W' src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img srcset='b.jpg 1.5x, a.jpg .2e1x' alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        (f"<img srcset='a.jpg 2w, {'b' * 50_000} 9w' alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img src=blank.gif data-src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img src=data:image/gif;base64,R0 data-original=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img src=blank.gif data-lazy-src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img src=a.jpg data-lazy=true data-lazyload=1 alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img src=a_300x.jpg data-src='//e.org/a_{width}x.jpg' alt=d>", ("http://e.org/dir/a_300x.jpg", "d", "alt")),
        ("<img src=a.jpg data-src='' data-original='{\"large\": \"b.jpg\"}' alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<picture><source srcset=a.webp><img src=about:blank alt=d></picture>", ("http://e.org/dir/a.webp", "d", "alt")),
        ("<img src=blank.gif data-srcset='a.jpg 1w, b.jpg 2w' alt=d>", ("http://e.org/dir/b.jpg", "d", "alt")),
        ("<img srcset=blank.gif data-srcset='a.jpg 2x' alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img src=a.jpg data-srcset='b_{width}x.jpg 1x' alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<img srcset='data:image/gif;base64,R0 1w' src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        (
            "<picture><source srcset='a.webp 1x, b.webp 2x'><img src=a.jpg alt=d></picture>",
            ("http://e.org/dir/a.jpg", "d", "alt"),
        ),
        (
            "<picture><source srcset='a.webp 1x, b.webp 2x'><img src='data:image/gif;base64,R0' alt=d></picture>",
            ("http://e.org/dir/b.webp", "d", "alt"),
        ),
        ("<picture><source data-srcset='b.webp 2x'><img alt=d></picture>", ("http://e.org/dir/b.webp", "d", "alt")),
        ("<base href='/x/'><base href='/y/'><img src=a.jpg alt=d>", ("http://e.org/x/a.jpg", "d", "alt")),
        ("<base href='https://cdn.org'><img src=a.jpg alt=d>", ("https://cdn.org/a.jpg", "d", "alt")),
        # HTML, "set the frozen base URL": the first href counts or none does, and what cannot be a base leaves the page's own URL.
        ("<base href='javascript:void(0)'><base href='/y/'><img src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<base href=' DATA:text/html,x'><img src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<base href='http://[::1/'><img src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<base href='http://'><img src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<base href='http://e.org:99999/'><img src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<base href='http:// www.e.org/'><img src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<base href=''><img src=a.jpg alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        ("<base target=_top><base href='/x/'><img src=a.jpg alt=d>", ("http://e.org/x/a.jpg", "d", "alt")),
        ("<img src=' \ta\n.jpg#part ' alt=d>", ("http://e.org/dir/a.jpg", "d", "alt")),
        (r"<img src='\img\a.jpg?q=\x' alt=d>", (r"http://e.org/img/a.jpg?q=\x", "d", "alt")),
        ("<img src='../../../a.jpg' alt=d>", ("http://e.org/a.jpg", "d", "alt")),
        ("<img src='?id=7' alt=d>", ("http://e.org/dir/page.html?id=7", "d", "alt")),
        ("<img src='http://[::1' alt=d>", ("http://[::1", "d", "alt")),
        ("<img src='data:image/png;base64,AA==' alt=d>", ("data:image/png;base64,AA==", "d", "alt")),
        ("<noscript><img src=a.jpg alt=fallback></noscript>", ("http://e.org/dir/a.jpg", "fallback", "alt")),
        ("<head><noscript><img src=a.jpg alt=d></noscript></head>", ("http://e.org/dir/a.jpg", "d", "alt")),
    ],
)  # fmt: skip
def test_one_reference(text: str, expected: tuple[str | None, str | None, str]) -> None:
    assert _read(text).references == [Reference(*expected)]


def test_what_is_no_reference() -> None:
    text = "<template><img src=t.png alt=x></template><svg><image href=s.png></svg><!-- <img src=c.png> --><input type=image src=i>"
    assert _read(text + "<script>'<img src=j.png>'</script><iframe><img src=f.png></iframe>").references == []
    assert _read("").references == []


def test_references_are_in_document_order_and_bounded() -> None:
    text = "".join(f"<p><img src={number}.jpg alt={number}></p>" for number in range(50))
    found = _read(text, most=20)
    assert [reference.caption for reference in found.references] == [str(number) for number in range(20)]
    assert found.left == 30


@pytest.mark.parametrize(
    ("charset", "encoding", "head"),
    [
        ("utf-8", "utf-8", ""),
        ("ISO-8859-1", "latin-1", ""),
        (None, "cp1251", "<meta charset=windows-1251>"),
        (None, "shift_jis", '<meta http-equiv="Content-Type" content="text/html; charset=Shift_JIS">'),
        ("nonsense", "gb18030", "<meta charset='gb2312'>"),
        ("latin-1", "utf-8-sig", "<meta charset=koi8-r>"),
        ("utf-8", "utf-16", ""),
        (None, "utf-8", "<meta charset=utf-16>"),
        (None, "utf-8", ""),
        (None, "euc_jp", ""),
    ],
)
def test_charset(charset: str | None, encoding: str, head: str) -> None:
    texts = {
        "latin-1": "Straße in Göteborg",
        "cp1251": "Двое детей в саду",
        "shift_jis": "庭で遊ぶ二人の子供",
        "gb18030": "两个孩子在花园里玩球",
    }
    words = texts.get(encoding, "木のテーブルの上の新鮮な果物、夕暮れの川沿いの古い城")
    text = f"<html>{head}<body><p>{words}</p><p>{words}</p><img src=a.jpg alt='{words}'>"
    (found,) = read(text.encode(encoding), _URL, charset, Limits.of(SourcesConfig(paths=["x"]))).references
    assert found.caption == words


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ("<meta charset=koi8-r>", True),
        ("<META data-x='>' CHARSET = ' KOI8-R ' >", True),
        ("<meta/charset=koi8-r/>", False),  # the value is "koi8-r/"
        ("<meta/charset='koi8-r'/>", True),
        ("<meta content='text/html; charset=koi8-r' http-equiv=Content-Type>", True),
        ("<meta http-equiv=content-type content='text/html; charset = \"koi8-r\"'>", True),
        ("<!-- a > b <meta charset=utf-8> --><meta charset=koi8-r>", True),
        ("<!--><meta charset=koi8-r>", True),
        ("<script>document.write('<meta charset=utf-8>')</script><style>/*<meta charset=utf-8>*/</STYLE ><meta charset=koi8-r>", True),
        ("<meta charset=nonsense><meta charset=koi8-r>", True),
        ("<!doctype html><?xml encoding='utf-8'?><title>t</title><meta charset=koi8-r><meta charset=utf-8>", True),
        ("<!-- <meta charset=koi8-r> -->", False),
        ("<!-- never closed <meta charset=koi8-r>", False),
        ("<script>'<meta charset=koi8-r>'</script>", False),
        ("<a title='<meta charset=koi8-r>'>", False),
        ("<meta name=description content='how to set charset=koi8-r'>", False),
        ("<meta name=description content='text/html; charset=koi8-r'>", False),
        ("<meta property=charset content=koi8-r>", False),
        ("<metacharset=koi8-r>", False),
        ("<meta charset='koi8-r", False),
    ],
)  # fmt: skip
def test_a_charset_is_a_meta_elements_own(head: str, named: bool) -> None:
    """Bytes that UTF-8 and KOI8-R read differently, and that are UTF-8 for any guess."""
    words = "Двое детей играют в саду"
    assert (words in decode(f"{head}<p>{words * 20}".encode(), None)) is not named


def test_bytes_that_the_charset_lacks_are_replaced_and_nothing_raises() -> None:
    assert "\ufffd" in decode(b"caf\xe9 <p>", "utf-8")
    for name in ("x-user-defined", "iso-8859-8-i", "utf-7", "\x00", "hz-gb-2312", "replacement"):
        assert "<p>" in decode(b"<p>\xff\xfe\xe9", name)


@pytest.mark.parametrize(
    "text",
    [
        "<div>" * 300_000 + "<img src=a.jpg alt=d>",
        "<b>" * 20_000 + "<img src=a.jpg alt=d>" * 50,
        "<table>" * 5_000 + "<img src=a.jpg alt=d>" * 50,
        "<figure>" * 5_000 + "<img src=a.jpg alt=d>" * 50,
        "<img src=a.jpg alt=d srcset='" + "a," * 500_000 + "'>",
        "<picture>" + "<source srcset='a 1x'>" * 50_000 + "<img src=data:, alt=d>" * 50,
        "<figure><figcaption><img src=a.jpg>" * 1000 + "word " * 200_000,
        "<p>text <a href=x>link</a>" * 100_000 + "<img src=a.jpg alt=d>" * 1000,
        "<img src=a.jpg alt=d>" * 150_000,
        "<figure><figcaption>" + "word " * 500_000 + "</figcaption>" + "<img src=a.jpg>" * 50,
        "<img alt='" + "d" * 3_000_000 + "' src=a.jpg>",
        "<img src='" + "../" * 1_000_000 + "a.jpg' alt=d>",
        "<meta charset" + " " * 1_000_000 + "<img src=a.jpg alt=d>",
        "<meta charset=" + "'<meta a=" * 400_000,
        "<meta charset" + "/ = " * 700_000,
        "<!--" + "<meta charset" * 200_000,
        f"<base href='http://e.org/{'a' * 2_000_000}/'>" + "<img src=a.jpg alt=d>" * 1000,
        f"<base href='{'a/' * 1_000_000}'>" + "<img src=a.jpg alt=d>" * 1000,
        "<figure><img src=a.jpg><figcaption>" * 1000 + "word " * 700_000,
        "<figure><img src=a.jpg><figcaption>" * 1000 + "<b>" * 800_000,
        "<figure>" + "<img src=a.jpg>" * 1000 + "<figcaption>" + "a<br>" * 700_000,
        "<picture>" + f"<source srcset='{'a 1x,' * 200}'>" * 50 + "<img src=data:, alt=d>" * 1000,
        "<img src=a.jpg alt=d data-src='" + "." * 3_000_000 + "{'>",
    ],
)  # fmt: skip
def test_pages_made_to_hurt_are_read(text: str) -> None:
    """Bounded in time, which is ten times what the slowest takes on one idle core, and in what it gives."""
    before = time.process_time()
    found = _read(text)
    assert time.process_time() - before < 15
    assert all(len(reference.caption or "") <= 20_000 for reference in found.references)
    assert all(len(reference.url or "") <= 4097 for reference in found.references)


def test_over_long_texts_are_cut_and_still_too_long() -> None:
    """What is cut must not become a URL or a caption that is accepted."""
    long = "http://e.org/" + "a" * 30
    text = (
        f"<base href='{long}/'><figure><figcaption>{'c' * 40}</figcaption><img src=a.jpg><img src=//cdn.org/b.jpg>"
        f"<img src=http://cdn.org/c.jpg alt={'d' * 40}><img src='  {long} {'.' * 50}'><img src='{'../' * 20}a.jpg'></figure>"
    )
    found = _read(text, max_url_bytes=30, max_caption_bytes=32).references
    assert [reference.url for reference in found] == [
        f"{long[:30]}…",
        f"{long[:30]}…",
        "http://cdn.org/c.jpg",
        f"{long[:30]}…",
        f"{'../' * 10}…",
    ]
    assert [reference.caption for reference in found] == ["c" * 32 + "…"] * 2 + ["d" * 32 + "…"] + ["c" * 32 + "…"] * 2


def test_a_real_page_has_the_references_that_another_parser_finds() -> None:
    """The standard library's parser knows no tree, but it sees every start tag."""

    class _Images(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[tuple[str | None, str | None]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "img":
                self.found.append((dict(attrs).get("src"), dict(attrs).get("alt")))

    text = "".join(
        f"<div class=c{n}><a href=x><img alt='picture {n} &lt;' src='{n}.jpg'></a>text &copy;<br>" for n in range(500)
    )
    twin = _Images()
    twin.feed(text)
    assert [(r.url, r.caption) for r in _read(text).references] == [
        (join(_URL, src or ""), alt) for src, alt in twin.found
    ]


def test_opt_out_of_a_page() -> None:
    page_with = "<meta name=robots content=index><meta name=Robots content='noimageai'><img src=a.jpg alt=d>"
    assert _read(page_with).opt_out == "noimageai"
    assert _read("<meta name=ourbot content=noml><img src=a.jpg alt=d>", agents=["ourbot"]).opt_out == "noml"
    assert _read("<meta name=ourbot content=noml><img src=a.jpg alt=d>").opt_out is None

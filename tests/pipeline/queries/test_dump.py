"""Pages of a dump. Truth is the list they were written from, and for the genuine dump its README and ElementTree."""

import bz2
import tracemalloc
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import boto3
import pytest

from pipeline.contracts.errors import InputError
from pipeline.queries.dump import Page, _raw_pages, read_pages, read_site
from pipeline.queries.pieces import Piece
from tests.pipeline.queries.making import FOOTER, HEADER, dump, page, real_data, streams

NAMESPACES = frozenset({"special", "talk", "category"})
MANY = [page(f"Title {number}", f"Text & <tags> {number} " * (number % 40)) for number in range(200)]
ALL = 1 << 40


def read(path: Path, *, step: int = ALL, limit: int = 1 << 20) -> list[Page]:
    starts = range(0, path.stat().st_size, step)
    return [found for start in starts for found in read_pages(str(path), start, start + step, NAMESPACES, limit)]


def written(tmp_path: Path, data: bytes, name: str = "dump.xml") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("step", [97, 1000, 4096, 33_333, ALL])
def test_every_page_belongs_to_one_range_whatever_the_compression(step: int, tmp_path: Path) -> None:
    data = dump(*MANY)
    truth = [Page("article", f"Title {number}", f"Text & <tags> {number} " * (number % 40)) for number in range(200)]
    assert read(written(tmp_path, data), step=step) == truth
    assert read(written(tmp_path, bz2.compress(data), "one.bz2"), step=step) == truth
    assert read(written(tmp_path, streams(data, 5), "many.bz2"), step=step) == truth


def test_what_is_no_article_is_named(tmp_path: Path) -> None:
    pages = [
        page("Dog", "A dog."),
        page("Hound", "#REDIRECT [[Dog]]", redirect="Dog"),
        page("Old hound", "#redirect [[Dog#Hounds|x]]"),
        page("Talk:Dog", "No.", ns=1),
        page("Category:Dogs", "No.", ns=None),
        page("Star Trek: Picard", "A series.", ns=None, model=None),
        page("Data", "{}", model="json"),
        page("Big", "x" * 5000),
        "<page><title>Broken</title><ns>0</ns><revision><text>a & b</text></revision></page>",
        "<page><ns>0</ns><revision><text>no title</text></revision></page>",
    ]
    found = read(written(tmp_path, dump(*pages)), limit=4000)
    assert [(one.kind, one.title, one.target) for one in found] == [
        ("article", "Dog", ""),
        ("redirect", "Hound", "Dog"),
        ("redirect", "Old hound", "Dog"),
        ("other_namespace", "Talk:Dog", ""),
        ("other_namespace", "Category:Dogs", ""),
        ("article", "Star Trek: Picard", ""),
        ("other_model", "Data", ""),
        ("too_large", "Big", ""),
        ("broken", "Broken", ""),
        ("broken", "", ""),
    ]


def test_of_several_revisions_the_last_one_is_read(tmp_path: Path) -> None:
    two = "<page><title>A</title><ns>0</ns><revision><text>old</text></revision><revision><text>new</text></revision></page>"
    assert read(written(tmp_path, dump(two))) == [Page("article", "A", "new")]


def test_a_page_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    """40 MB of one page, held at most a few pieces of it."""
    path = written(tmp_path, (HEADER + "<page><title>Endless</title><revision><text>").encode() + b"x" * (40 << 20))
    with path.open("ab") as sink:
        sink.write(("</text></revision></page>" + page("Next", "text") + FOOTER).encode())
    tracemalloc.start()
    found = read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(one.kind, one.title) for one in found] == [("too_large", "Endless"), ("article", "Next")]
    assert peak < 12 << 20


@pytest.mark.timeout(30)  # with the path of each element written out a minute and more
def test_a_million_elements_inside_one_another(tmp_path: Path) -> None:
    nested = "<a>" * 10**6 + "</a>" * 10**6
    two = [
        f"<page><title>Deep</title><ns>0</ns><revision>{nested}<text>words</text></revision></page>",
        f"<page><title>Inside</title><ns>0</ns>{'<x>' * 50}<ns>9</ns>{'</x>' * 50}<revision><text>a</text></revision></page>",
    ]
    assert read(written(tmp_path, dump(*two)), limit=8 << 20) == [
        Page("article", "Deep", "words"),
        Page("article", "Inside", "a"),
    ]


@pytest.mark.timeout(30)
def test_a_block_of_nothing_but_tags_is_passed_once() -> None:
    """bzip2 makes fifty bytes of such a block. Where each page moved the rest of it, this took hours."""
    raw = list(_raw_pages("x", iter([Piece(b"<page></page>" * 600_000 + b"</mediawiki>", True)]), 1 << 20))
    assert len(raw) == 600_000
    assert set(raw) == {(b"<page></page>", True)}


BOMB = (
    '<!DOCTYPE page [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<page><title>&b;</title><ns>0</ns><revision><text>&b;</text></revision></page>"
)


def test_entities_are_not_declared_anywhere(tmp_path: Path) -> None:
    inside = BOMB.replace("<page>", "", 1).replace("<!DOCTYPE", "<page><!DOCTYPE")
    assert [one.kind for one in read(written(tmp_path, dump(inside)))] == ["broken"]
    assert [one.kind for one in read(written(tmp_path, dump(page("A", "a"), BOMB)))] == ["article", "broken"]
    with pytest.raises(InputError, match="declares a DOCTYPE"):
        read_site(str(written(tmp_path, b"<!DOCTYPE x [<!ENTITY a 'b'>]>" + dump(page("A", "a")))))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<html><page></html>", "no MediaWiki XML export"),
        (b"words and words", "no MediaWiki XML export"),
        (bz2.compress(b"\x00" * 100), "no MediaWiki XML export"),
        (b"\x1f\x8b" + bytes(20), "a gzip file cannot be read in parts"),
    ],
)
def test_no_dump(data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read_site(str(written(tmp_path, data)))


def test_a_truncated_dump_is_one_sentence(tmp_path: Path) -> None:
    data = dump(*MANY)
    for cut, says in ((len(data) // 2, "ends inside a page"), (len(data) - len(FOOTER), "ends without </mediawiki>")):
        for path in (written(tmp_path, data[:cut]), written(tmp_path, bz2.compress(data[:cut]), "dump.bz2")):
            for step in (5000, ALL):
                with pytest.raises(InputError, match=says):
                    read(path, step=step)


def test_a_dump_in_an_object_store(s3_endpoint: str) -> None:
    bucket = boto3.session.Session().resource("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="dumps")
    bucket.put_object(Key="enwiki.xml.bz2", Body=streams(dump(*MANY), 9))
    size = bucket.Object("enwiki.xml.bz2").content_length
    ranges = [(start, start + 3000) for start in range(0, size, 3000)]
    found = [
        one
        for start, stop in ranges
        for one in read_pages("s3://dumps/enwiki.xml.bz2", start, stop, NAMESPACES, 1 << 20)
    ]
    assert [one.title for one in found] == [f"Title {number}" for number in range(200)]


def test_the_genuine_dump() -> None:
    """206 pages. The README counts 106 articles and 99 redirects, of namespace 0; the one that is left is the page
    "Wikipedia:Adding Wikipedia articles to Nupedia" (namespace 4), which is a redirect too. ElementTree sees the same."""
    path = next(real_data().glob("enwiki-latest*.bz2"))
    site = read_site(str(path))
    assert len(site.namespaces) == 34
    assert "User talk" in site.namespaces
    found = list(read_pages(str(path), 0, ALL, frozenset(), 8 << 20))
    assert Counter(one.kind for one in found) == {"article": 106, "redirect": 99, "other_namespace": 1}
    assert [one.title for one in found if one.kind == "other_namespace"] == [
        "Wikipedia:Adding Wikipedia articles to Nupedia"
    ]
    xml = "{http://www.mediawiki.org/xml/export-0.10/}"
    with bz2.open(path) as source:
        tree = ElementTree.parse(source)
    truth = {
        one.findtext(f"{xml}title"): one.findtext(f"{xml}revision/{xml}text")
        for one in tree.iter(f"{xml}page")
        if one.findtext(f"{xml}ns") == "0" and one.find(f"{xml}redirect") is None
    }
    assert {one.title: one.text for one in found if one.kind == "article"} == truth

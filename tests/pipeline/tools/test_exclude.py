"""exclude without Ray: which rows a list names, however a URL is spelt, and what `out` may be.

The hosts are written out by hand: what a browser, a crawler or a person would say the URL is of.
"""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.contracts import manifest, s3
from pipeline.contracts.config import load_config
from pipeline.contracts.errors import InputError
from pipeline.tools import exclude
from pipeline.tools.exclude import ExcludeConfig
from tests.pipeline.contracts.test_manifest import rows


def named(folder: Path, kind: str, *entries: str) -> exclude.Lists:
    (folder / "list.txt").write_text("".join(f"{entry}\n" for entry in entries))
    return exclude.load_lists({kind: str(folder / "list.txt")})


def with_urls(urls: list[str | None], pages: list[str | None] | None = None) -> pa.Table:
    table = rows(len(urls))
    for name, values in (("url", urls), ("page_url", pages or [None] * len(urls))):
        table = table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
    return table


BAD = [
    "http://bad.org/x",
    "HTTP://WWW.Bad.ORG:8080/x",
    "http://user@bad.org/p",
    "http://user:p@ss@bad.org/p",
    "http://bad.org:x/",
    "http://bad.org:/",
    "http://*.bad.org/x",
    "http://b ad.bad.org/x",
    "https:\\\\bad.org/x",
    "http:\\\\a.bad.org\\x",
    "http://a..bad.org/x",
    "http://.bad.org/",
    "http://bad.org../x",
    "http://-.bad.org?q",
    "http://bad.org#top",
    "//bad.org/x",
    "bad.org/x",
    "ftp://bad.org/x",
    "http:bad.org",
    "http:/bad.org/x",
    "http:////bad.org/x",
    "http://b%61d.org/x",
    "http://bad%2eorg/x",
    "http://bad.org%2fx/",
    "http://%ff.bad.org/",
    " \thttp://bad.org/\n",
    "http://ba\td.org/",
    "http://ｂａｄ。org/",
    "http://b\u00adad.org/",
    "http://" + "a." * 2000 + "bad.org/",
    "http://" + "a" * 70000 + ".bad.org/",
    "http://" + "ä" * 70000 + ".bad.org/",
]
GOOD = [
    "http://good.org/x",
    "http://notbad.org/",
    "http://bad.org.good.org/",
    "http://good.org/bad.org",
    "http://good.org?@bad.org",
    "http://good.org#@bad.org/",
    "http://bad.org@good.org/",
    "http://good.org\\@bad.org/",
    "http://bad/org",
    "",
    "http://",
    "http:///",
    "http://[",
    "http://…/",
    "data:,bad.org",
]


@pytest.mark.parametrize("column", ["url", "page_url"])
def test_a_domain_takes_every_spelling_of_a_url_in_it(tmp_path: Path, column: str) -> None:
    urls: list[str | None] = [*BAD, *GOOD, None]
    others: list[str | None] = ["http://other.org/"] * len(urls)
    table = with_urls(urls, others) if column == "url" else with_urls(others, urls)
    found = exclude.split(table, named(tmp_path, "domains", "bad.org"))
    assert set(found.rejected["uid"].to_pylist()) == set(table["uid"].to_pylist()[: len(BAD)])
    assert set(found.rejected["detail"].to_pylist()) == {"bad.org"}
    assert found.kept[column].to_pylist() == [*GOOD, None]


@pytest.mark.parametrize(
    ("entry", "host", "is_named"),
    [
        ("bücher.de", "xn--bcher-kva.de", True),
        ("bücher.de", "BÜCHER.de", True),
        ("xn--bcher-kva.de", "bücher.de", True),
        ("xn--bcher-kva.de", "www.bu\u0308cher.de", True),
        ("straße.de", "strasse.de", True),  # as the crawl would have fetched it
        ("straße.de", "xn--strae-oqa.de", True),  # as browsers do
        ("xn--strae-oqa.de", "straße.de", True),
        ("strasse.de", "straße.de", True),
        ("strasse.de", "xn--strae-oqa.de", False),
        ("*.bad.org", "bad.org", True),
        (".bad.org.", "www.bad.org", True),
        ("www.bad.org", "bad.org", False),
        ("127.0.0.1", "0x7f.1", True),
        ("127.0.0.1", "u@2130706433:x", True),
        ("[::1]", "[0:0::1]", True),
        ("1.0.0.1", "127.1.0.0.1", True),  # no address, so a name
    ],
)
def test_a_domain_in_other_letters(tmp_path: Path, entry: str, host: str, is_named: bool) -> None:
    found = exclude.split(with_urls([f"http://{host}/x"]), named(tmp_path, "domains", entry))
    assert found.rejected.num_rows == is_named


@pytest.mark.parametrize(
    ("entry", "url", "is_named"),
    [
        ("http://e.org/A.jpg#top", "http://e.org/A.jpg", True),
        ("http://e.org/A.jpg", "http://e.org/A.jpg#top", True),
        ("HTTP://E.org:80/a.jpg", "http://e.org/a.jpg", True),
        ("http://e.org/a%20b.jpg", "http://e.org/a b.jpg", True),
        ("http://bücher.de", "http://xn--bcher-kva.de/", True),
        ("http://u@e.org/a.jpg", "http://u@e.org/a.jpg", True),
        ("http://e.org/A.jpg", "http://e.org/a.jpg", False),
        ("http://e.org/a.jpg?x", "http://e.org/a.jpg", False),
        ("http://u@e.org/a.jpg", "http://e.org/a.jpg", False),
    ],
)
def test_a_url_as_it_is_and_as_the_crawl_spells_it(tmp_path: Path, entry: str, url: str, is_named: bool) -> None:
    for table in (with_urls([url]), with_urls([None], [url])):
        assert exclude.split(table, named(tmp_path, "urls", entry)).rejected.num_rows == is_named


def test_what_several_lists_name_counts_for_the_first_and_is_found_by_each(tmp_path: Path) -> None:
    table = with_urls(["http://a.bad.org/1", "http://bad.org/2", "http://e.org/3", None])
    uids, shas = ([value.hex() for value in table[name].to_pylist()] for name in ("uid", "image_sha256"))
    (tmp_path / "ids").write_text(f"{uids[0]}\n{'ff' * 16}\n")
    (tmp_path / "urls").write_text("http://a.bad.org/1\nhttp://e.org/none\n")
    (tmp_path / "domains").write_text("bad.org\na.bad.org\nnone.org\n")
    (tmp_path / "sha256").write_text(f"{shas[1]}\n{'00' * 32}\n")
    given = {kind: str(tmp_path / kind) for kind in exclude.KINDS}
    found = exclude.split(table, exclude.load_lists(given))
    reasons = zip(found.rejected["uid"].to_pylist(), found.rejected["reason"].to_pylist(), strict=True)
    assert {uid.hex(): reason for uid, reason in reasons} == {uids[0]: "excluded_uid", uids[1]: "excluded_domain"}
    assert found.named.to_pylist() == [
        {"list": kind, "value": value}
        for kind, value in [
            ("domains", "a.bad.org"),
            ("domains", "bad.org"),
            ("ids", uids[0]),
            ("sha256", shas[1]),
            ("urls", "http://a.bad.org/1"),
        ]
    ]


# ---- where the new version may lie


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """web/shards with a corpus, web/run.json of the run that made it, ids.txt; the working directory is web."""
    manifest.write_corpus(str(tmp_path / "web/shards"), [rows(20)])
    (tmp_path / "web/run.json").write_text('{"state": "done", "config_digest": "12"}')
    (tmp_path / "ids.txt").write_text("00" * 16)
    (tmp_path / "link").symlink_to(tmp_path / "web")
    monkeypatch.chdir(tmp_path / "web")
    return tmp_path


def check(folder: Path, corpus: str, out: str) -> None:
    exclude.check(load_config(ExcludeConfig, None, [f"corpus={corpus}", f"out={out}", f"ids={folder}/ids.txt"]))


@pytest.mark.parametrize(
    "out",
    ["shards", "./shards", "shards/", "{0}/web/shards", "{0}/web//shards", "../web/shards/.", "{0}/link/shards"],
)
@pytest.mark.parametrize("at", ["shards", "{0}/web/shards/manifest.json", "{0}/link/./shards"])
def test_the_folder_of_the_corpus_is_refused_however_it_is_spelt(corpus: Path, out: str, at: str) -> None:
    with pytest.raises(InputError, match="is the folder of the corpus itself; give the new version a folder of its"):
        check(corpus, at.format(corpus), out.format(corpus))


@pytest.mark.parametrize("out", ["shards/new", "{0}/link/shards/new", ".", "{0}/web", "..", "/"])
def test_a_folder_in_that_of_the_corpus_or_around_it_is_refused(corpus: Path, out: str) -> None:
    with pytest.raises(InputError, match="lie one in the other; give the new version a folder of its own"):
        check(corpus, "shards", out.format(corpus))


def test_a_folder_that_holds_something_else_is_refused(corpus: Path) -> None:
    """Also one with another takedown: its manifest would be replaced, and what it removed be back."""
    check(corpus, "shards", "shards-2")
    check(corpus, "shards", "../new")
    manifest.write_corpus(str(corpus / "other"), [rows(3)])
    (corpus / "run").mkdir()
    (corpus / "run/run.json").write_text('{"state": "failed", "config_digest": "12"}')
    for name, held in (("other", "manifest.json"), ("run", "run.json")):
        before = {path: path.read_bytes() for path in (corpus / name).iterdir()}
        with pytest.raises(InputError, match=rf"{name}/{held}: is of another corpus, other lists or another command"):
            check(corpus, "shards", f"../{name}")
        assert {path: path.read_bytes() for path in (corpus / name).iterdir()} == before


def test_places_on_s3(s3_endpoint: str, tmp_path: Path) -> None:
    s3.client().create_bucket(Bucket="takedowns")
    manifest.write_corpus("s3://takedowns/web/shards", [rows(5)])
    (tmp_path / "ids.txt").write_text("00" * 16)
    for out in ("s3://takedowns/web/shards/", "s3://takedowns/web/./shards", "s3://takedowns/web/new/../shards"):
        with pytest.raises(InputError, match="is the folder of the corpus itself"):
            check(tmp_path, "s3://takedowns/web/shards/manifest.json", out)
    for out in ("s3://takedowns/web", "s3://takedowns", "s3://takedowns/", "s3://takedowns/web/shards/new"):
        with pytest.raises(InputError, match="lie one in the other"):
            check(tmp_path, "s3://takedowns/web/shards", out)
    check(tmp_path, "s3://takedowns/web/shards", "s3://takedowns/web/shards-2")
    check(tmp_path, "s3://takedowns/web/shards", os.fspath(tmp_path / "takedowns/web/shards"))

"""`python -m pipeline queries` on Ray: the genuine dump, the same bytes however it runs, a killed driver, and what a user gets wrong.

The tests in this process share one embedded Ray with two CPUs; the killed driver has one of its own.
"""

import bz2
import hashlib
import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from pipeline import __main__ as cli
from pipeline.content.text import normal_form
from pipeline.contracts.config import load_config
from pipeline.contracts.errors import AuditFinding, InputError
from pipeline.match import load_queries
from pipeline.queries import job
from pipeline.queries.config import QueriesConfig
from pipeline.queries.dump import read_pages, read_site
from pipeline.queries.markup import plain_lines
from tests.conftest import ROOT
from tests.pipeline.queries.making import dump, page, real_data

WRITTEN = ("queries.parquet", "queries.txt", "queries.json")


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


def queries(config: Path, out: Path, *overrides: str, check: bool = False) -> dict[str, Any]:
    """The command, in this process; the record it leaves."""
    cli.main(["queries", "--config", str(config), *(["--check"] if check else []), f"run.out={out}", *overrides])
    return {} if check else json.loads((out / "queries.json").read_text())


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / "queries.parquet").to_pylist()
    return found


# ---- a small Wikipedia, of which everything is known

ARTICLES = {
    "Dog": "The red dog runs. The red dog sleeps, the dog eats.",
    "Star Trek: Picard": "The red planet. Red dog!",
    "St. Louis": "A city; a red city.",
}
COUNTS = Counter({"red": 5, "dog": 4, "the": 4, "city": 2, "a": 2, "runs": 1, "sleeps": 1, "eats": 1, "planet": 1})
PAIRS = Counter({"the red": 3, "red dog": 3, "dog runs": 1, "dog sleeps": 1, "the dog": 1, "dog eats": 1, "red planet": 1,
                 "a city": 1, "a red": 1, "red city": 1})  # fmt: skip
VIEWS = "en St._Louis 40 0\nen Mainpage 600 0\nde Hund 900 0\n"
VIEWS += "en Dog 50 0\nen Hound 30 0\nen Star_Trek:_Picard 79 0\nen Talk:Dog 500 0\nen Dog\n"
NOUN = "02084071 05 n 02 dog 0 domestic_dog 0 001 @ 02083346 n 0000 | a member of the genus Canis  \n"
CITY = "08524735 15 n 01 big_city 0 001 @ 02083346 n 0000 | a large town  \n"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    pages = [page(title, f"{{{{Short|x}}}} '''{text}'''[[Category:X]]") for title, text in ARTICLES.items()]
    pages += [
        page("Hound", "#REDIRECT [[Dog]]", redirect="Dog"),
        page("Mainpage", "x", redirect="Main Page"),
        page("Talk:Dog", "the the the", ns=1),
    ]
    (folder / "dump.xml").write_bytes(dump(*pages))
    (folder / "dump.xml.bz2").write_bytes(bz2.compress(dump(*pages)))
    (folder / "views").write_text(VIEWS)
    (folder / "wordnet").mkdir()
    for name in ("data.verb", "data.adj", "data.adv"):
        (folder / "wordnet" / name).write_text("  1 the licence\n")
    (folder / "wordnet" / "data.noun").write_text("  1 the licence\n" + NOUN + CITY)
    (folder / "nothing").mkdir()
    (folder / "no_wordnet").mkdir()
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        (folder / "no_wordnet" / name).write_text("words and words\n")
    (folder / "config.toml").write_text(
        f"""
[run]
out = "unset"
[wikipedia]
dumps = ["{folder}/dump.xml.bz2"]
[words]
min_count = 2
[bigrams]
min_count = 2
top_k = 1
[titles]
pageviews = ["{folder}/views"]
min_views = 79
[wordnet]
folder = "{folder}/wordnet"
"""
    )
    return folder


@pytest.mark.usefixtures("one_ray")
def test_everything_that_is_known_of_a_small_wikipedia(small: Path, tmp_path: Path) -> None:
    """21 words are counted. PMI: log2(3 * 21 / (4 * 5)) = 1.655352 for both frequent pairs; of the two the first by text is taken."""
    record = queries(small / "config.toml", tmp_path)
    found = [
        (row["query"], row["source"], row["score"], row["also"], row["count"], row["pmi"], row["views"])
        for row in rows(tmp_path)
    ]
    assert found == [
        ("red", "words", 5.0, "", 5, None, None),
        ("dog", "words", 4.0, "titles wordnet", 4, None, 80),
        ("the", "words", 4.0, "", 4, None, None),
        ("a", "words", 2.0, "", 2, None, None),
        ("city", "words", 2.0, "", 2, None, None),
        ("red dog", "bigrams", 1.655352, "", 3, 1.655352, None),
        ("Star Trek: Picard", "titles", 79.0, "", None, None, 79),
        ("big city", "wordnet", 1.0, "", None, None, None),
    ]
    assert record["words_counted"] == sum(COUNTS.values()) == 21
    assert record["bigrams"] == {"counted": sum(n >= 2 for n in PAIRS.values()), "top_k": 1, "min_pmi": 1.655352}
    assert record["pages"] == {"article": 3, "other_namespace": 1, "redirect": 2}
    assert record["pageviews"] == {
        "broken": 1,
        "counted": 5,
        "other_project": 1,
        "skipped": 1,
        "views_led_elsewhere": 600,
    }
    assert record["sources"]["titles"] == {"found": 2, "kept": 1, "too_long": 0, "unlettered": 0, "repeated": 1, "over_cap": 0,
                                           "over_limit": 0}  # fmt: skip
    assert load_queries(str(tmp_path / "queries.parquet")) == load_queries(str(tmp_path / "queries.txt"))
    assert record["digest"] == load_queries(str(tmp_path / "queries.parquet")).digest
    for name, sha256 in record["sha256"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == sha256


@pytest.mark.usefixtures("one_ray")
def test_verify_looks_at_the_list(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries(small / "config.toml", tmp_path)
    cli.main(["verify", str(tmp_path)])
    whole = {name: (tmp_path / name).read_bytes() for name in WRITTEN}
    damages = {
        "queries.txt": (b"cat\n", "sha256 differs from queries.json"),
        "queries.parquet": (None, "is missing"),
        "queries.json": (b"{}", "is damaged, no record of a query list"),
    }
    for name, (content, said) in [*damages.items(), ("queries.json", (None, "is missing"))]:
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        capsys.readouterr()
        with pytest.raises(AuditFinding, match="1 differences"):
            cli.main(["verify", str(tmp_path)])
        assert capsys.readouterr().out == f"{tmp_path / name}: {said}; run python -m pipeline queries again\n"
        (tmp_path / name).write_bytes(whole[name])
    cli.main(["verify", str(tmp_path)])


@pytest.mark.usefixtures("one_ray")
def test_how_it_runs_does_not_change_a_byte(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker or two, one unit or many, one partition or many, bzip2 or plain: the list is the same, and so is the record, but for its
    inputs."""
    config = small / "config.toml"
    truth = queries(config, tmp_path / "a", "engine.workers=1")
    queries(config, tmp_path / "b", "engine.workers=2", "wikipedia.unit_bytes=1024", "titles.unit_bytes=1024")
    for name in WRITTEN:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    plain = queries(config, tmp_path / "c", f"wikipedia.dumps=['{small}/dump.xml']", "wikipedia.unit_bytes=1024")
    assert len(list((tmp_path / "c" / "queries-count").glob("*/*.json"))) > 1
    for name in WRITTEN[:2]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    assert plain | {"inputs": truth["inputs"]} == truth
    # As a dump of a thousand times the size: redirects and views then meet in other partitions than the articles'.
    monkeypatch.setattr(job, "_BYTES_PER_PARTITION", 100)
    queries(config, tmp_path / "d")
    assert len(list((tmp_path / "d" / "queries-articles").glob("*/*.json"))) > 5
    for name in WRITTEN:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()


@pytest.mark.usefixtures("one_ray")
def test_one_folder_under_changing_settings_gives_what_a_fresh_one_gives(small: Path, tmp_path: Path) -> None:
    """What earlier settings left is taken up or lies beside. They change by chance, also to values that change nothing."""
    chance, lists = random.Random(1), set()
    given: dict[str, str] = {}
    for step in range(12):
        key, values = chance.choice(
            [
                ("words.min_count", ["2", "3", "1"]),
                ("words.numbers", ["true", "false"]),
                ("bigrams", ["{min_count=2, top_k=1}", "{min_count=1, top_k=1}", "{min_count=2, min_pmi=1.6}"]),
                ("titles.min_views", ["79", "78", "81"]),
                ("titles.skip", ["['Main Page']", "['Dog']", "['Nothing']"]),
                ("wikipedia.max_page_bytes", ["8000000", "8000001"]),
                ("wikipedia.unit_bytes", ["1024", "32000000"]),
                ("wikipedia.dumps", [f"['{small}/dump.xml']", f"['{small}/dump.xml.bz2']"]),
                ("list.limit", ["500", "5", "3"]),
                ("wordnet.lemmas", ["all", "first"]),
            ]
        )
        given[key] = chance.choice(values)
        told = [f"{name}={value}" for name, value in given.items()]
        queries(small / "config.toml", tmp_path / "one", *told)
        queries(small / "config.toml", tmp_path / f"fresh-{step}", *told)
        for name in WRITTEN:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / f"fresh-{step}" / name).read_bytes(), given
        lists.add((tmp_path / "one" / "queries.txt").read_bytes())
    assert len(lists) > 3


@pytest.mark.usefixtures("one_ray")
def test_the_pages_that_are_named_do_not_depend_on_the_units(tmp_path: Path) -> None:
    """Of 3,000 pages with a broken text, in any order, and five large ones, the first thousand by kind and title are named."""
    titles = [f"Page {number * 7919 % 3000:04d}" for number in range(3000)]
    broken = [f"<page><title>{title}</title><ns>0</ns><revision><text>&</text></revision></page>" for title in titles]
    large = [page(f"{'long ' * 100}{number:04d}", "x" * 2000) for number in range(5)]
    (tmp_path / "dump.xml").write_bytes(dump(page("Dog", "dog dog"), *broken, *large))
    config = tmp_path / "config.toml"
    config.write_text(
        f'[run]\nout = "x"\n[wikipedia]\ndumps = ["{tmp_path}/dump.xml"]\nmax_page_bytes = 1024\n[words]\nmin_count = 2\n'
    )
    one = queries(config, tmp_path / "a")
    many = queries(config, tmp_path / "b", "wikipedia.unit_bytes=50000")
    assert len(list((tmp_path / "b" / "queries-count").glob("*/*.json"))) > 5
    assert one == many
    assert one["pages_left_out"] == [["broken", title] for title in sorted(titles)[:1000]]
    assert (one["pages_left_out_in_all"], one["pages_left_out_named_at_most"]) == (3005, 1000)
    assert one["pages"] == {"article": 1, "broken": 3000, "too_large": 5}


def genuine_dump(folder: Path) -> tuple[Path, Path]:
    """The dump of the real data, and a configuration for it."""
    path = next(real_data().glob("enwiki-latest*.bz2"))
    config = folder / "config.toml"
    config.write_text(
        f'[run]\nout = "unset"\n[wikipedia]\ndumps = ["{path}"]\n[words]\n[bigrams]\nmin_count = 5\ntop_k = 1000\n'
    )
    return path, config


@pytest.mark.usefixtures("one_ray")
def test_the_genuine_dump(tmp_path: Path) -> None:
    """206 pages: 106 articles, 99 redirects and a page of the project's own namespace, which is a redirect too. What the numbers are:

    * 449,492 words of prose, 32,963 different ones: two words with a template between them are two. 514 stand there at least 100 times:
      the commonest words of English, and what so few articles are about ("huxley", "ascii", "lunar"). A naive twin, which knows nothing
      of clauses and counts what stands between spaces of the normal form, agrees on every word; it has 8 tokens more, those in Chinese
      and Thai that are no words (`unsegmented`).
    * of the 9,914 bigrams seen at least 5 times the 1,000 of highest PMI: names and terms of art. Each is at least as often in the
      prose when punctuation does not count. What stands on either side of a template or a picture is none.
    """
    path, config = genuine_dump(tmp_path)
    record = queries(config, tmp_path / "a")
    assert record["pages"] == {"article": 106, "other_namespace": 1, "redirect": 99}
    assert (record["pages_left_out"], record["unsegmented"], record["words_counted"]) == ([], 8, 449_492)
    assert {name: outcome["kept"] for name, outcome in record["sources"].items()} == {"words": 514, "bigrams": 1000}
    naive, pairs = twin(path)
    assert sum(naive.values()) == 449_492 + 8
    found = rows(tmp_path / "a")
    assert {row["query"]: row["count"] for row in found if row["source"] == "words"} == {
        word: count for word, count in naive.items() if count >= 100
    }
    chosen = [row for row in found if row["source"] == "bigrams"]
    assert {"sri lanka", "johns hopkins", "las vegas", "ingmar bergman"} <= {row["query"] for row in chosen}
    assert all(pairs[row["query"]] >= row["count"] for row in chosen)
    assert chosen[-1]["pmi"] == record["bigrams"]["min_pmi"]


@pytest.mark.prove
@pytest.mark.usefixtures("one_ray")
def test_the_genuine_dump_in_smaller_units_gives_the_same_bytes(tmp_path: Path) -> None:
    """Of 400 kB, with one worker. A small Wikipedia is asked the same above."""
    _, config = genuine_dump(tmp_path)
    queries(config, tmp_path / "a")
    queries(config, tmp_path / "b", "wikipedia.unit_bytes=400000", "engine.workers=1")
    for name in WRITTEN:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def twin(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Tokens of the normal form of whole lines that have a letter, and all pairs of neighbours in it."""
    namespaces = frozenset(name.casefold() for name in (*read_site(str(path)).namespaces, "image"))
    naive, pairs = Counter[str](), Counter[str]()
    for found in read_pages(str(path), 0, 1 << 40, namespaces, 8 << 20):
        if found.kind == "article":
            for line in plain_lines(found.text, namespaces):
                form = normal_form(re.sub(r"(?<=\w)['‘’]\w\w?(?!\w)", " ", line))
                naive.update(token for token in form.split() if any(char.isalpha() for char in token))
                pairs.update(map(" ".join, itertools.pairwise(form.split())))
    return naive, pairs


@pytest.mark.prove
@pytest.mark.usefixtures("one_ray")
def test_a_killed_driver_is_resumed_to_the_same_bytes(small: Path, tmp_path: Path) -> None:
    """SIGKILL when the first record is there; the same command again ends as an undisturbed one and counts nothing twice."""
    command = [
        sys.executable, "-m", "pipeline", "queries", "--config", str(small / "config.toml"), "wikipedia.unit_bytes=1024",
        "engine.workers=1",
    ]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    queries(small / "config.toml", whole, "wikipedia.unit_bytes=1024")
    running = subprocess.Popen(
        [*command, f"run.out={killed}"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while running.poll() is None and not list(killed.glob("queries-count/*/[!.]*.json")) and time.monotonic() < until:
        time.sleep(0.01)
    assert running.poll() is None
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (killed / "queries.json").exists()
    first = {path.name: path.stat().st_mtime_ns for path in killed.glob("queries-count/*/[!.]*.json")}
    assert first
    subprocess.run([*command, f"run.out={killed}"], cwd=ROOT, check=True, capture_output=True)
    again = {path.name: path.stat().st_mtime_ns for path in killed.glob("queries-count/*/[!.]*.json")}
    assert first.items() <= again.items()
    for name in WRITTEN:
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


# ---- before it runs


def test_check_touches_nothing_and_tells_the_plan(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in small.rglob("*"))
    queries(small / "config.toml", tmp_path / "out", "wikipedia.unit_bytes=1024", check=True)
    said = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert sorted((path, path.stat().st_mtime_ns) for path in small.rglob("*")) == before
    size = (small / "dump.xml.bz2").stat().st_size
    assert f"# dumps       1 files, {size:,} bytes; {-(-size // 1024)} units, 3 namespaces besides articles" in said
    assert "# bigrams     seen at least 2 times, the 1 of highest PMI, at most 100,000" in said
    assert "# titles      from 79 views, at most 100,000; redirects resolved" in said
    assert "min_views = 79" in said


def test_the_shipped_configuration_is_valid() -> None:
    config = load_config(QueriesConfig, str(ROOT / "pipeline" / "configs" / "queries.toml"))
    assert config.used == ("words", "bigrams", "titles", "wordnet")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["wikipedia.dumps=['none.bz2']"], "wikipedia.dumps: no file, folder or pattern 'none.bz2'; check the path"),
        (["wikipedia.dumps=['{small}/views']"], "views: no MediaWiki XML export"),
        (
            ["titles.pageviews=['{small}/dump.xml']"],
            "dump.xml: none of its first lines is of Wikimedia's hourly or daily",
        ),
        (["wikipedia.dumps=['']"], "wikipedia.dumps: a path is empty; write a file, a folder or a pattern"),
        (
            ["titles.pageviews=['{small}/nothing']"],
            "titles.pageviews: the folder '{small}/nothing' holds no file; check the path",
        ),
        (["wordnet.folder={small}"], "data.noun: no such file; set wordnet.folder to a folder with data.noun"),
        (
            ["wordnet.folder={small}/no_wordnet"],
            "data.noun: line 1 is no synset ('words and words'); give WordNet's own data",
        ),
        (
            ["bigrams.min_pmi=3"],
            "bigrams are cut by top_k or by min_pmi, and top_k is 1 and min_pmi is 3.0; set exactly one",
        ),
        (["words.min_count=0"], "override 'words.min_count': input should be greater than or equal to 1 (got 0)"),
        (["words.mincount=5"], "override 'words.mincount': unknown key; did you mean 'min_count'?"),
        (["titles.project=english"], "override 'titles.project': string should match pattern"),
        (["titles.project=en.wikigames"], "override 'titles.project': string should match pattern"),
        (["list.limit=500001"], "override 'list.limit': input should be less than or equal to 500000"),
    ],
)
def test_what_a_user_gets_wrong(overrides: list[str], says: str, small: Path, tmp_path: Path) -> None:
    given = [override.replace("{small}", str(small)) for override in overrides]
    with pytest.raises(InputError) as caught:
        queries(small / "config.toml", tmp_path / "out", *given)
    assert says.replace("{small}", str(small)) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ("", "no source of queries; add a table [words], [bigrams], [titles], [wordnet]"),
        ("[words]\n", "[words] is counted in a dump and there is none; set wikipedia.dumps"),
        ("[bigrams]\n[wikipedia]\ndumps = ['x']\n", "neither is given; set exactly one of the two"),
        ("[wordnet]\nfolder = 'x'\n[wikipedia]\ndumps = ['x']\n", "[wikipedia] names a dump that no source reads"),
    ],
)
def test_configurations_that_contradict_themselves(tables: str, says: str, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[run]\nout = "out"\n' + tables)
    with pytest.raises(InputError) as caught:
        load_config(QueriesConfig, str(config))
    assert says in str(caught.value)


@pytest.mark.usefixtures("one_ray")
def test_what_only_reading_finds(small: Path, tmp_path: Path) -> None:
    """A download that broke off, one that was made twice, and thresholds that leave nothing: one sentence, and no list."""
    cut = tmp_path / "cut.xml.bz2"
    shutil.copy(small / "dump.xml.bz2", cut)
    with cut.open("r+b") as sink:
        sink.truncate(cut.stat().st_size - 20)
    with pytest.raises(InputError, match="it is truncated, get it again"):
        queries(small / "config.toml", tmp_path / "a", f"wikipedia.dumps=['{cut}']")
    shutil.copy(small / "dump.xml", tmp_path / "again.xml")
    dumps = f"['{small}/dump.xml', '{tmp_path}/again.xml']"
    with pytest.raises(InputError, match=r"dump.xml: has the bytes of .*again.xml and would be counted twice"):
        queries(small / "config.toml", tmp_path / "c", f"wikipedia.dumps={dumps}")
    config = tmp_path / "config.toml"
    config.write_text(f'[run]\nout = "x"\n[wikipedia]\ndumps = ["{small}/dump.xml"]\n[words]\nmin_count = 1000\n')
    with pytest.raises(InputError, match="no query is over the thresholds"):
        queries(config, tmp_path / "b")
    assert not [path for name in WRITTEN for path in tmp_path.glob(f"*/{name}")]

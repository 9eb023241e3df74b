"""Page views. Truth is the table that the lines were written from, and for the genuine samples a count with `str.split`."""

import bz2
import gzip
import random
import re
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline.contracts.errors import InputError
from pipeline.queries.views import LineCounts, Rules, check_format, read_title, read_views
from tests.pipeline.queries.making import real_data, streams

RULES = Rules("en.wikipedia", frozenset({"special", "talk", "user talk", "file"}), frozenset({"main page", "-"}))


def read(path: Path, step: int = 1 << 40, rules: Rules = RULES) -> tuple[Counter[str], LineCounts]:
    seen: Counter[str] = Counter()

    def take(title: str, views: int) -> None:
        seen[title] += views

    counts = [read_views(str(path), start, start + step, rules, take) for start in range(0, path.stat().st_size, step)]
    return seen, LineCounts(*map(sum, zip(*counts, strict=True)))


def planted() -> tuple[list[bytes], Counter[str], LineCounts]:
    """Lines of both formats, what must come of them, and how many of each kind there are."""
    dice, lines, truth, kinds = random.Random(8), [], Counter[str](), Counter[str]()
    titles = ["Dog", "Star Trek: Picard", "Zürich", "AT&T", "100% (song)", "東京", "Don't Look Up"]
    for _ in range(400):
        title, views = dice.choice(titles), dice.randrange(1, 500)
        name = title.replace(" ", "_")
        name = quote(name) if dice.random() < 0.3 else name
        code = dice.choice(["en", "en.m", "en.zero"])
        daily = f"en.wikipedia {name} {dice.choice(['42', 'null'])} mobile-web {views} A{views}"
        lines.append(
            dice.choice([f"{code} {name} {views} 0", daily, daily.replace(" 42 ", " ").replace(" null ", " ")])
        )
        truth[title] += views
        kinds["counted"] += 1
    for kind, line in (
        ("other_project", "de Hund 5 0"),
        ("other_project", "en.d dog 7 0"),
        ("other_project", "fr.wikipedia Chien 1 desktop 4 A4"),
        ("skipped", "en Special:Search 900 0"),
        ("skipped", "en.wikipedia User_talk:Rex null desktop 3 A3"),
        ("skipped", "en Main_Page 10000 0"),
        ("skipped", "en - 10000 0"),
        ("broken", "en Dog"),
        ("broken", "en Dog many 0"),
        ("broken", "en.wikipedia Dog 1 desktop 5 five"),
        ("broken", "en %FF%FE 5 0"),
        ("broken", "en A|B 5 0"),
        ("broken", "x" * 70_000),
    ):
        lines.append(line)
        kinds[kind] += 1
    dice.shuffle(lines)
    return (
        [line.encode() for line in lines] + [b"en Caf\xe9 5 0"],
        truth,
        LineCounts(**(kinds | {"broken": kinds["broken"] + 1})),
    )


@pytest.mark.parametrize("step", [61, 1000, 40_000, 1 << 40])
@pytest.mark.parametrize("ending", ["\n", "", "\n\n"])
def test_both_formats_in_any_ranges(step: int, ending: str, tmp_path: Path) -> None:
    lines, truth, kinds = planted()
    data = b"\n".join(lines) + ending.encode()
    for name, stored in {
        "plain": data,
        "a.bz2": bz2.compress(data),
        "b.bz2": streams(data, 2),
        "a.gz": gzip.compress(data),
    }.items():
        path = tmp_path / name
        path.write_bytes(stored)
        check_format(str(path))
        assert read(path, step) == (truth, kinds)


def test_titles_as_the_dump_has_them() -> None:
    assert read_title(b"star_Trek:_Picard") == "Star Trek: Picard"
    assert read_title(b"%25D0%2590") == "А"  # escaped twice
    assert read_title("ß".encode()) == "ß"  # its capital is two letters
    assert read_title(b"50%") == "50%"
    assert read_title(b"_") is None
    assert read_title(b"a%00b") is None


def test_other_projects(tmp_path: Path) -> None:
    path = tmp_path / "views"
    path.write_bytes(b"en dog 1 0\nen.d dog 2 0\nen.m.d dog 4 0\nen.wiktionary dog 1 desktop 8 A8\n")
    assert read(path, rules=RULES._replace(project="en.wiktionary"))[0] == {"Dog": 14}


@pytest.mark.parametrize(
    ("written", "views"),
    [("0", 0), ("000", 0), ("7", 7), ("0" * 18 + "1", 1), ("999999999999", 10**12 - 1), ("1" + "0" * 12, 10**12 - 1),
     ("1" + "0" * 29, 10**12 - 1), ("9" * 60_000, 10**12 - 1)],
)  # fmt: skip
def test_counts_of_views_are_bounded(written: str, views: int, tmp_path: Path) -> None:
    path = tmp_path / "views"
    path.write_text(f"en Dog {written} 0\nen.wikipedia Cat 1 desktop {written} A1\n")
    assert read(path)[0] == {"Dog": views, "Cat": views}


def test_no_page_views(tmp_path: Path) -> None:
    path = tmp_path / "views"
    path.write_bytes(b"title,views\nDog,5\n")
    with pytest.raises(InputError, match="none of its first lines is of Wikimedia's hourly or daily"):
        check_format(str(path))


@pytest.mark.parametrize("name", ["sample", "smallsample", "cleansample"])
def test_the_genuine_samples(name: str) -> None:
    """Scanners' attacks tear lines in two or more; what is left has a kind of access before its total."""
    path = real_data() / f"pageviews_complete_{name}.txt"
    whole, truth, others = (
        re.compile(r"(\S+) (\S+)(?: \S+)? (?:desktop|mobile-web|mobile-app) (\d+) (?:[A-Z]\d+)+"),
        Counter[str](),
        0,
    )
    lines = [line for line in path.read_bytes().decode("utf-8", "surrogateescape").split("\n") if line.strip()]
    matches = [found for line in lines if (found := whole.fullmatch(line)) is not None]
    for found in matches:
        if found[1] != "en.wikipedia":
            others += 1
        elif not found[2].startswith("Talk:") and found[2] != "-":
            title = read_title(found[2].encode())
            assert title is not None
            truth[title] += int(found[3])
    seen, counts = read(path)
    assert seen == truth
    assert counts.broken == len(lines) - len(matches)
    assert counts.other_project == others
    assert sum(counts) == len(lines)
    assert read(path, 500) == (seen, counts)

"""The lists of corpus rows to take out: what the pairs say, as far as the tables hold them, and what the report counts."""

from __future__ import annotations

from collections.abc import Iterator

from evaluation.report import files, twin
from evaluation.report.differences import differ
from evaluation.report.schema import Report
from evaluation.report.twin import Row
from pipeline.contracts import storage

_LARGEST = 1 << 36  # bytes of a list: two thousand million rows


def check_removal(directory: str, report: Report, pairs: list[Row], text_pairs: list[Row]) -> Iterator[str]:
    """Both lists: sorted, each row once, as long as report.json says; exactly the rows of the pairs where the tables hold all of these,
    else those and no more than the counts of the sets allow."""
    what = "uids" if report.corpus.kind == "shards" else "rows"
    place = storage.join(directory, files.REPORT)
    captions = [one.text.captions for one in report.sets if one.text.captions is not None]
    complete = {
        files.REMOVAL: all(one.found.pairs == one.found.pairs_held for one in report.sets),
        files.REMOVAL_TEXT: all(one.pairs == one.pairs_held for one in captions),
    }
    of_sets = {
        files.REMOVAL: [one.found.corpus_rows for one in report.sets],
        files.REMOVAL_TEXT: [one.corpus_rows for one in captions],
    }
    counted = {files.REMOVAL: report.removal.pictures, files.REMOVAL_TEXT: report.removal.captions}
    by_picture: set[str] = set()
    for name, table in {files.REMOVAL: pairs, files.REMOVAL_TEXT: text_pairs}.items():
        uri = storage.join(directory, name)
        *lines, rest = storage.read_bytes(uri, limit=_LARGEST).decode("utf-8", "replace").split("\n")
        expected = _lines(report, table)
        known = set(lines)
        # What only a caption matches: what a picture matches too is in the other list.
        wanted = [line for _, line in sorted(expected.items()) if line not in by_picture]
        whole = complete[files.REMOVAL] and complete[name]
        keys = [_key(report, line) for line in lines]
        known_keys = [key for key in keys if key is not None]
        rising = keys == sorted(set(known_keys))
        wrong = lines != wanted if whole else not known.issuperset(wanted) or bool(known & by_picture)
        least = max(of_sets[name], default=0) - len(by_picture)
        if rest or wrong or not rising or not least <= len(lines) <= sum(of_sets[name]):
            yield f"{uri}: is not the list of {what} that the pairs give; write the report again"
        key = "pictures" if name == files.REMOVAL else "captions"
        yield from differ(place, f"removal.{key}", counted[name], len(lines))
        by_picture = known


def _lines(report: Report, pairs: list[Row]) -> dict[tuple[str, int], str]:
    """The line of every corpus row, by what the lists are sorted by."""
    if report.corpus.kind == "shards":
        return {(twin.in_hex(row["uid"]), 0): twin.in_hex(row["uid"]) for row in pairs}
    places = {(str(row["shard"]), int(str(row["row"]))): str(row["key"] or "") for row in pairs}
    return {place: "\t".join((place[0], str(place[1]), key)) for place, key in places.items()}


def _key(report: Report, line: str) -> tuple[str, int] | None:
    """What a line is sorted by; None where it is none."""
    if report.corpus.kind == "shards":
        digits = len(line) == 32 and set(line) <= set("0123456789abcdef")
        return (line, 0) if digits else None
    shard, *rest = line.split("\t", 2)
    return (shard, int(rest[0])) if len(rest) == 2 and rest[0].isascii() and rest[0].isdigit() else None

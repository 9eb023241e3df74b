"""The second hand for the corpus: what the tables say of its rows, and its sizes against these; the corpus itself is not in the folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from evaluation.report import files
from evaluation.report.differences import differ
from evaluation.report.numbers import not_checked
from evaluation.report.schema import Report
from evaluation.report.twin import Row, in_hex
from pipeline.content.hashes import HASH_VERSION
from pipeline.contracts import storage
from pipeline.contracts.schema import Reason

_OF_A_ROW = ("uid", "key", "url", "caption", "source_sha256", "image_sha256", "pdq256", "phash64", "pdq_quality")
"""What a row of the corpus has, whichever table names it, and whichever example it was found for."""


def check_corpus(directory: str, report: Report, pairs: list[Row], tables: Mapping[str, list[Row]]) -> Iterator[str]:
    """`tables` are all that name rows of the corpus, by file, the `pairs` among them."""
    place, corpus = storage.join(directory, files.REPORT), report.corpus
    yield from differ(place, "not_checked", report.not_checked, not_checked([one.thresholds for one in report.sets]))
    refused = sum(corpus.rejected.values()) + corpus.damaged_files
    if set(corpus.rejected) - set(Reason) or min(corpus.rejected.values(), default=1) < 1 or corpus.damaged_files < 0:
        yield f"{place}: corpus.rejected is {corpus.rejected!r}, no count by the reasons of a corpus; write the report again"
    elif refused and corpus.kind == "shards":
        yield f"{place}: corpus.rejected counts {refused} rows, and a corpus of this project has none; write the report again"
    for name, version in corpus.hashes.items():
        yield from differ(place, f"corpus.hashes.{name}", version, HASH_VERSION.get(name))
    rows = {(row["shard"], row["row"]): row["pdq256"] for row in pairs}
    hashless = sum(pdq is None for pdq in rows.values())
    known = {"rows": len(rows), "shards": len({shard for shard, _ in rows}), "rows_without_hashes": hashless}
    for name, least in known.items():
        if getattr(corpus, name) < least:
            yield f"{place}: corpus.{name} is {getattr(corpus, name)!r}, the pairs name {least}; write the report again"
    if corpus.rows_without_hashes > corpus.rows - len(rows) + hashless:
        yield f"{place}: corpus.rows_without_hashes is {corpus.rows_without_hashes}, more than the rows left; write the report again"
    most = max((one.found.corpus_rows for one in report.sets), default=0)
    if corpus.rows < most:
        yield f"{place}: corpus.rows is {corpus.rows}, a set has {most} matched rows; write the report again"
    if len({(row["set"], row["eval_row"], row["shard"], row["row"]) for row in pairs}) != len(pairs):
        yield f"{place}: a pair comes twice in {files.PAIRS}; write the report again"
    told: dict[object, object] = {}
    for name, named in tables.items():
        if report.evidence == "hash-only" and any(
            row["url"] is not None or row["caption"] is not None for row in named
        ):
            yield f"{place}: evidence is 'hash-only', and {name} has URLs or captions; write the report again"
        for row in named:
            said = [
                (key, told.setdefault((row["shard"], row["row"], key), row[key])) for key in _OF_A_ROW if key in row
            ]
            odd = next((key for key, before in said if before != row[key]), None)
            if odd is not None:
                where = f"{storage.join(directory, name)}: row {row['row']} of {row['shard']} ({in_hex(row['uid'])})"
                yield f"{where}: has another {odd} than where it is named before; write the report again"
                break

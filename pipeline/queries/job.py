"""`python -m pipeline queries`, top to bottom: dumps, page views and WordNet → queries.parquet, queries.txt, queries.json.

    queries-count    ranges of the dumps: words and bigrams counted, redirects noted
    queries-words    a partition of them at a time: summed; what is seen too rarely goes
    queries-views    ranges of the page-view files: views by title
    queries-articles views of a redirect go to the article it leads to (when there is a dump)
    queries-titles   a partition of them at a time: summed; what is seen too rarely goes
    queries-list     one unit: the thresholds, the order, the list

Every step is a stage of `pipeline.engine`, so that it runs on as many workers as there are, is resumed after a crash, and gives the
same bytes either way. Nothing but names and small counts passes through the driver, until the list itself, which has at most 500,000 rows.
"""

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit import Result, Unit
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import Json, digest, semantic
from pipeline.contracts.errors import InputError
from pipeline.engine import Run
from pipeline.match import load_queries
from pipeline.queries import views, wordnet
from pipeline.queries.config import QueriesConfig, TitlesConfig
from pipeline.queries.counting import COUNT_SCHEMA, FULL, Counts, add_up, in_partitions, summed
from pipeline.queries.dump import read_pages
from pipeline.queries.inputs import File, Inputs, look, place_of, ranges, refuse_copies, sha256_of
from pipeline.queries.markup import MARKUP_VERSION, TooDeep, Unreadable, plain_lines
from pipeline.queries.ngrams import Tally
from pipeline.queries.pieces import kind_of
from pipeline.queries.select import (
    LIST_SCHEMA,
    Candidate,
    bigram_candidates,
    build,
    lemma_candidates,
    title_candidates,
    word_candidates,
)
from pipeline.shard import shard_count
from pipeline.stages.common import Output, partition_units, read_partition, run_stage

REDIRECTS_SUFFIX = ".redirects.parquet"
LIST_NAME = "queries"

_REDIRECT_SCHEMA = pa.schema([("partition", pa.int32()), ("title", pa.string()), ("target", pa.string())])
_BYTES_PER_PARTITION = 64 << 20  # of stored input: eight million entries before they are summed, of a bzip2 dump
_LEFT_OUT = ("too_large", "broken", "too_deep", "unreadable")
_NAMED = 1000
"""Pages left out that the record names: the first by kind and title, whatever the units are."""
_TITLE_CHARS = (
    255  # of a title in the record; MediaWiki's have at most so many bytes, a broken page's may have millions
)
_LINK_NAMESPACES = ("category", "file", "image", "media")


def run(config: QueriesConfig) -> str:
    """Build the list, skipping what is done; returns the URI of the Parquet file."""
    inputs = look(config)
    with Run(config.run.out, config.engine, config.model_dump(mode="json"), digest(config)) as driver:
        files = [*inputs.dumps, *inputs.pageviews, *inputs.wordnet]
        sha256 = dict(zip(files, driver.map(sha256_of, files), strict=True))
        refuse_copies([*inputs.dumps, *inputs.pageviews], sha256)
        counted = _count_dumps(driver, config, inputs, sha256)
        grams = _sum_grams(driver, config, counted) if counted is not None else None
        titles, seen = _titles(driver, config, inputs, sha256, counted)
        notes = [cast(dict[str, Any], record.notes) for record in counted.records] if counted is not None else []
        tokens = sum(note["tokens"] for note in notes)
        pages = add_up(note["pages"] for note in notes)
        found = _list(driver, config, grams, titles, tokens, [sha256[file] for file in inputs.wordnet])
        record: dict[str, Json] = {
            "format": 2,
            "config": semantic(config),
            "config_digest": digest(config),
            "inputs": [{"name": file.name, "bytes": file.bytes, "sha256": sha256[file]} for file in files],
            "sources": found.records[0].notes["sources"],
            "bigrams": found.records[0].notes["bigrams"],
            "words_counted": tokens,
            "unsegmented": sum(note["unsegmented"] for note in notes),
            "pages": cast(Json, pages),
            "pages_left_out": cast(Json, _first(itertools.chain.from_iterable(note["left_out"] for note in notes))),
            "pages_left_out_in_all": sum(pages.get(kind, 0) for kind in _LEFT_OUT),
            "pages_left_out_named_at_most": _NAMED,
            "pageviews": cast(Json, seen),
            "markup": MARKUP_VERSION,
        }
        return _write(config.run.out, storage.join(config.run.out, found.files[0]), record)


def _first(left_out: Iterable[list[str]]) -> list[list[str]]:
    """The pages that the record names."""
    return sorted(left_out)[:_NAMED]


def _nothing(schema: pa.Schema, unit: Unit) -> pa.Table:
    """For units whose work reads a stream by itself: the rows of a range of a dump are no table."""
    return schema.empty_table()


# ---- the dump: words, bigrams, redirects


def _count_dumps(driver: Run, config: QueriesConfig, inputs: Inputs, sha256: Mapping[File, str]) -> Output | None:
    if config.wikipedia is None:
        return None
    partitions = shard_count(sum(file.bytes for file in inputs.dumps), _BYTES_PER_PARTITION)
    numbers = config.words.numbers if config.words else False
    counting = {"words": bool(config.words or config.bigrams), "pairs": config.bigrams is not None, "numbers": numbers}
    return run_stage(
        driver,
        "queries-count",
        {
            **counting,
            "max_page_bytes": config.wikipedia.max_page_bytes,
            "unit_bytes": config.wikipedia.unit_bytes,
            "partitions": partitions,
            "namespaces": cast(Json, list(inputs.namespaces)),
            "markup": MARKUP_VERSION,
        },
        [],
        ranges(inputs.dumps, sha256, config.wikipedia.unit_bytes, frozenset()),
        functools.partial(_nothing, COUNT_SCHEMA),
        functools.partial(
            _count, inputs.dumps, inputs.namespaces, config.wikipedia.max_page_bytes, counting, partitions
        ),
        version=2,
        accounted=False,
        partitioned=True,
        partitions=partitions,
        roots=[value for file in inputs.dumps for value in (file.name, sha256[file])],
    )


def _count(
    files: Sequence[File],
    namespaces: Sequence[str],
    max_page_bytes: int,
    counting: Mapping[str, bool],
    partitions: int,
    table: pa.Table,
    unit: Unit,
) -> Result:
    """One range of a dump. Beside the counts: the redirects, by the partition of their own title."""
    prefixes = frozenset(name.casefold() for name in namespaces) | frozenset(_LINK_NAMESPACES)
    tally = Tally(numbers=counting["numbers"], pairs=counting["pairs"])
    counts, kinds = Counts(), Counter[str]()
    left_out: list[list[str]] = []
    redirects: list[tuple[str, str]] = []
    for page in read_pages(*place_of(files, unit), prefixes, max_page_bytes):
        kind: str = page.kind
        if kind == "redirect":
            redirects.append((page.title, page.target))
        elif kind == "article" and counting["words"]:
            try:
                tally.add(plain_lines(page.text, prefixes))
            except TooDeep:
                kind = "too_deep"
            except Unreadable:
                kind = "unreadable"
        kinds[kind] += 1
        if kind in _LEFT_OUT:
            left_out.append([kind, page.title[:_TITLE_CHARS]])
            if len(left_out) == 2 * _NAMED:
                left_out = _first(left_out)
        if len(tally.words) + len(tally.bigrams) >= FULL:
            counts.empty(tally.words)
            counts.empty(tally.bigrams)
    counts.empty(tally.words)
    counts.empty(tally.bigrams)
    titles, targets = zip(*redirects, strict=True) if redirects else ((), ())
    columns = [pa.array(titles, pa.string()), pa.array(targets, pa.string())]
    led = in_partitions(pa.table(columns, names=["title", "target"]), "title", partitions).cast(_REDIRECT_SCHEMA)
    notes = {
        "tokens": tally.tokens,
        "unsegmented": tally.unsegmented,
        "pages": dict(kinds),
        "left_out": _first(left_out),
    }
    return Result(counts.partitioned(partitions), beside={REDIRECTS_SUFFIX: led}, notes=cast(dict[str, Json], notes))


def _sum_grams(driver: Run, config: QueriesConfig, counted: Output) -> Output | None:
    """A word that is too rare to be a query is still needed for the PMI of a bigram, which may be rarer."""
    if config.words is None and config.bigrams is None:
        return None
    pairs_from = config.bigrams.min_count if config.bigrams else 0
    words_from = min([table.min_count for table in (config.words, config.bigrams) if table is not None])
    return run_stage(
        driver,
        "queries-words",
        [words_from, pairs_from],
        [counted],
        partition_units(counted.partitions),
        functools.partial(read_partition, driver.out, counted.files),
        functools.partial(_frequent, words_from, pairs_from),
        accounted=False,
    )


def _frequent(words_from: int, pairs_from: int, table: pa.Table, unit: Unit) -> Result:
    found = summed(table)
    least = pc.if_else(pc.match_substring(found["key"], " "), pairs_from, words_from)
    return Result(found.filter(pc.greater_equal(found["count"], least)))


# ---- page views


def _titles(
    driver: Run, config: QueriesConfig, inputs: Inputs, sha256: Mapping[File, str], counted: Output | None
) -> tuple[Output | None, dict[str, int]]:
    """The titles over the threshold; what the lines of the page-view files were, and the views that redirects led elsewhere."""
    if config.titles is None:
        return None, {}
    partitions = shard_count(sum(file.bytes for file in inputs.pageviews), _BYTES_PER_PARTITION)
    partitions = counted.partitions if counted is not None else partitions  # redirects meet views by partition
    unit_bytes, rules = config.titles.unit_bytes, _rules(config.titles, inputs.namespaces)
    whole = frozenset(file.uri for file in inputs.pageviews if kind_of(file.uri) == "gz")
    seen = run_stage(
        driver,
        "queries-views",
        {
            "project": config.titles.project,
            "namespaces": cast(Json, sorted(rules.namespaces)),
            "skip": cast(Json, sorted(rules.skip)),
            "unit_bytes": unit_bytes,
            "partitions": partitions,
        },
        [],
        ranges(inputs.pageviews, sha256, unit_bytes, whole),
        functools.partial(_nothing, COUNT_SCHEMA),
        functools.partial(_views, inputs.pageviews, rules, partitions),
        version=2,
        accounted=False,
        partitioned=True,
        partitions=partitions,
        roots=[value for file in inputs.pageviews for value in (file.name, sha256[file])],
    )
    lines = add_up(cast(dict[str, int], record.notes) for record in seen.records)
    if counted is not None:
        seen = run_stage(
            driver,
            "queries-articles",
            {
                "namespaces": cast(Json, sorted(rules.namespaces)),
                "skip": cast(Json, sorted(rules.skip)),
                "partitions": partitions,
            },
            [seen, counted],
            partition_units(partitions),
            functools.partial(read_partition, driver.out, seen.files),
            functools.partial(_articles, driver.out, counted.beside(REDIRECTS_SUFFIX), rules, partitions),
            accounted=False,
            partitioned=True,
            partitions=partitions,
        )
        lines |= add_up(cast(dict[str, int], record.notes) for record in seen.records)
    wanted = run_stage(
        driver,
        "queries-titles",
        config.titles.min_views,
        [seen],
        partition_units(partitions),
        functools.partial(read_partition, driver.out, seen.files),
        functools.partial(_frequent_titles, config.titles.min_views),
        accounted=False,
    )
    return wanted, lines


def _rules(config: TitlesConfig, namespaces: Sequence[str]) -> views.Rules:
    prefixes = frozenset(name.casefold() for name in (*namespaces, *config.namespaces))
    return views.Rules(config.project, prefixes, frozenset(title.casefold() for title in config.skip))


def _views(files: Sequence[File], rules: views.Rules, partitions: int, table: pa.Table, unit: Unit) -> Result:
    counts, seen = Counts(), Counter[str]()

    def take(title: str, number: int) -> None:
        seen[title] += number
        if len(seen) >= FULL:
            counts.empty(seen)

    lines = views.read_views(*place_of(files, unit), rules, take)
    counts.empty(seen)
    return Result(counts.partitioned(partitions), notes=cast(dict[str, Json], lines._asdict()))


def _articles(
    out: str, redirects: Sequence[str], rules: views.Rules, partitions: int, table: pa.Table, unit: Unit
) -> Result:
    """Views with the title of the article in place of a redirect's. One step: MediaWiki mends redirects that lead to redirects.

    A redirect that leads out of the articles, such as "Mainpage" to the main page, is none: noted by the views that go with it.
    """
    found = summed(table)
    parts = [read_partition(out, [name], unit) for name in redirects]
    led = pa.concat_tables(parts).sort_by([("title", "ascending"), ("target", "ascending")]).combine_chunks()
    at = pc.index_in(found["key"], led["title"].combine_chunks())
    keys = pc.coalesce(led["target"].take(at), found["key"])
    moved = summed(found.set_column(0, "key", keys))
    is_article = pa.array((not views.is_skipped(title, rules) for title in moved["key"].to_pylist()), pa.bool_())
    lost = pc.sum(moved.filter(pc.invert(is_article))["count"]).as_py() or 0
    return Result(in_partitions(moved.filter(is_article), "key", partitions), notes={"views_led_elsewhere": lost})


def _frequent_titles(min_views: int, table: pa.Table, unit: Unit) -> Result:
    found = summed(table)
    return Result(found.filter(pc.greater_equal(found["count"], min_views)))


# ---- the list


def _list(
    driver: Run, config: QueriesConfig, grams: Output | None, titles: Output | None, tokens: int, lemmas: Sequence[str]
) -> Output:
    present = [output for output in (grams, titles) if output is not None]
    return run_stage(
        driver,
        "queries-list",
        {"config": semantic(config), "words_counted": tokens},
        present,
        [Unit("all")],
        functools.partial(_nothing, LIST_SCHEMA),
        functools.partial(
            _select,
            driver.out,
            config,
            grams.files if grams is not None else [],
            titles.files if titles is not None else [],
            tokens,
        ),
        accounted=False,
        roots=list(lemmas),
    )


def _select(
    out: str,
    config: QueriesConfig,
    grams: Sequence[str],
    titles: Sequence[str],
    tokens: int,
    table: pa.Table,
    unit: Unit,
) -> Result:
    counted = _read_counts(out, grams)
    offered: dict[str, Sequence[Candidate]] = {}
    cut: dict[str, Json] = {}
    if config.words is not None:
        offered["words"] = word_candidates(counted, config.words.min_count)
    if config.bigrams is not None:
        offered["bigrams"], found = bigram_candidates(counted, tokens, config.bigrams)
        cut = found._asdict()
    if config.titles is not None:
        offered["titles"] = title_candidates(_read_counts(out, titles))
    if config.wordnet is not None:
        offered["wordnet"] = lemma_candidates(wordnet.read_lemmas(config.wordnet.folder, config.wordnet.lemmas))
    caps = {name: getattr(config, name).cap for name in config.used}
    rows, outcomes = build(offered, caps, config.list)
    told = {name: outcome._asdict() for name, outcome in outcomes.items()}
    return Result(rows, notes={"sources": cast(Json, told), "bigrams": cut})


def _read_counts(out: str, files: Sequence[str]) -> pa.Table:
    return pa.concat_tables([COUNT_SCHEMA.empty_table(), *(parquet.read(storage.join(out, name)) for name in files)])


def _write(out: str, committed: str, record: dict[str, Json]) -> str:
    """queries.parquet and .txt, then the record, which makes them a list: it holds their digests."""
    rows = parquet.read(committed)
    if not rows.num_rows:
        raise InputError(f"{out}: no query is over the thresholds; lower them or give larger sources")
    place = storage.join(out, f"{LIST_NAME}.parquet")
    data = storage.read_bytes(committed)
    text = "".join(f"{query}\n" for query in rows["query"].to_pylist()).encode()
    storage.write_atomic(place, data)
    storage.write_atomic(storage.join(out, f"{LIST_NAME}.txt"), text)
    record |= {
        "queries": rows.num_rows,
        "digest": load_queries(place).digest,
        "sha256": {
            f"{LIST_NAME}.parquet": storage.sha256_file(place),
            f"{LIST_NAME}.txt": storage.sha256_file(storage.join(out, f"{LIST_NAME}.txt")),
        },
    }
    told = json.dumps(dict(sorted(record.items())), indent=1, ensure_ascii=False) + "\n"
    storage.write_atomic(storage.join(out, f"{LIST_NAME}.json"), told.encode())
    return place

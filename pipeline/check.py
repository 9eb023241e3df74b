"""`--check`: what a run with this configuration would do. Reads listings, Parquet footers and the query list; touches nothing."""

import math

from pipeline.config import PipelineConfig
from pipeline.contracts import storage
from pipeline.contracts.schema import FORMAT_VERSION
from pipeline.crawl import stage as crawling
from pipeline.match import load_queries
from pipeline.sources import rows
from pipeline.sources.files import expand


def describe(config: PipelineConfig) -> str:
    """The plan in lines for people. Raises InputError for what a run would stop at: missing sources, columns or queries, a place
    where no output can be.

    (Policy hooks are tried by `config.identity`, of which the digest is shown.)
    """
    files = expand(config.sources)
    for file in files:
        rows.check(file, config.sources)
    rows.require_rows(files, config.sources)
    crawling.require(config.crawl)
    storage.require_folder(config.run.out)
    queries = load_queries(config.filter.queries, config.filter.mode)
    total_bytes = sum(storage.size(file.uri) for file in files)
    counts = [rows.count_rows(file, config.sources) for file in files if rows.is_cut(file)]
    units = sum(math.ceil(count / config.sources.rows_per_unit) for count in counts)
    whole = len(files) - len(counts)
    bare = len(rows.without_captions(files))
    once = "".join(f"one row a {key}, " for key in config.dedup.exact)
    shard = config.shard
    size = f"{shard.rows:,} rows" if shard.rows is not None else f"{shard.bytes:,} bytes of pictures"
    return "\n".join(
        [
            f"# sources     {len(files):,} files, {total_bytes:,} bytes; {sum(counts):,} rows in Parquet"
            + (f" and {whole:,} other files whose rows are counted when they are read" if whole else "")
            + (f"; {bare:,} lists of URLs (.txt), all of whose rows are rejected as no_caption" if bare else ""),
            f"# candidates  {units + whole:,} units of at most {config.sources.rows_per_unit:,} rows (other files are one each)",
            f"# filter      {len(queries.queries):,} queries, digest {queries.digest[:12]}",
            f"# precap      at most {config.precap.per_query:,} pairs a query go on to the crawl",
            f"# crawl       {config.crawl.units:,} units of whole hosts, {config.crawl.at_once} fetches at once in each",
            *(f"# policy      {policy.name}: {policy.hook}" for policy in config.policy),
            f"# dedup       {once}by {config.dedup.by}, captions from Jaccard {config.dedup.threshold}, pictures up to "
            f"{config.dedup.image_distance} PDQ bits",
            f"# balance     {config.balance.mode}: at most {config.balance.cap:,} pairs a query"
            + (" on average" if config.balance.mode == "metaclip" else ""),
            f"# shards      about {size} each, format version {FORMAT_VERSION}, in "
            f"{storage.join(config.run.out, 'shards')}",
        ]
    )

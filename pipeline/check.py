"""`--check`: what a run with this configuration would do. Reads listings, Parquet footers and the query list; touches nothing."""

import math

from pipeline.config import PipelineConfig
from pipeline.contracts import storage
from pipeline.contracts.schema import FORMAT_VERSION
from pipeline.crawl import img2dataset
from pipeline.match import load_queries
from pipeline.sources import rows
from pipeline.sources.files import expand


def describe(config: PipelineConfig) -> str:
    """The plan in lines for people. Raises InputError for what a run would stop at: missing sources, columns, or queries."""
    files = expand(config.sources)
    for file in files:
        rows.check(file, config.sources)
    rows.require_rows(files, config.sources)
    img2dataset.require()
    queries = load_queries(config.filter.queries)
    total_bytes = sum(storage.size(file.uri) for file in files)
    counts = [rows.count_rows(file, config.sources) for file in files if rows.is_cut(file)]
    units = sum(math.ceil(count / config.sources.rows_per_unit) for count in counts)
    whole = len(files) - len(counts)
    return "\n".join(
        [
            f"# sources     {len(files):,} files, {total_bytes:,} bytes; {sum(counts):,} rows in Parquet"
            + (f" and {whole:,} other files whose rows are counted when they are read" if whole else ""),
            f"# candidates  {units + whole:,} units of at most {config.sources.rows_per_unit:,} rows (other files are one each)",
            f"# filter      {len(queries.queries):,} queries, digest {queries.digest[:12]}",
            f"# precap      at most {config.precap.per_query:,} pairs a query go on to the crawl",
            f"# crawl       {config.crawl.units:,} units of whole hosts, {config.crawl.threads} fetches at once in each",
            f"# dedup       by {config.dedup.by}, captions from Jaccard {config.dedup.threshold}, pictures up to "
            f"{config.dedup.image_distance} PDQ bits",
            f"# balance     at most {config.balance.cap:,} pairs a query",
            f"# shards      about {config.shard.rows:,} rows each, format version {FORMAT_VERSION}, in "
            f"{storage.join(config.run.out, 'shards')}",
        ]
    )

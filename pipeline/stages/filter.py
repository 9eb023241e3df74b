"""filter: captions cleaned, judged by the quality rules, and matched against the query list."""

import functools

import pyarrow as pa

from pipeline.config import PipelineConfig
from pipeline.contracts.config import Json, semantic
from pipeline.contracts.errors import InputError
from pipeline.engine import Result, Run, Unit
from pipeline.match import Matcher, QueryList, load_queries
from pipeline.quality import QualityConfig, filter_rows
from pipeline.stages.common import Output, part_units, read_part, run_stage


def filter_by_queries(driver: Run, config: PipelineConfig, unique: Output, queries: QueryList) -> Output:
    """Units are the files of `exact`; the query list enters the digest by its content."""
    work = functools.partial(_filter, config.filter.queries, queries.digest, config.quality)
    read = functools.partial(read_part, driver.out, None)
    keys: Json = [queries.digest, semantic(config.quality)]
    return run_stage(driver, "filter", keys, [unique], part_units(unique), read, work, row_wise=True)


def _filter(uri: str, list_digest: str, quality: QualityConfig, table: pa.Table, unit: Unit) -> Result:
    return Result(*filter_rows(table, _matcher(uri, list_digest), quality))


@functools.lru_cache(maxsize=1)
def _matcher(uri: str, list_digest: str) -> Matcher:
    """Built once in a worker process, not once in a unit."""
    queries = load_queries(uri)
    if queries.digest != list_digest:
        raise InputError(f"{uri}: the query list changed while the pipeline ran; run again")
    return Matcher(queries.queries)

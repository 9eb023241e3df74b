"""filter: captions cleaned, judged by the quality rules, and matched against the query list."""

import functools

import pyarrow as pa

from pipeline.commit import Result, Unit
from pipeline.config import PipelineConfig
from pipeline.contracts.config import Json, semantic
from pipeline.engine import Run
from pipeline.match import Matcher, QueryList
from pipeline.quality import QualityConfig, filter_rows
from pipeline.stages.common import Output, part_units, read_part, run_stage


def filter_by_queries(driver: Run, config: PipelineConfig, unique: Output, queries: QueryList) -> Output:
    """Units are the files of `exact`; the query list enters the digest by its content.

    The matcher is built here and travels with the stage: Ray puts its tables into each node's shared memory once, and every task there
    reads the same bytes.
    """
    matcher = Matcher(queries.queries, config.filter.mode)
    read = functools.partial(read_part, driver.out, None)
    work = functools.partial(_filter, matcher, config.quality)
    keys: Json = [queries.digest, config.filter.mode, semantic(config.quality)]
    return run_stage(driver, "filter", keys, [unique], part_units(unique), read, work, version=2, row_wise=True)


def _filter(matcher: Matcher, quality: QualityConfig, table: pa.Table, unit: Unit) -> Result:
    return Result(*filter_rows(table, matcher, quality))

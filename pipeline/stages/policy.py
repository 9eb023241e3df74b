"""policy: fetched rows shown to the hooks of the configuration. What a hook is says pipeline/policy/hook.py."""

import functools
from collections.abc import Sequence

import pyarrow as pa

from pipeline.commit import Result, Unit
from pipeline.config import PipelineConfig
from pipeline.contracts.schema import INDEX_SCHEMA
from pipeline.engine import Run
from pipeline.policy import hook
from pipeline.policy.hook import PolicyConfig
from pipeline.stages.common import Output, part_units, read_part, run_stage


def apply_policy(driver: Run, config: PipelineConfig, fetched: Output) -> Output:
    """Units are the files of the crawl. Pictures are read only when a hook asks for them, and go no further."""
    found = [hook.load(one) for one in config.policy]
    pictures = ["image"] if any("image" in one.columns for one in found) else []
    return run_stage(
        driver,
        "policy",
        [hook.identity(settings, one) for settings, one in zip(config.policy, found, strict=True)],
        [fetched],
        part_units(fetched),
        functools.partial(read_part, driver.out, [*INDEX_SCHEMA.names, *pictures]),
        functools.partial(_judge, config.policy),
        row_wise=True,
    )


def _judge(configs: Sequence[PolicyConfig], table: pa.Table, unit: Unit) -> Result:
    kept, rejected = hook.judge(configs, table)
    return Result(kept.select(INDEX_SCHEMA.names), rejected)

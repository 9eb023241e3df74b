"""retry: rows of a committed crawl that failed for a reason which may have passed, fetched again as a new generation.

    python -m pipeline retry OUT --reason dns,timeout --check      # how many rows
    python -m pipeline retry OUT --reason dns,timeout

The configuration is the one that OUT/run.json remembers, so that the crawl is the same. pipeline/generations.py says what a generation is.
"""

from collections import Counter

import pyarrow as pa
import pydantic

from pipeline import generations, status
from pipeline.config import PipelineConfig
from pipeline.contracts import parquet, storage
from pipeline.contracts.config import StrictModel
from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import REJECTED_SCHEMA, Reason
from pipeline.generations import Request
from pipeline.records import Record
from pipeline.status import StageStatus


class RetryConfig(StrictModel):
    """What is fetched again."""

    reason: str
    """Reasons of rejection, with commas between them."""


def plan(out: str, reason: str) -> tuple[Request, int, dict[str, int]]:
    """(request, number of its generation, rows by reason). Raises InputError for what cannot be fetched again.

    A generation that was asked for and is not complete is the one to go on with, if the reasons are the same.
    """
    reasons = tuple(sorted({part.strip() for part in reason.split(",") if part.strip()}))
    known = {each.value for each in Reason}
    unknown = [each for each in reasons if each not in known]
    if unknown or not reasons:
        raise InputError(
            f"reason {reason!r}: {', '.join(map(repr, unknown)) or 'nothing'} is no reason; see pipeline status {out}"
        )
    stages = {stage.name: stage for stage in status.stages(out)}
    crawl = stages.get("crawl")
    if crawl is None or len(crawl.records) < crawl.units:
        raise InputError(f"{out}: its crawl is not complete; run the pipeline first, then retry")
    asked = generations.requests(out, crawl.folder)
    complete = [number for number in range(1, len(asked) + 1) if _is_complete(stages.get(f"retry-{number}"))]
    if len(complete) < len(asked):
        if asked[-1].reasons != reasons:
            raise InputError(
                f"{out}: generation {len(asked)} ({','.join(asked[-1].reasons)}) is not complete; finish it first: "
                f"python -m pipeline retry {out} --reason {','.join(asked[-1].reasons)}"
            )
        asked = asked[:-1]
    standing = _standing(
        out, crawl, [(stages[f"retry-{n}-rows"], stages[f"retry-{n}"]) for n in range(1, len(asked) + 1)]
    )
    rows = {each: standing[each] for each in reasons if standing[each]}
    if not rows:
        left = ", ".join(f"{number:,} {name}" for name, number in standing.most_common()) or "none"
        raise InputError(f"{out}: no row stands rejected as {','.join(reasons)}; those that do: {left}")
    return Request(reasons=reasons), len(asked) + 1, rows


def _is_complete(stage: StageStatus | None) -> bool:
    return stage is not None and len(stage.records) == stage.units


def _standing(out: str, crawl: StageStatus, later: list[tuple[StageStatus, StageStatus]]) -> Counter[str]:
    """Rows that stand rejected, by reason. Units of all generations have the same names."""
    counts: Counter[str] = Counter()
    for record in crawl.records:
        of_unit = [(_of(rows, record.unit), _of(again, record.unit)) for rows, again in later]
        tables = [
            (
                parquet.read(storage.join(out, rows.folder, asked.output.name), ["uid"]),
                _rejected(out, again, fetched),
            )
            for (rows, again), (asked, fetched) in zip(later, of_unit, strict=True)
        ]
        standing = generations.stands(_rejected(out, crawl, record), tables)
        counts.update(standing["reason"].to_pylist())
    return counts


def _of(stage: StageStatus, unit: str) -> Record:
    return next(record for record in stage.records if record.unit == unit)


def _rejected(out: str, stage: StageStatus, record: Record) -> pa.Table:
    if record.rejected_file is None:
        return REJECTED_SCHEMA.empty_table()
    return parquet.read(storage.join(out, stage.folder, record.rejected_file.name), ["uid", "reason"])


def describe(out: str, reason: str) -> str:
    """The plan in lines for people; touches nothing."""
    _, number, rows = plan(out, reason)
    told = ", ".join(f"{count:,} {name}" for name, count in rows.items())
    return f"# retry       {sum(rows.values()):,} rows ({told}) are fetched again as generation {number}; the crawl itself stays as it is"


def retry(out: str, reason: str) -> None:
    """Ask for the generation and fetch it. Raises InputError as `plan` does."""
    from pipeline import run  # Ray takes seconds to import: what the user has wrong is told before

    request, number, _ = plan(out, reason)
    config = configuration(out)
    crawl = next(stage for stage in status.stages(out) if stage.name == "crawl")
    if len(generations.requests(out, crawl.folder)) < number:
        generations.ask(out, crawl.folder, number, request)
    run.run(config, "crawl")


def configuration(out: str) -> PipelineConfig:
    """The configuration of the last run at `out`, whose place may have changed since. Raises InputError when this version cannot read
    it."""
    told = status.story(out).get("config")
    try:
        config = PipelineConfig.model_validate(told)
    except pydantic.ValidationError:
        raise InputError(
            f"{out}/run.json: its configuration is of another version; run the pipeline again with your file"
        ) from None
    return config.model_copy(update={"run": config.run.model_copy(update={"out": out})})

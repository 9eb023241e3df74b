"""What `python -m pipeline queries` says: with --check what it would do, and at the end what it did."""

import pydantic

from pipeline.contracts import storage
from pipeline.contracts.config import Json
from pipeline.queries import job
from pipeline.queries.config import QueriesConfig
from pipeline.queries.inputs import File, look


def describe(config: QueriesConfig) -> str:
    """The plan in lines for people. Raises InputError for what a run would stop at; touches nothing."""
    inputs = look(config)
    storage.require_folder(config.run.out)
    lines = []
    if config.wikipedia is not None:
        units = sum(-(-file.bytes // config.wikipedia.unit_bytes) for file in inputs.dumps)
        lines.append(
            _read("dumps", inputs.dumps, f"{units:,} units, {len(inputs.namespaces):,} namespaces besides articles")
        )
    if config.words is not None:
        lines.append(f"# words       seen at least {config.words.min_count:,} times, at most {config.words.cap:,}")
    if config.bigrams is not None:
        where = (
            f"PMI from {config.bigrams.min_pmi:g}"
            if config.bigrams.top_k is None
            else f"the {config.bigrams.top_k:,} of highest PMI"
        )
        lines.append(
            f"# bigrams     seen at least {config.bigrams.min_count:,} times, {where}, at most {config.bigrams.cap:,}"
        )
    if config.titles is not None:
        lines.append(_read("page views", inputs.pageviews, f"of {config.titles.project}"))
        resolved = "redirects resolved" if config.wikipedia else "redirects not resolved, because there is no dump"
        lines.append(f"# titles      from {config.titles.min_views:,} views, at most {config.titles.cap:,}; {resolved}")
    if config.wordnet is not None:
        lines.append(
            _read("wordnet", inputs.wordnet, f"{config.wordnet.lemmas} lemmas, at most {config.wordnet.cap:,}")
        )
    lines.append(
        f"# list        at most {config.list.limit:,} queries, in {storage.join(config.run.out, job.LIST_NAME)}.parquet"
    )
    return "\n".join(lines)


def _read(label: str, files: list[File], more: str) -> str:
    return f"# {label:<11} {len(files):,} files, {sum(file.bytes for file in files):,} bytes; {more}"


class _Told(pydantic.BaseModel):
    """The part of queries.json that people are shown."""

    queries: int
    digest: str
    sources: dict[str, dict[str, int]]
    bigrams: dict[str, Json]
    pages: dict[str, int]
    pageviews: dict[str, int]


def told(out: str) -> str:
    """The record of a list in lines for people."""
    record = _Told.model_validate_json(storage.read_bytes(storage.join(out, f"{job.LIST_NAME}.json")))
    lines = [
        f"{source:<12}{counts['kept']:>10,} of {counts['found']:,}" + _counts(counts, ("kept", "found"))
        for source, counts in record.sources.items()
    ]
    if record.bigrams:
        lines.append(
            f"bigrams were cut at PMI {record.bigrams['min_pmi']}, which is the top {record.bigrams['top_k']:,}"
        )
    lines += [
        f"{label}{_counts(counts)}"
        for label, counts in (("pages", record.pages), ("page-view lines", record.pageviews))
        if counts
    ]
    lines.append(f"{record.queries:,} queries, digest {record.digest[:12]}")
    return "\n".join(lines)


def _counts(counts: dict[str, int], without: tuple[str, ...] = ()) -> str:
    return "".join(f", {number:,} {name}" for name, number in counts.items() if number and name not in without)

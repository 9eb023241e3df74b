"""The stages in order: read this first.

    candidates   URL tables, web archives → (url, raw caption) rows with an identity; what is no http(s) URL or has no caption is rejected
    exact        the same (url, raw caption) once
    filter       caption cleaned, matched against the query list; every query it contains is recorded
    exact-url, exact-caption   the same URL, the same caption once, when dedup.exact says so
    precap       at most precap.per_query pairs a query go on: nothing is fetched that the cap would throw away
    crawl        units of whole hosts; every URL fetched once, decoded safely, resized, hashed
    policy       the operator's hooks refuse rows, when [[policy]] names any
    exact-source the same fetched bytes once, when dedup.exact says so
    dedup        near-equal pairs: blocks → verified edges → who stays for whom
    balance      at most balance.cap pairs a query, each pair counted for its rarest query (or drawn, with balance.mode = "metaclip")
    shards       survivors in uid order → Parquet shards with an index beside each, then the manifest

Each is a file in pipeline/stages: what its units are, what a unit reads, which pure function does the work. `engine.Run` does the
rest (resume, commit, accounting). What a stage writes lies under OUT/NAME/DIGEST, and the next one reads it from there: nothing but
names and counts passes through the driver.
"""

from collections.abc import Iterator, Sequence

from pipeline.config import PipelineConfig, identity
from pipeline.contracts import storage
from pipeline.contracts.config import digest_json
from pipeline.contracts.errors import InputError
from pipeline.crawl import stage as crawling
from pipeline.engine import Run
from pipeline.match import QueryList, load_queries
from pipeline.records import STAGES
from pipeline.sources import rows
from pipeline.sources.files import SourceFile, expand
from pipeline.stages.candidates import candidates, exact, look
from pipeline.stages.cap import at_most, query_sources
from pipeline.stages.common import Output
from pipeline.stages.crawl import crawl
from pipeline.stages.draw import draw
from pipeline.stages.duplicates import remove_duplicates
from pipeline.stages.exact_keys import exact_key
from pipeline.stages.filter import filter_by_queries
from pipeline.stages.policy import apply_policy
from pipeline.stages.shards import publish, shards


def stages_of(config: PipelineConfig) -> tuple[str, ...]:
    """The stages that a configuration has: those of STAGES that it does not leave out."""
    optional = {f"exact-{key}": key in config.dedup.exact for key in ("url", "caption", "source")}
    optional["policy"] = bool(config.policy)
    return tuple(name for name in STAGES if optional.get(name, True))


def run(config: PipelineConfig, until: str = STAGES[-1]) -> str:
    """Run the stages up to `until`, skipping what is done. Returns the folder of the last stage, or the manifest's URI.

    Raises InputError when the configuration has no stage of that name.
    """
    # What a user may have got wrong is looked at before Ray takes its seconds to start.
    require_stage(config, until)
    files = expand(config.sources)
    rows.require_rows(files, config.sources)
    if STAGES.index(until) >= STAGES.index("crawl"):
        crawling.require(config.crawl)
    queries = load_queries(config.filter.queries, config.filter.mode)
    made_from = identity(config)
    with Run(config.run.out, config.engine, config.model_dump(mode="json"), digest_json(made_from)) as driver:
        outputs: dict[str, Output] = {}
        for name, output in zip(stages_of(config), _outputs(driver, config, files, queries), strict=False):
            outputs[name] = output
            if name == until:
                break
        if until == "shards":
            return publish(driver, made_from, queries, outputs)
        return storage.join(config.run.out, outputs[until].folder)


def require_stage(config: PipelineConfig, name: str) -> None:
    """Raises InputError when the configuration leaves the stage out."""
    if name not in stages_of(config):
        key = "[[policy]]" if name == "policy" else f"dedup.exact = [{name.removeprefix('exact-')!r}]"
        raise InputError(f"{name}: this configuration has no such stage; add {key}, or name another stage")


def _outputs(driver: Run, config: PipelineConfig, files: Sequence[SourceFile], queries: QueryList) -> Iterator[Output]:
    """The stages, one after the other; the caller may stop after any of them."""
    seed, exact_keys = config.run.seed, config.dedup.exact
    sources = look(driver, config, files)
    yield (found := candidates(driver, config, sources))
    yield (unique := exact(driver, found))
    yield (matched := filter_by_queries(driver, config, unique, queries))
    if "url" in exact_keys:
        yield (matched := exact_key(driver, config, "url", matched))
    if "caption" in exact_keys:
        yield (matched := exact_key(driver, config, "caption", matched))
    if config.balance.mode == "metaclip":
        wanted, odds = draw(driver, "precap", config.precap.per_query, seed, matched, queries)
    else:
        wanted, odds = at_most(driver, "precap", config.precap.per_query, seed, matched, queries), None
    yield wanted
    yield (fetched := crawl(driver, config, sources, wanted))
    allowed = fetched
    if config.policy:
        yield (allowed := apply_policy(driver, config, fetched))
    if "source" in exact_keys:
        yield (allowed := exact_key(driver, config, "source", allowed))
    yield (distinct := remove_duplicates(driver, config, allowed))
    origins = query_sources(config.filter.queries, queries)
    if odds is not None:
        balanced = draw(driver, "balance", config.balance.cap, seed, distinct, queries, odds, origins).kept
    else:
        balanced = at_most(driver, "balance", config.balance.cap, seed, distinct, queries, origins)
    yield balanced
    yield shards(driver, config, balanced, fetched)

"""The stages in order: read this first.

    candidates   URL tables, web archives → (url, raw caption) rows with an identity; what is no http(s) URL or has no caption is rejected
    exact        the same (url, raw caption) once
    filter       caption cleaned, matched against the query list; every query it contains is recorded
    precap       at most precap.per_query pairs a query go on: nothing is fetched that the cap would throw away
    crawl        units of whole hosts; every URL fetched once, decoded safely, resized, hashed
    dedup        near-equal pairs: blocks → verified edges → who stays for whom
    balance      at most balance.cap pairs a query, each pair counted for its rarest query
    shards       survivors in uid order → Parquet shards with an index beside each, then the manifest

Each is a file in pipeline/stages: what its units are, what a unit reads, which pure function does the work. `engine.Run` does the
rest (resume, commit, accounting). What a stage writes lies under OUT/NAME/DIGEST, and the next one reads it from there: nothing but
names and counts passes through the driver.
"""

from collections.abc import Iterator, Sequence

from pipeline.config import PipelineConfig
from pipeline.contracts import storage
from pipeline.contracts.config import digest
from pipeline.crawl import img2dataset
from pipeline.engine import Run
from pipeline.match import QueryList, load_queries
from pipeline.sources import rows
from pipeline.sources.files import SourceFile, expand
from pipeline.stages.candidates import candidates, exact
from pipeline.stages.cap import at_most
from pipeline.stages.common import Output
from pipeline.stages.crawl import crawl
from pipeline.stages.duplicates import remove_duplicates
from pipeline.stages.filter import filter_by_queries
from pipeline.stages.shards import publish, shards

STAGES = ("candidates", "exact", "filter", "precap", "crawl", "dedup", "balance", "shards")
"""The stages whose rows are pairs, in order; each has its line in the manifest's accounting."""


def run(config: PipelineConfig, until: str = STAGES[-1]) -> str:
    """Run the stages up to `until`, skipping what is done. Returns the folder of the last stage, or the manifest's URI."""
    # What a user may have got wrong is looked at before Ray takes its seconds to start.
    files = expand(config.sources)
    rows.require_rows(files, config.sources)
    if STAGES.index(until) >= STAGES.index("crawl"):
        img2dataset.require()
    queries = load_queries(config.filter.queries)
    with Run(config.run.out, config.engine, config.model_dump(mode="json"), digest(config)) as driver:
        outputs: dict[str, Output] = {}
        for name, output in zip(STAGES, _outputs(driver, config, files, queries), strict=False):
            outputs[name] = output
            if name == until:
                break
        if until == "shards":
            return publish(driver, config, queries, outputs)
        return storage.join(config.run.out, outputs[until].folder)


def _outputs(driver: Run, config: PipelineConfig, files: Sequence[SourceFile], queries: QueryList) -> Iterator[Output]:
    """The stages, one after the other; the caller may stop after any of them."""
    yield (found := candidates(driver, config, files))
    yield (unique := exact(driver, found))
    yield (matched := filter_by_queries(driver, config, unique, queries))
    yield (wanted := at_most(driver, "precap", config.precap.per_query, config.run.seed, matched, queries))
    yield (fetched := crawl(driver, config, wanted))
    yield (distinct := remove_duplicates(driver, config, fetched))
    yield (balanced := at_most(driver, "balance", config.balance.cap, config.run.seed, distinct, queries))
    yield shards(driver, config, balanced, fetched)

"""The steps before the crawl as functions: counts of domains, over parts of which some are empty."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.commit import Unit
from pipeline.config import PipelineConfig
from pipeline.contracts import parquet
from pipeline.stages.common import read_all
from pipeline.stages.crawl import _domains, _plan_hosts

UNIT = Unit("all")


def test_pictures_without_hashes_cannot_be_compared() -> None:
    tables = {"run": {"out": "x"}, "sources": {"paths": ["x"]}, "filter": {"queries": "x"}}
    off = {"perceptual_hashes": False}
    with pytest.raises(ValueError, match=r"set dedup\.by=caption"):
        PipelineConfig.model_validate({**tables, "crawl": off})
    assert not PipelineConfig.model_validate(
        {**tables, "crawl": off, "dedup": {"by": "caption"}}
    ).crawl.perceptual_hashes


def test_a_part_without_rows_is_a_part(tmp_path: Path) -> None:
    """A cap may leave nothing of a file; its counts are read with those of the others, first, last or alone."""
    full, empty = ["http://a.org/1", "http://a.org/2", "http://a.org/3", "http://b.org/1"], list[str]()
    for parts, ways in (([full, empty], 2), ([empty, full], 2), ([empty], 0), ([empty, full, full], 2)):
        names = []
        for number, urls in enumerate(parts):
            counts = _domains(pa.table({"url": pa.array(urls, pa.string())}), UNIT).rows
            names.append(parquet.commit(counts, str(tmp_path), f"{len(parts)}-{number}").name)
        planned = _plan_hosts(2, 2, read_all(str(tmp_path), names, UNIT), UNIT).rows
        assert planned.to_pylist() == ([{"domain": "a.org", "ways": ways}] if ways else [])

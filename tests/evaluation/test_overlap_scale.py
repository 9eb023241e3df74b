"""The join over a generated corpus finds what was planted, all of it and nothing else; small here, larger under `prove`."""

from pathlib import Path

import pyarrow as pa
import pytest

from evaluation.config import Thresholds
from evaluation.overlap.join import EvalCodes, join_shard
from evaluation.overlap.tables import INDEX_COLUMNS
from pipeline.contracts import manifest, merkle, parquet
from tests.benchmarks import overlap_scale
from tests.benchmarks.data import overlap_corpus
from tests.benchmarks.data.overlap_corpus import MATCHES, PAIR_COLUMNS, SETS
from tests.e2e import pipelines


def test_a_small_corpus(tmp_path: Path) -> None:
    ours = overlap_corpus.codes(3000)
    written = [overlap_corpus.write_shard(str(tmp_path), number, 6000, ours) for number in range(2)]
    overlap_corpus.write_manifest(str(tmp_path / "manifest.json"), written)
    corpus = manifest.load(str(tmp_path))
    tables = [parquet.read(manifest.index_uri(str(tmp_path), shard)) for shard in corpus.shards]
    rows = pa.concat_tables(tables)
    assert corpus.content_root == merkle.merkle_root(manifest.leaves(rows))
    uids = rows["uid"].to_pylist()
    assert uids == sorted(set(uids))
    codes = EvalCodes(SETS, ours.tables())
    for one, index in zip(written, tables, strict=True):
        found = join_shard(index.select(INDEX_COLUMNS), one.shard.path, codes, [Thresholds()] * 2).pairs
        assert found.select(PAIR_COLUMNS).sort_by("row").equals(one.pairs)
        assert set(found["method"].to_pylist()) == set(MATCHES)
        assert index["pdq256"].null_count == one.hashless == 30


def test_a_shard_depends_on_its_number_alone(tmp_path: Path) -> None:
    ours = overlap_corpus.codes(100)
    first, again, other = (overlap_corpus.write_shard(str(tmp_path), number, 500, ours) for number in (3, 3, 4))
    assert first.shard == again.shard
    assert first.shard.sha256 != other.shard.sha256


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_as_the_job_does_it_and_after_a_kill(tmp_path: Path) -> None:
    """200,000 rows through the engine: what was planted, within the memory of the bar; killed and resumed, the same bytes."""
    corpus, rows = tmp_path / "corpus", 200_000
    written = overlap_scale.generate(corpus, [rows], 20_000, overlap_corpus.codes(20_000))
    with pipelines.ray_folder() as ray:
        bench = overlap_scale.Bench(corpus, ray, written)
        found = bench.measure(rows, tmp_path / "whole")
        assert found.missed() == []
        assert found.pairs == sum(one.pairs.num_rows for one in written) > 400
        committed = bench.kill_and_resume(rows, tmp_path / "killed")
    assert 5 <= committed < 10
    assert overlap_scale.data(tmp_path / "killed") == overlap_scale.data(tmp_path / "whole")

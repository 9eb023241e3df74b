"""Where the ledger's sources come from: a query list of every form that has one, or none. And that the steps over all files read them one
after the other."""

import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import balance
from pipeline.commit import Unit
from pipeline.match import load_queries
from pipeline.stages import cap as capping
from pipeline.stages.cap import query_sources

FILES, ROWS = 60, 4_000


def _memory_of_reading_heads(folder: str, names: list[str], cap: int) -> tuple[pa.Table, int]:
    """The merged heads, and the bytes Arrow held at most; for a process of its own, which has taken none before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capping, "_KEYS_AT_ONCE", ROWS)
        found = capping._read_heads(folder, names, cap, Unit("00000", (), {"partition": 0}))
    return found, pa.default_memory_pool().max_memory()


def test_heads_are_merged_a_file_at_a_time(tmp_path: Path) -> None:
    """What is held is what is left of all files, twice, and not the files."""
    random_ = random.Random(51)
    cap, names = 20, []
    everything: dict[int, list[bytes]] = {}
    for number in range(FILES):
        rows = sorted((random_.randrange(100), random_.randbytes(16)) for _ in range(ROWS))
        for query, key in rows:
            everything.setdefault(query, []).append(key)
        names.append(f"{number}.parquet")
        columns = [pa.array([0] * ROWS, pa.int32()), pa.array([query for query, _ in rows], pa.int32()),
                   pa.array([key for _, key in rows], pa.binary(16))]  # fmt: skip
        schema = pa.schema([pa.field("partition", pa.int32(), nullable=False), *balance.HEAD_SCHEMA])
        pq.write_table(pa.table(columns, schema=schema), tmp_path / names[-1])
    truth = [(query, key) for query in sorted(everything) for key in sorted(everything[query])[:cap]]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found, most = process.submit(_memory_of_reading_heads, str(tmp_path), names, cap).result()
    assert list(zip(found["query_id"].to_pylist(), found["key"].to_pylist(), strict=True)) == truth
    assert 0 < most < 24 * FILES * ROWS / 4


def test_counts_are_added_up_a_file_at_a_time(tmp_path: Path) -> None:
    random_ = random.Random(52)
    total, names = [0] * 3 * ROWS, []
    for number in range(FILES):
        ids = sorted(random_.sample(range((number + 1) * 3 * ROWS // FILES), 3 * number))
        for query in ids:
            total[query] += query + number + 1
        names.append(f"{number}.parquet")
        counts = pa.array([query + number + 1 for query in ids], pa.int64())
        pq.write_table(pa.table([pa.array(ids, pa.int32()), counts], schema=capping.COUNT_SCHEMA), tmp_path / names[-1])
    found = capping._read_sum(str(tmp_path), names, Unit("all"))
    assert dict(zip(*found.to_pydict().values(), strict=True)) == {n: count for n, count in enumerate(total) if count}
    assert capping._read_sum(str(tmp_path), names[:1], Unit("all")).equals(capping.COUNT_SCHEMA.empty_table())


def test_a_text_list_has_no_sources(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("dog\ncat\n")
    assert query_sources(str(tmp_path / "q.txt"), load_queries(str(tmp_path / "q.txt"))) == [None, None]


@pytest.mark.parametrize("name", ["query", "text"])
def test_a_parquet_list_gives_each_kept_query_its_own_source(tmp_path: Path, name: str) -> None:
    """What load_queries leaves out (repetitions, nulls, queries without letters) shifts nothing."""
    place = str(tmp_path / "q.parquet")
    columns = {
        name: [" dog ", "...", "Dog", None, "cat", "emu"],
        "source": ["words", "x", "titles", "x", "bigrams", None],
    }
    pq.write_table(pa.table(columns), place)
    queries = load_queries(place)
    assert queries.queries == ["dog", "cat", "emu"]
    assert query_sources(place, queries) == ["words", "bigrams", None]


def test_several_sources_of_a_query_are_told_together(tmp_path: Path) -> None:
    place = str(tmp_path / "q.parquet")
    pq.write_table(pa.table({"query": ["dog", "cat"], "source": [["words", "wordnet"], ["titles"]]}), place)
    assert query_sources(place, load_queries(place)) == ["words, wordnet", "titles"]


def test_a_parquet_list_without_that_column_has_no_sources(tmp_path: Path) -> None:
    place = str(tmp_path / "q.parquet")
    pq.write_table(pa.table({"query": ["dog"]}), place)
    assert query_sources(place, load_queries(place)) == [None]

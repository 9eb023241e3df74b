"""Where the ledger's sources come from: a query list of every form that has one, or none."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.match import load_queries
from pipeline.stages.cap import query_sources


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

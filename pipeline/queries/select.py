"""Candidates of all sources → the query list: ordered, each query once, cut to size, and every one that is left out counted.

The order is (source, score from high to low, text). Two queries are the same when their normal forms are: they would match the same
captions and share one cap. The first source that has a query keeps it, and the later ones are recorded beside it. No random choice,
no clock: the same candidates give the same list.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.content.text import normal_form
from pipeline.queries.config import BigramsConfig, ListConfig
from pipeline.queries.ngrams import pmi

LIST_SCHEMA = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("also", pa.string(), nullable=False),
        pa.field("count", pa.int64()),
        pa.field("pmi", pa.float64()),
        pa.field("views", pa.int64()),
    ]
)
"""The query list. `score` is the source's own: count of a word, PMI of a bigram, views of a title, synsets of a lemma. `also`: the later
sources that have the query too, with a space between. `count`, `pmi` and `views` are null where no source says."""


class Candidate(NamedTuple):
    """What a source offers; `values` are the columns count, pmi and views as far as it knows them."""

    query: str
    score: float
    values: Mapping[str, float]


class Outcome(NamedTuple):
    """What became of a source's candidates; the sum of the others is `found`."""

    found: int = 0
    kept: int = 0
    too_long: int = 0
    unlettered: int = 0  # nothing but punctuation is left in normal form
    repeated: int = 0  # in an earlier source, or written otherwise in the same one
    over_cap: int = 0
    over_limit: int = 0


def build(
    sources: Mapping[str, Sequence[Candidate]], caps: Mapping[str, int], config: ListConfig
) -> tuple[pa.Table, dict[str, Outcome]]:
    """The list (LIST_SCHEMA) and what became of each source's candidates. `sources` are in the order of the list."""
    kept: dict[str, dict[str, object]] = {}
    outcomes = {}
    for source, candidates in sources.items():
        counts = dict.fromkeys(Outcome._fields, 0)
        for candidate in sorted(candidates, key=lambda one: (-one.score, one.query)):
            counts["found"] += 1
            form = normal_form(candidate.query)
            if len(candidate.query) > config.max_chars:
                counts["too_long"] += 1
            elif not form.strip("&%+# "):
                counts["unlettered"] += 1
            elif form in kept:
                counts["repeated"] += 1
                _note(kept[form], source, candidate)
            elif counts["kept"] == caps[source]:
                counts["over_cap"] += 1
            elif len(kept) == config.limit:
                counts["over_limit"] += 1
            else:
                counts["kept"] += 1
                kept[form] = {"query": candidate.query, "source": source, "score": candidate.score, "also": ""}
                kept[form] |= candidate.values
        outcomes[source] = Outcome(**counts)
    return pa.Table.from_pylist(list(kept.values()), schema=LIST_SCHEMA), outcomes


def _note(row: dict[str, object], source: str, candidate: Candidate) -> None:
    """A later source has the query too."""
    names = str(row["also"]).split()
    if source not in (row["source"], *names):
        row["also"] = " ".join([*names, source])
        for name, value in candidate.values.items():
            row.setdefault(name, value)


# ---- what the sources offer


def word_candidates(counted: pa.Table, min_count: int) -> list[Candidate]:
    """Of rows (key, count), words and bigrams, the words seen often enough."""
    words = counted.filter(pc.invert(pc.match_substring(counted["key"], " ")))
    return list(_counted(words.filter(pc.greater_equal(words["count"], min_count)), "count"))


def title_candidates(views: pa.Table) -> list[Candidate]:
    """Of rows (key, count): titles and their views."""
    return list(_counted(views, "views"))


def lemma_candidates(lemmas: Mapping[str, int]) -> list[Candidate]:
    return [Candidate(lemma, float(synsets), {}) for lemma, synsets in lemmas.items()]


def _counted(table: pa.Table, column: str) -> Iterator[Candidate]:
    for key, count in zip(table["key"].to_pylist(), table["count"].to_pylist(), strict=True):
        yield Candidate(key, float(count), {column: count})


class Cut(NamedTuple):
    """Where the bigrams were cut, in both ways of saying it: how many, and the lowest PMI among them (None when there are none).
    `counted` is the number of those seen often enough."""

    counted: int
    top_k: int
    min_pmi: float | None


def bigram_candidates(counted: pa.Table, tokens: int, config: BigramsConfig) -> tuple[list[Candidate], Cut]:
    """Of rows (key, count) the bigrams above the threshold. `tokens` is the N of PMI. Every word of a bigram is among the rows."""
    is_bigram = pc.match_substring(counted["key"], " ")
    words = counted.filter(pc.invert(is_bigram)).combine_chunks()
    pairs = counted.filter(is_bigram)
    pairs = pairs.filter(pc.greater_equal(pairs["count"], config.min_count)).combine_chunks()
    if not pairs.num_rows:
        return [], Cut(0, 0, None)
    split = pc.split_pattern(pairs["key"], " ").combine_chunks()
    first, second = (
        words["count"].take(pc.index_in(pc.list_element(split, place), words["key"].combine_chunks())).to_numpy()
        for place in (0, 1)
    )
    scores = pmi(pairs["count"].to_numpy(), first, second, tokens)
    # By PMI from high to low, then by text: lexsort's last key leads.
    order = np.lexsort((_ranks(pairs["key"]), -scores))
    number = len(order) if config.top_k is None else min(config.top_k, len(order))
    if config.min_pmi is not None:
        number = int((scores >= config.min_pmi).sum())
    chosen = order[:number]
    taken = pairs.take(pa.array(chosen))
    rows = zip(taken["key"].to_pylist(), taken["count"].to_pylist(), scores[chosen].tolist(), strict=True)
    candidates = [Candidate(key, score, {"count": count, "pmi": score}) for key, count, score in rows]
    return candidates, Cut(len(order), number, candidates[-1].score if candidates else None)


def _ranks(keys: pa.ChunkedArray) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    ranks: np.ndarray[tuple[int], np.dtype[np.int64]] = np.empty(len(keys), np.int64)
    ranks[pc.sort_indices(keys).to_numpy()] = np.arange(len(keys))
    return ranks

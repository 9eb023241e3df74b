"""Candidates to the list: order, each query once, cuts, and everything accounted for."""

import itertools
import math
import random
from collections import Counter

import pyarrow as pa
import pytest

from pipeline.content.text import normal_form
from pipeline.queries.config import BigramsConfig, ListConfig
from pipeline.queries.counting import COUNT_SCHEMA, Counts, partition_of, summed
from pipeline.queries.select import Candidate, Outcome, bigram_candidates, build, word_candidates


def counted(counts: Counter[str]) -> pa.Table:
    return summed(pa.table([list(counts), list(counts.values())], schema=COUNT_SCHEMA))


def words(*pairs: tuple[str, float]) -> list[Candidate]:
    return [Candidate(query, score, {"count": int(score)}) for query, score in pairs]


def test_each_query_once_and_the_later_sources_beside_it() -> None:
    sources = {
        "words": words(("dog", 5), ("cat", 9), ("ant", 5)),
        "titles": [Candidate("Dog", 70.0, {"views": 70}), Candidate("St. Louis", 80.0, {"views": 80}), Candidate("DOG", 6.0, {"views": 6})],
        "wordnet": [Candidate("st louis", 1.0, {}), Candidate("dog", 7.0, {}), Candidate("&", 1.0, {}), Candidate("!?", 1.0, {})],
    }  # fmt: skip
    rows, outcomes = build(sources, dict.fromkeys(sources, 10), ListConfig())
    assert rows.select(["query", "source", "score", "also", "count", "views"]).to_pylist() == [
        {"query": "cat", "source": "words", "score": 9.0, "also": "", "count": 9, "views": None},
        {"query": "ant", "source": "words", "score": 5.0, "also": "", "count": 5, "views": None},
        {"query": "dog", "source": "words", "score": 5.0, "also": "titles wordnet", "count": 5, "views": 70},
        {"query": "St. Louis", "source": "titles", "score": 80.0, "also": "wordnet", "count": None, "views": 80},
    ]
    assert outcomes["titles"] == Outcome(found=3, kept=1, repeated=2)
    assert outcomes["wordnet"] == Outcome(found=4, repeated=2, unlettered=2)


def test_caps_and_the_limit_are_counted() -> None:
    sources = {
        "words": words(("a", 9), ("b", 8), ("c", 7), ("long" * 70, 9)),
        "wordnet": words(("c", 3), ("d", 2), ("e", 1)),
    }
    rows, outcomes = build(sources, {"words": 2, "wordnet": 10}, ListConfig(limit=3))
    assert rows["query"].to_pylist() == ["a", "b", "c"]  # what one source's cap cuts, another may bring
    assert rows["source"].to_pylist() == ["words", "words", "wordnet"]
    assert outcomes["words"] == Outcome(found=4, kept=2, too_long=1, over_cap=1)
    assert outcomes["wordnet"] == Outcome(found=3, kept=1, over_limit=2)


def test_the_order_of_the_candidates_does_not_matter() -> None:
    dice = random.Random(3)
    names = ["Dog", "dog", "DOG!", "a b", "a-b", "", "+", "é", "e\u0301", *(f"w{number}" for number in range(60))]
    sources = {name: words(*((query, dice.randrange(3)) for query in names)) for name in ("words", "titles")}
    caps = {"words": 30, "titles": 100}
    first, outcomes = build(sources, caps, ListConfig(limit=55))
    for _ in range(5):
        shuffled = {name: dice.sample(list(found), len(found)) for name, found in sources.items()}
        assert build(shuffled, caps, ListConfig(limit=55)) == (first, outcomes)
    forms = [normal_form(query) for query in first["query"].to_pylist()]
    assert len(set(forms)) == len(forms) == 55
    for outcome in outcomes.values():
        assert outcome.found == sum(outcome) - outcome.found == len(names)


# ---- bigrams


def corpus() -> tuple[Counter[str], int]:
    dice = random.Random(21)
    text = [dice.choice("abcdefgh") + dice.choice("xyz") for _ in range(4000)]
    return Counter(text) + Counter(map(" ".join, itertools.pairwise(text))), len(text)


def naive(counts: Counter[str], tokens: int, at_least: int) -> list[tuple[float, str]]:
    """(PMI, bigram) from high to low, then by text."""
    found = []
    for pair, count in counts.items():
        if " " in pair and count >= at_least:
            one, other = pair.split()
            found.append((round(math.log2(count * tokens / (counts[one] * counts[other])), 6), pair))
    return sorted(found, key=lambda entry: (-entry[0], entry[1]))


@pytest.mark.parametrize("at_least", [1, 6, 9, 1000])
@pytest.mark.parametrize("top_k", [1, 40, 100_000])
def test_bigrams_by_number_are_those_of_a_naive_twin(at_least: int, top_k: int) -> None:
    counts, tokens = corpus()
    truth = naive(counts, tokens, at_least)
    found, cut = bigram_candidates(counted(counts), tokens, BigramsConfig(min_count=at_least, top_k=top_k))
    assert [(one.score, one.query) for one in found] == truth[:top_k]
    assert all(one.values == {"count": counts[one.query], "pmi": one.score} for one in found)
    assert cut == (len(truth), min(top_k, len(truth)), truth[:top_k][-1][0] if truth else None)


def test_a_threshold_and_the_number_it_amounts_to_are_one_cut() -> None:
    counts, tokens = corpus()
    by_pmi, cut = bigram_candidates(counted(counts), tokens, BigramsConfig(min_count=6, min_pmi=0.25))
    assert by_pmi
    assert all(one.score >= 0.25 for one in by_pmi)
    assert len(by_pmi) == cut.top_k == sum(score >= 0.25 for score, _ in naive(counts, tokens, 6))
    by_number, same = bigram_candidates(counted(counts), tokens, BigramsConfig(min_count=6, top_k=cut.top_k))
    assert (by_number, same) == (by_pmi, cut)


def test_words_are_what_has_no_space() -> None:
    counts, _ = corpus()
    found = {one.query: one.score for one in word_candidates(counted(counts), 160)}
    assert found == {key: count for key, count in counts.items() if " " not in key and count >= 160}


# ---- sums


def test_counts_that_were_emptied_often_are_one_sum_in_partitions() -> None:
    dice, truth, counts = random.Random(2), Counter[str](), Counts()
    for _ in range(20):
        part = Counter(f"text {dice.randrange(300)}" for _ in range(100))
        truth += part
        counts.empty(part)
        assert not part
    table = counts.partitioned(7)
    rows = [(row["partition"], row["key"], row["count"]) for row in table.to_pylist()]
    assert rows == sorted((partition_of(key, 7), key, count) for key, count in truth.items())
    assert len({partition for partition, _, _ in rows}) == 7

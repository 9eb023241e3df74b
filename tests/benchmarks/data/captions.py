"""Captions and a query list for the benchmarks of matching and of signatures: real ones where the real data is, else generated ones.

The list has half a million queries: every word of the captions, the bigrams that stand there three times or more, and pairs of words that
stand nowhere, as most of a list does not stand in any one table.
"""

import collections
import csv
import gzip
import itertools
import os
import random
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.content.text import normal_form
from tests.web import scenes

REAL_DATA = Path(os.environ.get("REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))
QUERIES = 500_000


def captions() -> list[str]:
    """Distinct captions in a fixed random order: 72,000 real ones (LAION, COCO, Conceptual Captions, Tate), or as many generated ones."""
    tables = REAL_DATA / "tables"
    found: set[str] = set()
    if tables.exists():
        found.update(pq.read_table(tables / "laion_10k.parquet", columns=["TEXT"])["TEXT"].drop_null().to_pylist())
        coco = pq.read_table(tables / "coco_val2017_captions.parquet", columns=["caption"])
        found.update(coco["caption"].drop_null().to_pylist())
        for name, column in (("cc3m_val.tsv.gz", 0), ("tate_30k.tsv.gz", 1)):
            with gzip.open(tables / name, "rt", encoding="utf-8", newline="") as text:
                rows = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
                found.update(row[column] for row in rows if len(row) > column)
    else:
        for number in range(36_000):
            scene = scenes.scene(1, number)
            found |= {scene.caption, scene.second_caption}
    ordered = sorted(text for text in found if text)
    random.Random(1).shuffle(ordered)
    return ordered


def queries(texts: list[str]) -> list[str]:
    """Half a million queries, distinct in normal form, in a fixed order."""
    words: collections.Counter[str] = collections.Counter()
    pairs: collections.Counter[str] = collections.Counter()
    for text in texts:
        found = normal_form(text).split()
        words.update(found)
        pairs.update(" ".join(pair) for pair in itertools.pairwise(found))
    kept = dict.fromkeys(sorted(words))
    kept |= dict.fromkeys(sorted(pair for pair, count in pairs.items() if count >= 3))
    draws, known = random.Random(2), sorted(words)
    while len(kept) < QUERIES:
        kept.setdefault(" ".join(draws.choices(known, k=draws.choice((2, 2, 3)))))
    chosen = list(kept)[:QUERIES]
    draws.shuffle(chosen)
    return chosen

"""Exact keys against a naive twin: the same rows stay for any files and partitions, each with the representative of the smallest key."""

import hashlib
import random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline.content.text import normal_form
from pipeline.contracts.schema import choice_key, uid
from pipeline.dedup import exact_keys
from pipeline.dedup.exact_keys import ExactKey

SEED = 17
WORDS = ["a dog", "A DOG!", "a cat", "dog", "...", "Straße", "strasse", ""]


def table(rows: int) -> pa.Table:
    draws = random.Random(2)
    urls = [f"http://e.org/{draws.randint(0, rows // 2)}" for _ in range(rows)]
    shas = [
        hashlib.sha256(b"%d" % draws.randint(0, rows)).digest() if draws.random() < 0.9 else None for _ in range(rows)
    ]
    return pa.table(
        {
            "uid": pa.array([uid(url, str(n)) for n, url in enumerate(urls)], pa.binary(16)),
            "url": urls,
            "caption": [f"{draws.choice(WORDS)}{draws.choice(['', ' 1', ' 2'])}" for _ in urls],
            "source_sha256": pa.array(shas, pa.binary(32)),
        }
    )


def naive(rows: pa.Table, by: ExactKey) -> dict[bytes, bytes]:
    """uid → the uid that stays for it."""
    groups: dict[str | bytes, list[bytes]] = {}
    for row in rows.to_pylist():
        key = {"url": row["url"], "caption": normal_form(row["caption"]), "source": row["source_sha256"]}[by]
        if key:
            groups.setdefault(key, []).append(row["uid"])
    gone: dict[bytes, bytes] = {}
    for group in groups.values():
        first = min(group, key=lambda one: choice_key(one, SEED, f"exact-{by}"))
        gone |= {one: first for one in group if one != first}
    return gone


@pytest.mark.parametrize("by", ["url", "caption", "source"])
@pytest.mark.parametrize(("files", "partitions"), [(1, 1), (4, 3), (7, 50)])
def test_equals_the_naive_twin_in_any_partitioning(by: ExactKey, files: int, partitions: int) -> None:
    rows = table(600)
    truth = naive(rows, by)
    cuts = np.array_split(np.random.default_rng(1).permutation(600), files)
    parts = [rows.take(pa.array(np.sort(cut))) for cut in cuts]
    keys = pa.concat_tables([exact_keys.keys(part, by, partitions, number) for number, part in enumerate(parts)])
    gone = pa.concat_tables(
        [
            exact_keys.repeated(keys.filter(pc.equal(keys["partition"], number)), by, SEED)
            for number in range(partitions)
        ]
    )
    found = dict(zip(gone["uid"].to_pylist(), gone["representative"].to_pylist(), strict=True))
    assert found == truth
    assert len(truth) > 50
    for number, part in enumerate(parts):
        mine = gone.filter(pc.equal(gone["partition"], number))
        kept, rejected = exact_keys.drop(part, mine, by)
        assert kept["uid"].to_pylist() == [one for one in part["uid"].to_pylist() if one not in truth]
        assert set(rejected["reason"].to_pylist()) == {f"duplicate_{by}"}
        assert {row["uid"]: row["detail"] for row in rejected.to_pylist()} == {
            one: f"{truth[one].hex()} stays" for one in part["uid"].to_pylist() if one in truth
        }


def test_no_rows() -> None:
    keys = exact_keys.keys(table(3).slice(0, 0), "url", 4, 0)
    assert exact_keys.repeated(keys, "url", SEED).num_rows == 0

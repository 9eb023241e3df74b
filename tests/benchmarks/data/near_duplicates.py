"""Generated rows in which near-duplicates are planted, a file at a time.

A tenth of the rows have a partner, whose caption is the first one's with words exchanged until their similarity (Jaccard, over the
shingles of content.text, computed here with Python's sets) falls where a die says between 0.5 and 1. In mode `pair` the partner's picture
hash differs in up to 31 bits, or in half of all bits for one partner in five, which must stay. One row in two hundred is captioned "logo"
and has a picture of its own, so that a block is hot.
"""

import functools
import random
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.content.text import shingles
from pipeline.contracts.schema import SHARD_SCHEMA, uid

ROWS_PER_FILE = 25_000
SEED = 11


class Planted(NamedTuple):
    """Two rows that resemble each other by design."""

    first: bytes
    second: bytes
    similarity: float
    distance: int


class Rows(NamedTuple):
    table: pa.Table
    planted: list[Planted]
    logos: list[bytes]
    """The rows captioned "logo"."""


@functools.lru_cache(maxsize=1)
def _vocabulary() -> tuple[list[str], list[float]]:
    """60,000 words of two to four syllables, and cumulated weights after Zipf."""
    draws = random.Random(3)
    syllables = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "s")]
    words = list(dict.fromkeys("".join(draws.choices(syllables, k=draws.randint(2, 4))) for _ in range(70_000)))[
        :60_000
    ]
    return words, list(np.cumsum(1 / np.arange(10, len(words) + 10)))


def similarity(one: str, two: str) -> float:
    first, second = set(shingles(one)), set(shingles(two))
    return len(first & second) / len(first | second)


def rows(number: int) -> Rows:
    """File `number` of the rows: a pure function of its number."""
    draws = random.Random(SEED * 1_000_003 + number)
    words, weights = _vocabulary()

    def picture() -> int:
        return draws.getrandbits(256)

    captions: list[str] = []
    pictures: list[int] = []
    pairs: list[tuple[int, int, float, int]] = []
    while len(captions) < ROWS_PER_FILE:
        if draws.random() < 1 / 200:
            captions.append("logo")
            pictures.append(picture())
            continue
        caption = draws.choices(words, cum_weights=weights, k=draws.randint(5, 18))
        captions.append(" ".join(caption))
        pictures.append(picture())
        if draws.random() < 1 / 18 and len(captions) < ROWS_PER_FILE:
            partner, alike = _partner(caption, draws, words)
            distance = draws.randint(0, 31) if draws.random() < 0.8 else 128
            captions.append(partner)
            pictures.append(pictures[-1] ^ sum(1 << bit for bit in draws.sample(range(256), distance)))
            pairs.append((len(captions) - 2, len(captions) - 1, alike, distance))
    urls = [f"http://example.org/{number}/{place}.jpg" for place in range(len(captions))]
    uids = [uid(url, caption) for url, caption in zip(urls, captions, strict=True)]
    stored = [draws.randbytes(32) for _ in captions]
    columns = {
        "uid": pa.array(uids, pa.binary(16)),
        "url": pa.array(urls),
        "caption": pa.array(captions),
        "caption_raw": pa.array(captions),
        "image_sha256": pa.array(stored, pa.binary(32)),
        "pdq256": pa.array([hashed.to_bytes(32, "big") for hashed in pictures], pa.binary(32)),
        "pdq_quality": pa.array([100] * len(captions), pa.uint8()),
        "source": pa.array(urls),
    }
    filled = [columns.get(field.name, pa.nulls(len(captions), field.type)) for field in SHARD_SCHEMA]
    table = pa.table(filled, schema=SHARD_SCHEMA).sort_by("uid")
    logos = [row for row, caption in zip(uids, captions, strict=True) if caption == "logo"]
    return Rows(table, [Planted(uids[a], uids[b], alike, distance) for a, b, alike, distance in pairs], logos)


def _partner(caption: list[str], draws: random.Random, words: list[str]) -> tuple[str, float]:
    """`caption` with words exchanged, one after the other, while the similarity stays above a drawn floor."""
    floor = draws.uniform(0.5, 1.0)
    text = " ".join(caption)
    best, alike = text + " x", similarity(text, text + " x")
    changed = list(caption)
    for place in draws.sample(range(len(caption)), len(caption)):
        changed[place] = draws.choice(words) if draws.random() < 0.5 else changed[place][:-1] + draws.choice("aeiou")
        found = similarity(text, " ".join(changed))
        if found < floor:
            break
        best, alike = " ".join(changed), found
    return best, alike

"""What fetching one URL comes to: a stored picture or a named refusal.

This is the seam between the engines and the rest of the crawl. An engine is one function,

    fetch_pictures(urls, config, host_limit) -> list[Outcome]

with one outcome per URL in the order given, whatever order they arrived in.
"""

import dataclasses
from collections.abc import Callable, Sequence

from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig


@dataclasses.dataclass(frozen=True)
class Stored:
    """A picture as the shards hold it. The field names are columns of SHARD_SCHEMA; the three hashes of the picture are None without
    `perceptual_hashes`."""

    image: bytes
    format: str
    width: int
    height: int
    original_width: int
    original_height: int
    source_sha256: bytes
    image_sha256: bytes
    phash64: int | None
    pdq256: bytes | None
    pdq_quality: int | None


@dataclasses.dataclass(frozen=True)
class Refused:
    """Why there is no picture. `detail` is the same at every run against the same origin: no times, no thread, no local path."""

    reason: Reason
    detail: str


Outcome = Stored | Refused

Engine = Callable[[Sequence[str], CrawlConfig, Callable[[str], int]], list[Outcome]]
"""`urls` are distinct; `host_limit(host)` is how many fetches at once the calling unit may have at a host."""

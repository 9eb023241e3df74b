"""What fetching one URL comes to: a stored picture or a named refusal.

This is the seam between the engines and the rest of the crawl. An engine is one function,

    fetch_pictures(urls, config, host_limit) -> list[Outcome]

with one outcome per URL in the order given, whatever order they arrived in.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence

from pipeline.contracts.schema import Reason
from pipeline.crawl.config import CrawlConfig

log = logging.getLogger("pipeline")


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
    """Why there is no picture. `detail` is the same at every run against the same origin: no times, no thread, no local path.

    `at` is the host and port that it was met at, where that may be another than the URL's (a redirect); `answered` whether that host
    had begun an answer. Both are no part of the outcome.
    """

    reason: Reason
    detail: str
    at: tuple[str, int] | None = dataclasses.field(default=None, compare=False)
    answered: bool = dataclasses.field(default=False, compare=False)


Outcome = Stored | Refused

Engine = Callable[[Sequence[str], CrawlConfig, Callable[[str], int]], list[Outcome]]
"""`urls` are distinct; `host_limit(host)` is how many fetches at once the calling unit may have at a host."""


_logged: set[str] = set()


def unforeseen(error: Exception, reason: Reason, doing: str) -> Refused:
    """An exception that no rule foresaw, as a refusal of the one URL that met it: nothing that a server sends may end a run.

    It is a defect of this program and is logged with its traceback, once for each kind of exception in a process.
    """
    name = type(error).__name__
    if f"{doing} {name}" not in _logged:
        _logged.add(f"{doing} {name}")
        log.error("%s: %s; the URL is refused, please report this traceback", doing, name, exc_info=error)
    return Refused(reason, f"unforeseen {name}")

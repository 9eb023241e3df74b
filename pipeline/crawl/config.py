"""The `[crawl]` table: how URLs are fetched and what is stored of a picture.

A committed crawl is a recording, so the line between the two kinds of keys matters here: a key that can change which rows arrive, or their
bytes, from one and the same web is semantic and a new value means a new crawl; how many threads fetch, and how many of them at one host, is
not.
"""

import re
from typing import Annotated, Literal, Self

import pydantic

from pipeline.contracts.config import StrictModel, not_semantic
from pipeline.crawl.guard import parse_networks

ResizeMode = Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"]
Positive = Annotated[int, pydantic.Field(ge=1)]


class CrawlConfig(StrictModel):
    """One field per key; the README of this package says which troubles each of them answers."""

    engine: Literal["fetch", "img2dataset"] = "fetch"
    """`fetch` is this package's own; `img2dataset` needs `unguarded` (the README says what it leaves open)."""
    unguarded: bool = False
    """Accept that the engine `img2dataset` cannot be held to a deadline, a pace or robots.txt. Recorded with the corpus."""
    units: Positive = 16
    """Units of work: every host belongs to one of them (a large one to `host_split`)."""

    # How to fetch.
    concurrency: Positive = not_semantic(128, ge=1, le=4096)
    """Fetches at once in one unit (engine `fetch`)."""
    threads: Positive = not_semantic(32, ge=1)
    """Fetches at once in one unit (engine `img2dataset`)."""
    per_host: Positive = not_semantic(4, ge=1)
    """Fetches at once at one host, over all units."""
    per_host_rate: float | None = not_semantic(None, gt=0)
    """Requests a second at one host at most, over all units; unset for no such limit (engine `fetch`). A robots.txt, a further attempt
    and a redirect's target are not held back, but the host's next URL comes that much later."""
    max_crawl_delay_s: float = not_semantic(5.0, ge=0, le=3600)
    """A Crawl-delay in robots.txt is kept up to this many seconds (engine `fetch`)."""
    max_retry_after_s: float = not_semantic(60.0, ge=0, le=3600)
    """Seconds that a host is left alone at most when it answers 429 or 503 with Retry-After (engine `fetch`)."""
    host_failures: Positive = 16
    """URLs of a host in a row that find no address, no connection or no HTTP, time out, or are answered 429 or 503, after which the rest of
    the unit's are not tried (engine `fetch`)."""
    max_host_wait_s: float = pydantic.Field(default=600.0, ge=0)
    """Seconds that one host may have a unit wait in all: by Crawl-delay, by Retry-After, by fetches that take more than two seconds
    (what is beyond, over the host's fetches at once) and by pictures that take more than one to decode. What still waits for it then is
    refused as `timeout` (engine `fetch`). At a Crawl-delay of 5 s the default lets 120 URLs through; `per_host_rate` does not count."""
    host_split: Positive = 4
    """In how many units a registered domain with more rows than a unit's share may lie; at most `per_host`."""
    timeout_s: float = pydantic.Field(default=10.0, gt=0, le=600)
    """Seconds that connecting, one read, or a look-up of a name may take."""
    deadline_s: float = pydantic.Field(default=30.0, gt=0, le=3600)
    """Seconds for one URL: its name, robots.txt where nobody has asked for it yet, redirects, body, further attempts and the waits
    between them. The turn that it waits for in its host's queue is not counted. (Engine `fetch`; img2dataset has no such limit.)"""
    retries: int = pydantic.Field(default=1, ge=0, le=10)
    """Further attempts after a broken connection, an answer of 5xx, or one of 429 with Retry-After; nothing else is asked for twice
    (the engine `img2dataset` asks again after a timeout too, and never after 429)."""
    max_bytes: Positive = 64 << 20
    user_agent: str = pydantic.Field(
        default="corpus-and-clip/0.1 (+mailto:operator-has-set-no-contact@example.invalid)", max_length=400
    )
    """What servers are told (engine `fetch`): `Name/version (+contact)`, with a URL or a mail address at which its operator is reached."""
    user_agent_token: str | None = pydantic.Field(default=None, pattern=r"^[A-Za-z0-9._-]+$")
    """The name this crawl is known by: told to servers, and looked for in robots.txt and in X-Robots-Tag headers that address one agent.
    Unset, it is the first word of `user_agent` (none for the engine `img2dataset`)."""
    respect_robots: bool = True
    """Keep to robots.txt, RFC 9309 (engine `fetch`)."""
    respect_opt_out: bool = True
    """Leave out what the server marks with `noai`, `noimageai`, `noml`, `noindex`, `noimageindex` or `none` (X-Robots-Tag)."""
    allow_addresses: tuple[str, ...] = ()
    """Networks that are fetched although they are not public, in CIDR notation: for tests and intranets."""

    # Which pictures to keep. Sides and pixels are those of the upright source.
    min_side: int = pydantic.Field(default=16, ge=1)
    max_aspect_ratio: float = pydantic.Field(default=8.0, ge=1)
    max_pixels: Positive = 64_000_000
    """Read from the header: a larger picture is never decoded."""

    # What to store.
    perceptual_hashes: bool = True
    """Fill phash64, pdq256 and pdq_quality. Without them the columns are null, nothing can be deduplicated by picture, and a large JPEG is
    decoded no larger than its stored copy needs."""
    image_size: Positive = 256
    """The short side of the stored picture (`keep_ratio`); the side of the square (`center_crop`, `border`); the long side otherwise."""
    resize_mode: ResizeMode = "keep_ratio"
    upscale: bool = False
    """Enlarge pictures smaller than `image_size`. It adds bytes and no information, so it is off."""
    encode_format: Literal["jpeg", "png", "webp"] = "jpeg"
    quality: int = pydantic.Field(default=95, ge=0, le=100)
    """1 to 100 for jpeg and webp; compression level 0 to 9 for png."""

    @pydantic.field_validator("allow_addresses")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_networks(value)
        return value

    @pydantic.field_validator("user_agent")
    @classmethod
    def _names_a_contact(cls, value: str) -> str:
        if not re.match(r"[A-Za-z0-9._-]+(/|\s|$)", value) or not value.isascii() or not value.isprintable():
            raise ValueError(
                f"{value!r} does not begin with a name in ASCII; write it as ExampleBot/1.0 (+https://example.org/bot)"
            )
        if not re.search(r"https?://[^\s)]+|[^\s@:(+]+@[^\s@)]+\.[^\s@)]+", value):
            raise ValueError(
                f"{value!r} names no contact; add a URL or a mail address: ExampleBot/1.0 (+https://example.org/bot)"
            )
        return value

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.engine == "img2dataset" and not self.unguarded:
            raise ValueError(
                "engine='img2dataset' keeps no deadline, no pace and no robots.txt; "
                "set crawl.unguarded=true to accept that, or leave crawl.engine at 'fetch'"
            )
        if self.host_split > self.per_host:
            raise ValueError(
                f"host_split={self.host_split!r} is more than per_host={self.per_host!r}: a host in that many units "
                "would be asked too much at once; lower host_split"
            )
        if self.encode_format == "png" and self.quality > 9:
            raise ValueError(f"quality={self.quality!r} is no compression level of png; give 0 to 9")
        if self.encode_format != "png" and self.quality < 1:
            raise ValueError(f"quality={self.quality!r} is no quality of {self.encode_format}; give 1 to 100")
        return self

    @property
    def agent(self) -> str:
        """The product token: what robots.txt and X-Robots-Tag call this crawl."""
        return self.user_agent_token or re.split(r"[/\s]", self.user_agent, maxsplit=1)[0]

    @property
    def agent_header(self) -> str:
        """The User-Agent header of the engine `fetch`; a token that is not its first word is put in front."""
        return self.user_agent if self.user_agent.startswith(self.agent) else f"{self.agent} {self.user_agent}"

    @property
    def at_once(self) -> int:
        """Fetches at once in one unit, with the engine that is chosen."""
        return self.concurrency if self.engine == "fetch" else self.threads

    @property
    def at_once_key(self) -> str:
        """Where that number stands."""
        return "crawl.concurrency" if self.engine == "fetch" else "crawl.threads"

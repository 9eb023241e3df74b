"""The `[crawl]` table: how URLs are fetched and what is stored of a picture.

A committed crawl is a recording, so the line between the two kinds of keys matters here: a key that can change which rows arrive, or their
bytes, from one and the same web is semantic and a new value means a new crawl; how many threads fetch, and how many of them at one host, is
not.
"""

from typing import Annotated, Literal, Self

import pydantic

from pipeline.contracts.config import StrictModel, not_semantic
from pipeline.crawl.guard import parse_networks

ResizeMode = Literal["no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"]
Positive = Annotated[int, pydantic.Field(ge=1)]


class CrawlConfig(StrictModel):
    """One field per key; the README of this package says which troubles each of them answers."""

    engine: Literal["img2dataset"] = "img2dataset"
    units: Positive = 16
    """Units of work: every host belongs to one of them (a large one to `host_split`)."""

    # How to fetch.
    threads: Positive = not_semantic(32, ge=1)
    """Fetches at once in one unit."""
    per_host: Positive = not_semantic(4, ge=1)
    """Fetches at once at one host, over all units."""
    host_split: Positive = 4
    """In how many units a registered domain with more rows than a unit's share may lie; at most `per_host`."""
    timeout_s: float = pydantic.Field(default=10.0, gt=0, le=600)
    """Seconds that connecting, or one read, may take (img2dataset has no deadline for the whole answer)."""
    retries: int = pydantic.Field(default=1, ge=0, le=10)
    """Further attempts after a timeout, a broken connection or an answer of 5xx; nothing else is asked for twice."""
    max_bytes: Positive = 64 << 20
    user_agent_token: str | None = pydantic.Field(default=None, pattern=r"^[A-Za-z0-9._-]+$")
    """The name this crawl is known by: told to servers, and looked for in X-Robots-Tag headers that address one agent."""
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

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Self:
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

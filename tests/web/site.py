"""The plan of a web: which pairs it offers, and which troubles are planted where, so that every count of a crawl is known beforehand.

`Web(seed, pairs)` holds no list. What row k of the URL table is (its kind, address and caption), and what the server answers for it,
are pure functions of (seed, k): the server, the table's writer and the test that counts each hold their own `Web` and agree.
Every row has at most one trouble, and `Web.expected` counts troubles by the stage and the reason that must reject them, by going over
the same plan. A duplicate points back at the nearest plain row before it, a few steps away, so that duplicates too need no list.

Rows that are over the cap form one class of their own ("red circle", query 0), which no other row uses: wherever a pipeline cuts
them, before the crawl or after it, their number is the same.
"""

import enum
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests.web import scenes
from tests.web.dice import Dice


class Kind(enum.StrEnum):
    """What a row of the URL table is. The first group survives the pipeline; each other kind is one trouble."""

    PLAIN = "plain"
    POPULAR = "popular"  # of the one class that has more pairs than the cap
    SECOND_CAPTION = "second_caption"  # the URL of the row before, described by another sentence
    MISLABELLED = "mislabelled"  # a PNG called .jpg and served as image/jpeg
    REDIRECTED = "redirected"  # one to three redirects, over hosts, to a picture
    HARMLESS_HEADER = "harmless_header"  # X-Robots-Tag that forbids nothing we do

    BAD_URL = "bad_url"
    BAD_SCHEME = "bad_scheme"
    NO_CAPTION = "no_caption"  # null, empty, or white space
    REPEATED = "repeated"  # URL and caption of an earlier row
    BLANK_CAPTION = "blank_caption"  # of which cleaning leaves nothing
    UNRELATED = "unrelated"  # a caption that matches no query
    PRIVATE_ADDRESS = "private_address"
    REFUSED = "refused"  # nobody listens there
    CUT_OFF = "cut_off"  # the connection ends before the promised length
    HANGS = "hangs"  # the answer comes too late
    NOT_FOUND = "not_found"
    SERVER_ERROR = "server_error"
    LOOP = "loop"  # redirects in a circle
    OPT_OUT = "opt_out"
    OVERSIZED = "oversized"  # more bytes than allowed
    HTML = "html"  # a page called .jpg
    BOMB = "bomb"  # few bytes, hundreds of millions of pixels
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TINY = "tiny"
    BANNER = "banner"  # fifteen times as wide as high
    COPY = "copy"  # an earlier picture and caption under another URL
    NEAR = "near"  # the picture of the row before, smaller and recompressed, its caption slightly changed


REASONS: Mapping[Kind, tuple[str, str]] = {
    Kind.BAD_URL: ("candidates", "bad_url"),
    Kind.BAD_SCHEME: ("candidates", "scheme"),
    Kind.NO_CAPTION: ("candidates", "no_caption"),
    Kind.REPEATED: ("exact", "duplicate_pair"),
    Kind.BLANK_CAPTION: ("filter", "empty_caption"),
    Kind.UNRELATED: ("filter", "no_query"),
    Kind.PRIVATE_ADDRESS: ("crawl", "address"),
    Kind.REFUSED: ("crawl", "connection"),
    Kind.CUT_OFF: ("crawl", "connection"),
    Kind.HANGS: ("crawl", "timeout"),
    Kind.NOT_FOUND: ("crawl", "http_status"),
    Kind.SERVER_ERROR: ("crawl", "http_status"),
    Kind.LOOP: ("crawl", "redirect"),
    Kind.OPT_OUT: ("crawl", "opt_out"),
    Kind.OVERSIZED: ("crawl", "too_many_bytes"),
    Kind.HTML: ("crawl", "not_an_image"),
    Kind.BOMB: ("crawl", "image_too_large"),
    Kind.TRUNCATED: ("crawl", "image_truncated"),
    Kind.CORRUPT: ("crawl", "image_corrupt"),
    Kind.TINY: ("crawl", "image_too_small"),
    Kind.BANNER: ("crawl", "aspect_ratio"),
    Kind.COPY: ("dedup", "near_duplicate"),
    Kind.NEAR: ("dedup", "near_duplicate"),
}
"""Kind of trouble -> (stage, reason) that must reject it. Kinds that are not here survive, but for the cap."""

STAGES = ("candidates", "exact", "filter", "precap", "crawl", "dedup", "balance", "shards")

RATES: Mapping[Kind, float] = {
    Kind.POPULAR: 0.06,
    Kind.SECOND_CAPTION: 0.015,
    Kind.MISLABELLED: 0.01,
    Kind.REDIRECTED: 0.02,
    Kind.HARMLESS_HEADER: 0.01,
    Kind.BAD_URL: 0.005,
    Kind.BAD_SCHEME: 0.01,
    Kind.NO_CAPTION: 0.01,
    Kind.REPEATED: 0.02,
    Kind.BLANK_CAPTION: 0.004,
    Kind.UNRELATED: 0.06,
    Kind.PRIVATE_ADDRESS: 0.008,
    Kind.REFUSED: 0.004,
    Kind.CUT_OFF: 0.003,
    Kind.HANGS: 0.003,
    Kind.NOT_FOUND: 0.03,
    Kind.SERVER_ERROR: 0.008,
    Kind.LOOP: 0.005,
    Kind.OPT_OUT: 0.015,
    Kind.OVERSIZED: 0.002,
    Kind.HTML: 0.01,
    Kind.BOMB: 0.002,
    Kind.TRUNCATED: 0.008,
    Kind.CORRUPT: 0.006,
    Kind.TINY: 0.01,
    Kind.BANNER: 0.005,
    Kind.COPY: 0.025,
    Kind.NEAR: 0.03,
}
"""Share of each kind; what is left, about 60 %, is plain."""

_FIRST_PLAIN = 16  # the first rows are plain, so that a duplicate always finds an original
_POPULAR_LABEL = 0
_CLOSED_PORT = 1  # tcpmux: nobody has listened there for decades


@dataclass(frozen=True)
class Row:
    """One row of the URL table. `origin` is the row whose scene it shows: its own number, but for duplicates."""

    k: int
    kind: Kind
    url: str | None
    caption: str | None
    origin: int


@dataclass(frozen=True)
class Web:
    """The plan. `port` is where the server listens (on 127.0.0.2, 127.0.0.3, ...); it is part of every URL.

    `rates` replaces shares of single kinds (0 switches a trouble off). `oversize_bytes` is the length of an oversized answer and
    `hang_s` how late the late answers come: set the crawl's limits below them.
    """

    seed: int
    pairs: int
    port: int = 80
    hosts: int = 8
    rates: Mapping[Kind, float] = field(default_factory=dict)
    oversize_bytes: int = 3_000_000
    hang_s: float = 60.0

    @functools.cached_property
    def cap(self) -> int:
        """Pairs a query that the popular class exceeds and, with webs of a thousand pairs or more, no other does."""
        return max(20, self.pairs * 3 // 100)

    @functools.cached_property
    def _steps(self) -> list[tuple[float, Kind]]:
        """Cumulative shares."""
        steps, reached = [], 0.0
        for kind, share in {**RATES, **self.rates}.items():
            reached += share
            steps.append((reached, kind))
        if reached > 1:
            raise ValueError(f"rates: the shares add up to {reached}; lower some so that they stay below 1")
        return steps

    # ---- rows

    def _drawn(self, k: int) -> Kind:
        if k < _FIRST_PLAIN:
            return Kind.PLAIN
        share = Dice(self.seed, "kind", k).fraction()
        return next((kind for reached, kind in self._steps if share < reached), Kind.PLAIN)

    def kind(self, k: int) -> Kind:
        """The kind of row k. What belongs to "the row before" needs a plain row there, else it is plain itself."""
        drawn = self._drawn(k)
        if drawn in (Kind.NEAR, Kind.SECOND_CAPTION) and self._drawn(k - 1) is not Kind.PLAIN:
            return Kind.PLAIN
        return drawn

    def origin(self, k: int) -> int:
        """The row whose scene row k shows."""
        kind = self.kind(k)
        if kind in (Kind.NEAR, Kind.SECOND_CAPTION):
            return k - 1
        if kind in (Kind.COPY, Kind.REPEATED):
            return next(j for j in range(k - 1, -1, -1) if self.kind(j) is Kind.PLAIN)
        return k

    def scene(self, k: int) -> scenes.Scene:
        """The scene that row k shows and its caption describes."""
        k = self.origin(k)
        if self.kind(k) is Kind.POPULAR:
            return scenes.scene(self.seed, k, label=_POPULAR_LABEL, single=True)
        label = 1 + Dice(self.seed, "label", k).number(0, len(scenes.CLASSES) - 2)
        return scenes.scene(self.seed, k, label=label)

    def row(self, k: int) -> Row:
        """Row k of the URL table."""
        kind, origin = self.kind(k), self.origin(k)
        dice = Dice(self.seed, "row", k)
        caption: str | None = self.scene(k).caption
        at = origin if kind in (Kind.REPEATED, Kind.SECOND_CAPTION) else k
        url: str | None = self._url(at)
        if kind is Kind.SECOND_CAPTION:
            caption = self.scene(k).second_caption
        elif kind is Kind.NEAR:
            caption = dice.pick(("{}!", "{}  ", "#{}", "{} HD", "{} 2")).format(caption)
        elif kind is Kind.UNRELATED:
            caption = scenes.unrelated_caption(self.seed, k)
        elif kind is Kind.NO_CAPTION:
            caption = dice.pick((None, "", "  "))
        elif kind is Kind.BLANK_CAPTION:
            caption = dice.pick(("\u200b", "&nbsp;", "\ufeff"))
        elif kind is Kind.BAD_URL:
            url = dice.pick(
                (None, f"pictures/{k}.jpg", f"//cdn/{k}.jpg", "http:///nowhere.jpg", f"http://[::1/{k}.jpg")
            )
        elif kind is Kind.BAD_SCHEME:
            start = dice.pick(
                ("ftp://127.0.0.2/", "javascript:show(", "file:///etc/", "data:image/gif;base64,", "blob:")
            )
            url = f"{start}{k}"
        elif kind is Kind.PRIVATE_ADDRESS:
            url = self._private(dice, k)
        elif kind is Kind.REFUSED:
            url = f"http://{self.host(k)}:{_CLOSED_PORT}/p/{k}.jpg"
        return Row(k, kind, url, caption, origin)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Rows start to stop, made one at a time."""
        for k in range(start, self.pairs if stop is None else stop):
            yield self.row(k)

    def host(self, k: int) -> str:
        """The host of row k: the first has about a quarter of the web, the others share the rest."""
        number = Dice(self.seed, "host", k).number(0, 4 * self.hosts - 1)
        return f"127.0.0.{2 + (number % self.hosts if number >= self.hosts else 0)}"

    def _url(self, k: int) -> str:
        encoding = scenes.encoding(self.seed, k) if self.kind(k) is Kind.PLAIN else "jpeg"
        ending = "jpg" if encoding == "jpeg" else encoding
        return f"http://{self.host(k)}:{self.port}/p/{k}.{ending}"

    def _private(self, dice: Dice, k: int) -> str:
        a, b = dice.number(0, 255), dice.number(1, 254)
        return dice.pick(
            (
                f"http://10.{a}.{b}.7/p/{k}.jpg",
                f"http://192.168.{a}.{b}/p/{k}.jpg",
                f"http://172.16.{a}.{b}:8080/p/{k}.jpg",
                f"http://169.254.169.254/latest/meta-data/{k}",
                f"http://[::1]:{self.port}/p/{k}.jpg",
                f"http://[fd00::{b:x}]/p/{k}.jpg",
                f"http://0x0a{a:02x}{b:02x}01/p/{k}.jpg",
            )
        )

    # ---- the answers

    def survives(self, kind: Kind) -> bool:
        """True for kinds that only the cap may reject."""
        return kind not in REASONS

    def expected(self, cap: int | None = None, broken_lines: int = 0) -> dict[str, "Count"]:
        """For every stage what goes in, what comes out, and what is rejected by reason; `cap` as in `balance` (None: `self.cap`).

        `broken_lines`: lines that `tables.write_tables` added to the table and that do not parse. O(pairs), 40 microseconds each.
        """
        cap = self.cap if cap is None else cap
        rejected: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
        if broken_lines:
            rejected["candidates"]["bad_row"] = broken_lines
        queries: Counter[str] = Counter()
        for k in range(self.pairs):
            kind = self.kind(k)
            if kind in REASONS:
                stage, reason = REASONS[kind]
                rejected[stage][reason] += 1
            else:
                queries[self.scene(k).query] += 1
        over = sum(max(0, count - cap) for count in queries.values())
        if over:
            rejected["balance"]["over_cap"] = over
        counts, left = {}, self.pairs + broken_lines
        for stage in STAGES:
            out = left - sum(rejected[stage].values())
            counts[stage] = Count(left, out, dict(sorted(rejected[stage].items())))
            left = out
        return counts

    def kinds(self) -> Counter[Kind]:
        """How many rows there are of each kind."""
        return Counter(self.kind(k) for k in range(self.pairs))


@dataclass(frozen=True)
class Count:
    """One line of the accounts: rows_in = rows_out + the sum of rejected."""

    rows_in: int
    rows_out: int
    rejected: dict[str, int]


def total_rejected(counts: Mapping[str, Count]) -> dict[str, int]:
    """Rejections by reason over all stages: what a pipeline that splits its stages otherwise is compared by."""
    total: Counter[str] = Counter()
    for count in counts.values():
        total.update(count.rejected)
    return dict(sorted(total.items()))

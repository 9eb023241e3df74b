"""robots.txt as text: the rules for one agent, and what they say of a path. RFC 9309, sections 2.1 to 2.2.

* A group names agents by product token, compared without case; what follows a token on its line (`/1.0`, `*`, words) is left aside. All
  groups that name us count together; only where none does, those of `*` count.
* A group's agents stand above its rules. Other records among them, `Sitemap` or `Crawl-delay`, end nothing.
* The rule with the most octets decides, Allow where two have as many. `*` is any run of octets, a final `$` the end of the URL.
* Rules and paths are compared in one spelling: beyond ASCII percent-encoded, what RFC 3986 calls unreserved decoded. A reserved character
  and its encoding are two things, as for Google's parser: `/a%2Fb` is not `/a/b`.

A robots.txt is hostile input. Only rules for us are kept. Plain ones are looked up, at most a thousand look-ups a path, for half a
megabyte holds no more rules of different length; those with a wildcard are tried one after the other by substring search, and a
file with more than MOST_WILDCARDS octets of them is answered with `too_many`: nobody can say in time what it allows.

`Crawl-delay` is no part of the RFC but widely written: it counts for the agents named above it.
"""

import dataclasses
import math
import re
import urllib.parse

from pipeline.crawl.urls import KEPT

MOST_WILDCARDS = 32 * 1024  # octets in all rules with a `*` inside

# As written by people who meant it: the misspellings that Google's parser takes too.
_AGENT = frozenset({b"user-agent", b"useragent", b"user agent"})
_DISALLOW = frozenset({b"disallow", b"dissallow", b"dissalow", b"disalow", b"diasllow", b"disallaw"})
_DELAY = frozenset({b"crawl-delay", b"crawl delay"})
_TOKEN = re.compile(rb"\*(?=\s|$)|[A-Za-z0-9._-]+")
_ENCODED = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_STARS = re.compile(r"\*+")
_END = "\n"  # in place of the end of a URL: no rule and no URL holds it
_ALLOWED = 1  # the rank of no rule at all


@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules for one agent. A rank is twice the rule's octets, and one more for Allow: the highest that matches decides."""

    ranks: dict[str, int]
    """Rules without a wildcard, by what a path must begin with."""
    lengths: tuple[int, ...]
    """Of the keys of `ranks`, ascending."""
    wildcards: tuple[tuple[int, tuple[str, ...]], ...]
    """(rank, what must follow each other in a path, the first at its start), the highest rank first."""
    delay_s: float = 0.0
    """Seconds wanted between two requests (Crawl-delay), as written."""
    too_many: bool = False

    @property
    def octets(self) -> int:
        """About what the rules take in memory."""
        return 1000 + sum(150 + len(text) for text in self.ranks) + 300 * len(self.wildcards)

    def allow(self, path: str) -> bool:
        """Whether a path with its query, as it goes over the wire, may be fetched. False for all of them where `too_many`."""
        if path == "/robots.txt":
            return True
        text = _spelled(path).replace("*", "%2A").replace("$", "%24") + _END
        best = _ALLOWED
        for length in self.lengths:
            if length > len(text):
                break
            best = max(best, self.ranks.get(text[:length], _ALLOWED))
        for rank, pieces in self.wildcards:
            if rank <= best:
                break
            if _follow_each_other(pieces, text):
                best = rank
                break
        return best % 2 == 1 and not self.too_many


class _Group:
    """What all groups of one agent say."""

    def __init__(self) -> None:
        self.ranks: dict[str, int] = {}
        self.delay_s = 0.0

    def rule(self, value: bytes, *, allow: bool) -> None:
        text = _STARS.sub("*", _spelled(value.decode("utf-8", "surrogateescape")))
        if not text:
            return  # "Disallow:" forbids nothing
        rank = 2 * len(text) + allow
        ends = text.endswith("$")
        text = text.removesuffix("$").replace("$", "%24") + _END * ends
        self.ranks[text] = max(rank, self.ranks.get(text, 0))

    def rules(self) -> Rules:
        ranks: dict[str, int] = {}
        wildcards = []
        octets = 0
        for text, rank in self.ranks.items():
            stem = text.removesuffix("*")
            if "*" in stem:
                wildcards.append((rank, tuple(stem.split("*"))))
                octets += len(stem)
            else:
                ranks[stem] = max(rank, ranks.get(stem, 0))
        if octets > MOST_WILDCARDS:
            return Rules({}, (), (), self.delay_s, too_many=True)
        return Rules(
            ranks, tuple(sorted({len(stem) for stem in ranks})), tuple(sorted(wildcards, reverse=True)), self.delay_s
        )


def read(body: bytes, agent: str) -> Rules:
    """The rules of a robots.txt for `agent`, a product token. Every line that can be read counts, whatever the others are."""
    ours, everybodys = _Group(), _Group()
    token, named = agent.lower().encode(), False
    concerned: set[_Group] = set()
    above_rules = True
    for line in body.removeprefix(b"\xef\xbb\xbf").splitlines():
        line = line.partition(b"#")[0].strip()
        name, colon, value = line.partition(b":")
        if not colon:  # "Disallow /private"
            name, _, value = line.partition(b" ")
        name, value = name.strip().lower(), value.strip()
        if name in _AGENT:
            if not above_rules:
                concerned, above_rules = set(), True
            found = _TOKEN.match(value)
            if found is not None and found[0] == b"*":
                concerned.add(everybodys)
            elif found is not None and found[0].lower() == token:
                named = True
                concerned.add(ours)
        elif name == b"allow" or name in _DISALLOW:
            above_rules = False
            for group in concerned:
                group.rule(value, allow=name == b"allow")
        elif name in _DELAY and concerned:
            seconds = _seconds(value)
            for group in concerned:
                group.delay_s = max(group.delay_s, seconds)
    return (ours if named else everybodys).rules()


def _spelled(text: str) -> str:
    """The one spelling in which rules and paths are compared. Bytes that are no UTF-8 are encoded as they are."""
    quoted = urllib.parse.quote(text, safe=KEPT, errors="surrogateescape")
    return _ENCODED.sub(_decoded, quoted) if "%" in quoted else quoted


def _decoded(found: re.Match[str]) -> str:
    letter = chr(int(found[1], 16))
    return letter if letter in _UNRESERVED else found[0].upper()


def _follow_each_other(pieces: tuple[str, ...], text: str) -> bool:
    """Whether `text` begins with the first piece and holds the others behind it, in their order: each at the first place that there is."""
    if not text.startswith(pieces[0]):
        return False
    place = len(pieces[0])
    for piece in pieces[1:]:
        place = text.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return True


def _seconds(value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        return 0.0
    return seconds if 0.0 < seconds < math.inf else 0.0

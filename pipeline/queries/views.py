"""Wikimedia's page-view files: how often which article was asked for.

Two formats, told apart by line (https://dumps.wikimedia.org/other/pageviews/readme.html, .../other/pageview_complete/readme.html):

* hourly, "pageviews-20240101-000000": `domain_code page_title count_views total_response_size`. The code of English Wikipedia is `en`,
  for mobile `en.m`; other families append a letter (`en.d` is Wiktionary).
* daily, "pageview_complete": `wiki_code article_title page_id daily_total hourly_counts` with the kind of access (desktop, mobile-web,
  mobile-app) before the total; the page id is `null` or missing where nobody knew it. The code is `en.wikipedia` for all kinds of access.

What is asked for is hostile: scanners' attacks, truncated UTF-8, titles with line breaks that tear a line in two. A line is a view of
an article, a view of another project, skipped for its title, or broken; the four add up to the lines, and each is counted.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from pipeline.contracts.errors import InputError
from pipeline.queries.pieces import Piece, kind_of, pieces

_MAX_LINE = 64 << 10
_MOST_VIEWS = 10**12 - 1
FAMILIES = {
    "wikipedia": "", "wikibooks": "b", "wiktionary": "d", "wikinews": "n", "wikiquote": "q", "wikisource": "s", "wikiversity": "v",
    "wikivoyage": "voy",
}  # fmt: skip
"""Families of projects, and the letter that stands for each in hourly files."""
_ACCESS = (b"desktop", b"mobile-web", b"mobile-app")
_HOURS = re.compile(rb"(?:[A-Z]\d+)+")
_ESCAPED = re.compile(r"%[0-9A-Fa-f]{2}")
_NO_TITLE = re.compile(r"[\x00-\x1f\x7f#<>\[\]|{}\ufffd]")
"""Characters that no title of MediaWiki has ($wgLegalTitleChars)."""


class LineCounts(NamedTuple):
    """What the lines of a range were; the sum of the four is the number of lines."""

    counted: int = 0
    other_project: int = 0
    skipped: int = 0
    broken: int = 0


class View(NamedTuple):
    title: str
    views: int


class Rules(NamedTuple):
    """Which lines count: `project` as in daily files; casefolded prefixes and titles that make no article."""

    project: str
    namespaces: frozenset[str]
    skip: frozenset[str]


def check_format(uri: str) -> None:
    """Raise InputError when none of the first lines is one of the two formats."""
    seen = []
    for line in lines(pieces(uri, kind_of(uri), 0, _MAX_LINE), first=True):
        if line is not None and _parsed(line) is not None:
            return
        seen.append(line)
        if len(seen) == 1000:
            break
    raise InputError(
        f"{uri}: none of its first lines is of Wikimedia's hourly or daily page-view format; give such a file"
    )


def read_views(uri: str, start: int, stop: int, rules: Rules, take: Callable[[str, int], None]) -> LineCounts:
    """Give `take` the title and views of every line that counts, of those that begin in bytes [start, stop) of the stored file.

    Titles are as in the dump: spaces, the first letter large. Raises InputError for a truncated or corrupt file.
    """
    codes = _codes(rules.project)
    counts = {"counted": 0, "other_project": 0, "skipped": 0, "broken": 0}
    for line in lines(pieces(uri, kind_of(uri), start, stop), first=start == 0):
        parsed = None if line is None else _parsed(line)
        if parsed is None:
            counts["broken"] += 1
            continue
        code, written, views = parsed
        if code not in codes:
            counts["other_project"] += 1
            continue
        title = read_title(written)
        if title is None:
            counts["broken"] += 1
        elif is_skipped(title, rules):
            counts["skipped"] += 1
        else:
            counts["counted"] += 1
            take(title, views)
    return LineCounts(**counts)


def lines(source: Iterator[Piece], *, first: bool) -> Iterator[bytes | None]:
    """The lines that belong to a range: those that begin behind its first line end (`first`: from its beginning) and not behind its
    end, so that each line of a file belongs to one range. None stands for a line of more than 64 kB. Blank lines are none."""
    rest, at = b"", 0  # what is left of the pieces, and its place among them
    begun, own = 0, 0  # where the line at hand begins; where the own pieces end
    skipping, too_long = not first, False
    for piece in source:
        own += len(piece.data) if piece.own else 0
        if not piece.own and (skipping or begun > own):
            return
        data, cut = rest + piece.data, 0
        while (end := data.find(b"\n", cut)) != -1:
            if not piece.own and begun > own:
                return
            if not skipping and (too_long or data[cut:end].strip()):
                yield None if too_long or end - cut > _MAX_LINE else data[cut:end]
            skipping = too_long = False
            cut = end + 1
            begun = at + cut
        rest, at = data[cut:], at + cut
        if len(rest) > _MAX_LINE:
            rest, at, too_long = b"", at + len(rest), True
    if not skipping and begun <= own and (too_long or rest.strip()):
        yield None if too_long else rest


def _parsed(line: bytes) -> tuple[bytes, bytes, int] | None:
    """(code, title, views) of a line of either format."""
    fields = line.rstrip(b"\r").split(b" ")
    if len(fields) == 4 and fields[2].isdigit() and fields[3].isdigit():
        return fields[0], fields[1], _number(fields[2])
    if len(fields) in (5, 6) and fields[-3] in _ACCESS and fields[-2].isdigit() and _HOURS.fullmatch(fields[-1]):
        return fields[0], fields[1], _number(fields[-2])
    return None


def _number(digits: bytes) -> int:
    """A count of views; what has more digits than any count is somebody's joke and counts as the largest that 12 digits hold."""
    return min(int(digits.lstrip(b"0")[:13] or b"0"), _MOST_VIEWS)


def _codes(project: str) -> frozenset[bytes]:
    language, _, family = project.partition(".")
    letter = FAMILIES[family]
    hourly = [".".join(filter(None, (language, access, letter))) for access in ("", "m", "zero")]
    return frozenset(code.encode() for code in (project, *hourly))


def read_title(written: bytes) -> str | None:
    """A title of a page-view file as it stands in the dump, or None where no page can be called so.

    Percent escapes are resolved until none is left (some lines are escaped twice): no title of MediaWiki holds one.
    """
    try:
        title = written.decode()
        for _ in range(3):
            if not _ESCAPED.search(title):
                break
            title = unquote_to_bytes(title).decode()
    except UnicodeDecodeError:
        return None
    title = " ".join(title.replace("_", " ").split())
    if not title or _NO_TITLE.search(title) or _ESCAPED.search(title):
        return None
    large = title[0].upper()
    return large + title[1:] if len(large) == 1 else title


def is_skipped(title: str, rules: Rules) -> bool:
    """Whether a title is of another namespace, or one of those to be skipped. "Star Trek: Picard" is neither."""
    prefix, colon, _ = title.lstrip(":").partition(":")
    return (bool(colon) and prefix.strip().casefold() in rules.namespaces) or title.casefold() in rules.skip

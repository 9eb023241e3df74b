"""Whether a server or a page asks that a picture be left alone: `X-Robots-Tag` headers and robots meta elements.

Both are defined by what search engines publish (Google Search Central, "Robots meta tag, data-nosnippet, and X-Robots-Tag"); `noai` and
`noimageai` are DeviantArt's, `noml` is Mojeek's. The header has no grammar of its own, so three things are easily misread:

* Several header lines may arrive folded into one, joined by commas (RFC 9110, section 5.3): an agent's name may stand anywhere in it.
* `name: directive` addresses one agent, and holds to the end of the value or to the next agent's name; but a few directives carry a
  value behind a colon themselves, and `unavailable_after` one with commas and colons in it.
* `none` is `noindex, nofollow`.

Where a value can be read in two ways it is read as search engines read it. A fold of `otherbot: nofollow` and `noai` looks exactly like
one line for otherbot, and passes.

Agents are product tokens (`ExampleBot`), compared without case. Of an answer's lines together, and of an element's content, the first
8,192 characters are read.
"""

import re
from collections.abc import Collection, Iterable

DIRECTIVES = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
# A name begins with a letter: what stands before a colon of a time of day or an ISO date is none.
_NAME = re.compile(r"\s*(\*|[A-Za-z][A-Za-z0-9_.\-]*)(?:/[0-9.]+)?\s*:")
_LONGEST = 8192


def in_headers(values: Iterable[str], agents: Collection[str]) -> str | None:
    """The first directive of an answer's X-Robots-Tag lines that opts out for everybody or for one of `agents`; None without one."""
    ours = {"*", *(agent.lower() for agent in agents)}
    left = _LONGEST
    for value in values:
        read, left = value[:left], max(0, left - len(value))
        concerns_us = True  # a new line is for everybody until it names somebody
        for piece in re.split(r"[,;]", read.lower()):
            at = 0
            while (named := _NAME.match(piece, at)) is not None:
                at = named.end()
                if named[1] in _WITH_VALUE:
                    at = len(piece)
                else:
                    concerns_us = named[1] in ours
            found = _first_directive(piece[at:])
            if found is not None and concerns_us:
                return found
    return None


def in_meta(name: str, content: str, agents: Collection[str]) -> str | None:
    """The first directive of a `<meta name=… content=…>` that opts out for everybody or for one of `agents`; None without one."""
    if name.strip().lower() not in {"robots", *(agent.lower() for agent in agents)}:
        return None
    pieces = re.split(r"[,;]", content[:_LONGEST].lower())
    return next((found for piece in pieces if (found := _first_directive(piece.partition(":")[0])) is not None), None)


def _first_directive(words: str) -> str | None:
    return next((word for word in words.split() if word in DIRECTIVES), None)

"""Whether a page asks that its pictures be left alone: `X-Robots-Tag` headers and robots meta elements.

A value is a list of directives with commas between them. In a header, `agent:` in front of one addresses it and those after it to that
crawler alone, until the next agent; what stands before any agent is for everyone. Several header lines may arrive folded into one by
commas. Directives that carry a value of their own have a colon too (`unavailable_after: Thu, 26 Nov 2026 …`, `max-image-preview:large`);
they are told apart by name, and their values are no directives of ours.
Source: https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag; `noai` and `noimageai` are DeviantArt's, `noml`
Mojeek's.
"""

from collections.abc import Collection, Sequence

DIRECTIVES = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def in_headers(values: Sequence[str], agents: Collection[str]) -> str | None:
    """The first opt-out in the values of X-Robots-Tag headers that concerns everyone or one of `agents` (lower case), or None."""
    for value in values:
        addressed = True
        for part in value.lower().split(","):
            name, colon, rest = (piece.strip() for piece in part.partition(":"))
            # A name has no spaces: this is how the time of a date, which commas cut off from its name, is none.
            if colon and name not in _WITH_VALUE and " " not in name:
                addressed = name in agents
                name = rest.partition(":")[0].strip()
            if addressed and name in DIRECTIVES:
                return name
    return None


def in_meta(name: str, content: str, agents: Collection[str]) -> str | None:
    """The first opt-out of a `<meta name content>` that concerns everyone or one of `agents` (lower case), or None."""
    name = name.strip().lower()
    if name != "robots" and name not in agents:
        return None
    words = (word.strip().partition(":")[0] for word in content.lower().split(","))
    return next((word for word in words if word in DIRECTIVES), None)

"""The parts of an indexed picture that the descriptor looks at, each with a number and a name. Loads nothing, so that a report can name
them.

A corpus picture that is a crop of an evaluation picture is nearest to that part of it. A part has the same number whichever others are
looked at: 0 the whole, 1 its largest centred square, 2 to 6 parts of half the area, 7 to 15 parts of a quarter of it; 16 to 31 the same
parts mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

ViewKind = Literal["whole", "square", "halves", "quarters", "mirrored"]
Box = tuple[float, float, float, float]
"""left, top, right, bottom as shares of the sides"""

VIEWS: tuple[ViewKind, ...] = ("whole", "square", "halves", "quarters", "mirrored")
FULL_BOX: Box = (0.0, 0.0, 1.0, 1.0)
_PARTS = (
    "the whole picture",
    "its centre square",
    *(f"half of it, {place}" for place in ("middle", "upper left", "upper right", "lower left", "lower right")),
    *(
        f"a quarter of it, {place}"
        for place in (
            *("upper left", "upper middle", "upper right"),
            *("left", "middle", "right"),
            *("lower left", "lower middle", "lower right"),
        )
    ),
)
NAMES = (*_PARTS, *(f"{part}, mirrored" for part in _PARTS))
WHOLE_PICTURE = 0
"""The number of the whole picture as it is."""
MIRRORED = len(_PARTS)
"""The number of a mirrored part is that of the part and this."""
_HALF = 0.5**0.5


def boxes(kinds: Sequence[ViewKind], width: int, height: int) -> dict[int, Box]:
    """The parts of a picture of this size that are looked at, by number.

    "whole"; "square", the largest centred one (none where the picture is square); "halves", five parts of half the area (middle and
    corners); "quarters", nine of a quarter (three rows of three, overlapping by half); "mirrored", each of those that are looked at once
    more, to be mirrored.
    """
    found: dict[int, Box] = {}
    if "whole" in kinds:
        found[WHOLE_PICTURE] = FULL_BOX
    if "square" in kinds and width != height:
        across, down = min(1.0, height / width), min(1.0, width / height)
        found[1] = ((1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2)
    if "halves" in kinds:
        spare = 1 - _HALF
        places = [(spare / 2, spare / 2), (0.0, 0.0), (spare, 0.0), (0.0, spare), (spare, spare)]
        found |= {number: (x, y, x + _HALF, y + _HALF) for number, (x, y) in enumerate(places, 2)}
    if "quarters" in kinds:
        corners = [(x, y) for y in (0.0, 0.25, 0.5) for x in (0.0, 0.25, 0.5)]
        found |= {number: (x, y, x + 0.5, y + 0.5) for number, (x, y) in enumerate(corners, 7)}
    if "mirrored" in kinds:
        found |= {number + MIRRORED: box for number, box in list(found.items())}
    return found

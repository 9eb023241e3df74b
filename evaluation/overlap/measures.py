"""By what two pictures are near: PDQ's distance, or the learned descriptor's score, which is a distance read backwards.

Histograms, labelling pages, precision, recall and the rule that picks a threshold are the same for both. They are computed in whole steps
from 0, the nearest: bits of a distance, thousandths that a score lacks of 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MeasureName = Literal["pdq", "descriptor"]

_LEVELS = np.arange(1001) / 1000


@dataclass(frozen=True)
class Measure:
    """A column of the tables, which is a threshold's name, too. In steps: the width of a bin, what counts as the furthest, and the loosest
    threshold that can be set."""

    name: MeasureName
    title: str
    column: str
    kind: Literal["distance", "score"]
    bin: int
    last: int
    loosest: int

    @property
    def sign(self) -> int:
        """1, or -1 where more is nearer."""
        return 1 if self.kind == "distance" else -1

    @property
    def bins(self) -> int:
        """How many there are."""
        return self.last // self.bin + 1

    def steps(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """int64[n] of distances or scores, none of them unknown: the strictest threshold, in steps, that each of them still reaches."""
        steps = values.astype(np.int64) if self.kind == "distance" else 1001 - np.searchsorted(_LEVELS, values, "right")
        return np.minimum(steps, self.last)

    def value(self, steps: int) -> int | float:
        """The threshold that stands at `steps`: a number of bits, or a score of three digits."""
        return steps if self.kind == "distance" else (1000 - steps) / 1000


PDQ = Measure("pdq", "PDQ", "pdq_distance", "distance", bin=8, last=256, loosest=128)
DESCRIPTOR = Measure("descriptor", "the descriptor", "descriptor_score", "score", bin=50, last=1000, loosest=999)
MEASURES = {one.name: one for one in (PDQ, DESCRIPTOR)}


def measures(descriptor: bool) -> list[Measure]:
    """Those of a job with or without a descriptor."""
    return [PDQ, DESCRIPTOR] if descriptor else [PDQ]

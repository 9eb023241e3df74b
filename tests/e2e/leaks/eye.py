"""A trained descriptor, looked through without the job: float vectors of one picture at a time, cosines by numpy.

What a descriptor takes for the same depends on its training, so what it is to find is known from its own eye and from nothing else. The
job's part is tested by it (stages, vectors of eight bits, search, threshold), the network is not.
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from evaluation.descriptor import embed, weights
from evaluation.descriptor.views import VIEWS, ViewKind

Vectors = NDArray[np.float32]  # [n, d], of unit length
_MARGIN = (
    1 / 8
)  # of what is left between the threshold and 1, to either side; vectors of eight bits move a cosine by about 0.001


class Eye:
    """A descriptor and what it has seen so far of both sides.

    `least` is the score from which on it is to decide: half-way between 1 and the highest cosine of its card's unrelated pictures.
    """

    def __init__(self, folder: str) -> None:
        found = weights.read(folder)
        self._network, self._size = weights.network(found), found.card.architecture.size
        self.least = round((1 + found.card.proxy.largest_unrelated) / 2, 4)
        margin = _MARGIN * (1 - self.least)
        self._surely_found, self._surely_apart = self.least + margin, self.least - margin
        nothing = np.empty((0, found.card.architecture.dimension), np.float32)
        self._asked, self._offered = nothing, nothing
        self._asked_by, self._offered_by = np.empty(0, np.int64), np.empty(0, np.int64)

    def parts(self, data: bytes) -> Vectors:
        """Of an example: the whole picture and its parts."""
        return self._look(data, VIEWS)

    def whole(self, data: bytes) -> Vectors:
        """Of a corpus picture: one vector, or none where it is flat."""
        return self._look(data, ("whole",))

    @torch.inference_mode()
    def _look(self, data: bytes, kinds: Sequence[ViewKind]) -> Vectors:
        seen = [pixels for _, pixels in embed.views(data, self._size, kinds)]
        if not seen:
            return self._asked[:0]
        vectors: Vectors = self._network(torch.from_numpy(np.stack(seen))).numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def ask(self, number: int, parts: Vectors) -> None:
        """Remember an example."""
        self._asked, self._asked_by = np.vstack([self._asked, parts]), np.append(self._asked_by, [number] * len(parts))

    def offer(self, number: int, whole: Vectors) -> None:
        """Remember a corpus picture."""
        self._offered = np.vstack([self._offered, whole])
        self._offered_by = np.append(self._offered_by, [number] * len(whole))

    def found(self, parts: Vectors, whole: Vectors) -> bool:
        """Whether a corpus picture surely is found as this example."""
        return bool((parts @ whole.T).max(initial=-1) >= self._surely_found)

    def apart_from_asked(self, whole: Vectors, but: Collection[int] = ()) -> bool:
        """Whether a corpus picture surely is found as none of the examples, those with the numbers `but` left out."""
        others = self._asked[~np.isin(self._asked_by, list(but))]
        return bool((others @ whole.T).max(initial=-1) < self._surely_apart)

    def apart_from_offered(self, parts: Vectors, but: Collection[int] = ()) -> bool:
        """Whether an example surely is found as none of the corpus pictures, those with the numbers `but` left out."""
        others = self._offered[~np.isin(self._offered_by, list(but))]
        return bool((parts @ others.T).max(initial=-1) < self._surely_apart)

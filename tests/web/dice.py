"""Choices that are a pure function of a seed, a purpose and a number, and so the same everywhere and in any order.

`random.Random` and numpy's generators may change what they draw between versions; a web whose planted troubles are
counted exactly may not. So every choice here reads BLAKE2b in counter mode, about a microsecond a draw.
"""

import hashlib
import struct
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
_WORDS = struct.Struct("<8Q")


class Dice:
    """A stream of choices keyed by (seed, purpose, number); two dice with equal keys throw the same."""

    def __init__(self, seed: int, purpose: str, number: int) -> None:
        self._key = f"{seed}/{purpose}/{number}/".encode()
        self._words: list[int] = []
        self._blocks = 0

    def word(self) -> int:
        """The next 64 bits, as an integer in [0, 2**64)."""
        if not self._words:
            block = hashlib.blake2b(self._key + self._blocks.to_bytes(4, "little")).digest()
            self._words = list(_WORDS.unpack(block))
            self._blocks += 1
        return self._words.pop()

    def number(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included; the bias of the modulo is below 2**-50 for our ranges."""
        return low + self.word() % (high - low + 1)

    def fraction(self) -> float:
        """A float in [0, 1)."""
        return (self.word() >> 11) * 2.0**-53

    def between(self, low: float, high: float) -> float:
        """A float in [low, high)."""
        return low + (high - low) * self.fraction()

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.fraction() < probability

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, each as likely as the other."""
        return items[self.word() % len(items)]

    def noise(self, rows: int, columns: int) -> NDArray[np.uint8]:
        """uint8[rows, columns] of PCG64's raw stream, the one part of numpy's random module that never changes."""
        count = rows * columns
        words = np.random.PCG64(self.word()).random_raw(-(-count // 8))
        return words.view(np.uint8)[:count].reshape(rows, columns)

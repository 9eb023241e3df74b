"""What one case of the benchmark `gpu_train` is, and what is measured of it. Nothing but torch: the peer's environment reads it too."""

import bisect
import random
from dataclasses import dataclass, field

import torch

FULL_LENGTH = 77
PHASES = ("data", "forward", "loss", "backward", "optimizer")
AGAIN = ("activation", "elementwise")
"""What ours can compute again without multiplying anything twice: `model.checkpoint_activations`."""


@dataclass(frozen=True)
class Case:
    """One way to train one model on one GPU."""

    preset: str
    pairs: int
    """Of a step."""
    compute: str
    """Ours: `precision.compute`; open_clip's: `--precision`."""
    compile: bool = True
    checkpoint: str = "none"
    """Ours: `model.checkpoint_activations`; open_clip's: its `set_grad_checkpointing` unless this is "none"."""
    short_attention: bool = False
    """Ours: `model.short_attention`."""
    captions: bool = False
    """Whether texts are as long as captions of the web; else they fill all places."""
    micro: int | None = None
    chunk: int = 4096
    manifest: str | None = None
    """Of Parquet shards; None: drawn numbers."""
    vocabulary: str | None = None
    workers: int = 0
    warmup: int = 4
    """Steps after the first one that are not timed; more where the last of them changed no weight."""
    steps: int = 10
    recipe: str = "trainer/configs/smoke.toml"


LAION = {
    0: 3,
    5: 6,
    10: 7,
    20: 8,
    30: 10,
    40: 11,
    50: 13,
    60: 15,
    70: 17,
    80: 20,
    90: 27,
    95: 34,
    97: 40,
    98: 48,
    99: 63,
    99.5: 77,
    100: 77,
}
"""Percentiles of the ids of 10,000 captions of LAION, end marks included, by OpenAI's vocabulary; their mean is 15.5."""


def text_lengths(case: Case, step: int = 0) -> list[int]:
    """Ids of each text of a step; of captions drawn between LAION's percentiles."""
    if not case.captions:
        return [FULL_LENGTH] * case.pairs
    draws, marks = random.Random(step), list(LAION)
    found = []
    for _ in range(case.pairs):
        at = draws.uniform(0, 100)
        above = bisect.bisect_left(marks, at, 1)
        low, high = marks[above - 1], marks[above]
        found.append(round(LAION[low] + (at - low) / (high - low) * (LAION[high] - LAION[low])))
    return found


def drawn_texts(case: Case, vocab_size: int, step: int = 0, length: int = FULL_LENGTH) -> torch.Tensor:
    """Ids of a step, int64 [pairs, length]: drawn, the largest id where a text ends, zeros behind."""
    ids = torch.randint(1, vocab_size - 2, (case.pairs, length), generator=torch.Generator().manual_seed(step))
    for row, end in enumerate(text_lengths(case, step)):
        ids[row, min(end, length) - 1], ids[row, end:] = vocab_size - 1, 0
    return ids


MOST_SEARCHING = 40
"""Steps beyond the warm-up, and beyond those that are timed, in which a loss scaler of fp16 may look for its scale."""


@dataclass(frozen=True)
class Measured:
    pairs: int
    parameters: int
    seconds: float
    """Median of a step."""
    first_step: float
    """Seconds, compilation included but for programs that an earlier case left on the disk."""
    peak_bytes: int
    """Of what the allocator gave out during the timed steps; 0 on CPUs."""
    operations: int
    """Of one pair, forward and backward, with texts as long as they were computed; not what is computed again. 0 of the peer: they are
    ours of full texts."""
    waited: float
    """Share of the time that the process waited for batches."""
    of_a_core: float = 0.0
    """Pairs a second that one core reads, decodes, crops and tokenises, from shards."""
    phases: dict[str, float] = field(default_factory=dict)
    """Median seconds of a step, by phase."""
    phased: float = 0.0
    """Median seconds of the whole steps that these are of."""
    losses: list[float] = field(default_factory=list)
    """Of the first three steps."""
    kernels: list[tuple[str, float]] = field(default_factory=list)
    """The operations that took the device longest in a step, and the share of its time that each took itself."""
    launches: dict[str, int] = field(default_factory=dict)
    """Kernels, products and copies that a step starts, by phase; of the peer's in all. Counted on a hollow GPU alone."""
    device: str = ""
    torch: str = ""
    """Its version."""

    @property
    def rate(self) -> float:
        """Pairs a second."""
        return self.pairs / self.seconds

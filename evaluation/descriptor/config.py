"""What `python -m evaluation train-descriptor` is told. Loads no torch, so that `--check` and the overlap job's configuration are quick."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.content.labelled import LabelledSetConfig
from pipeline.contracts.config import StrictModel, not_semantic


class PicturesConfig(StrictModel):
    """Where the training pictures come from: a corpus, or a labelled set (its labels are not looked at)."""

    manifest: str | None = not_semantic(None)  # manifest.json or its folder; its content_root enters the card
    set: LabelledSetConfig | None = None
    pictures: int = Field(20_000, ge=8, le=10_000_000)  # at most so many, chosen by the hash of the row
    short_side: int = Field(192, ge=32, le=1024)  # pixels; what is kept of each in memory
    least_short_side: int = Field(64, ge=8, le=1024)  # smaller pictures are left out
    memory_mb: int = Field(
        4096, ge=1
    )  # fewer pictures are taken where they would need more; the card says how many were

    @model_validator(mode="after")
    def _one_source(self) -> PicturesConfig:
        if (self.manifest is None) == (self.set is None):
            raise ValueError("give data.manifest (a corpus) or the table data.set, one of the two")
        return self


class ArchitectureConfig(StrictModel):
    """The network's shape. The defaults train on two cores in half an hour; see configs/descriptor.toml for a GPU's."""

    size: int = Field(96, ge=32, le=512, multiple_of=16)  # pixels a side that the network sees
    width: int = Field(32, ge=4, le=512)  # channels of the first stage; each further one has twice as many
    blocks: list[int] = Field([1, 1, 1], min_length=1, max_length=4)  # residual blocks of each stage
    dimension: int = Field(192, ge=8, le=1024)  # of the vector; up to 1,024 the join adds up exactly (`search.py`)

    @model_validator(mode="after")
    def _no_empty_stage(self) -> ArchitectureConfig:
        if not all(1 <= blocks <= 32 for blocks in self.blocks):
            raise ValueError(f"blocks {self.blocks!r}: each stage needs 1 to 32 blocks")
        return self


class AugmentationConfig(StrictModel):
    """How likely each change of a copy is. The ranges are constants of `augment.py`, named by its VERSION in the card."""

    part: float = Field(0.5, ge=0, le=1)  # the reference is a part of the training picture, not all of it
    crop: float = Field(0.6, ge=0, le=1)  # the copy keeps a part of the reference, down to a quarter of its area
    centre: float = Field(
        0.3, ge=0, le=1
    )  # where it is not cropped: its centre square, as CLIP's preprocessing leaves it
    aspect: float = Field(0.4, ge=0, le=1)
    flip: float = Field(0.4, ge=0, le=1)
    rotation: float = Field(0.25, ge=0, le=1)
    colour: float = Field(0.6, ge=0, le=1)
    grey: float = Field(0.08, ge=0, le=1)
    text: float = Field(0.12, ge=0, le=1)
    banner: float = Field(0.2, ge=0, le=1)
    border: float = Field(0.2, ge=0, le=1)
    screenshot: float = Field(0.1, ge=0, le=1)
    scaling: float = Field(0.3, ge=0, le=1)
    jpeg: float = Field(0.5, ge=0, le=1)


class OptimiserConfig(StrictModel):
    """AdamW, its rate rising over `warmup` steps and falling as a half cosine to nothing."""

    rate: float = Field(2e-3, gt=0, le=1)
    weight_decay: float = Field(1e-4, ge=0, le=1)
    warmup: int = Field(50, ge=0)
    batch: int = Field(128, ge=2, le=1 << 16)  # pairs a step
    temperature: float = Field(0.07, gt=0, le=1)  # fixed, as in the paper
    entropy: float = Field(1.0, ge=0)  # weight of the entropy regulariser; SSCD takes 30 at its size
    largest_gradient: float = Field(1.0, gt=0)  # longer gradients are shortened to this
    small: float = Field(
        0.7, ge=0, le=1
    )  # share of the run at two thirds of the network's size: a step costs half as much
    steps: int = Field(20_000, ge=1)
    minutes: float | None = Field(
        None, gt=0
    )  # ends earlier, the rate having fallen by then; with it a run is not reproducible


class TrainingRunConfig(StrictModel):
    """Where the weights go, and how the work is done; nothing here is semantic but the seed."""

    out: str = not_semantic(...)  # folder of descriptor.safetensors and card.json
    seed: int = Field(17, ge=0, lt=2**63)
    device: str = not_semantic("cpu")
    half: bool = False  # bfloat16 inside the network: for GPUs; a CPU with AVX-512 gained nothing
    threads: int | None = not_semantic(
        None, ge=1, le=1024
    )  # none: torch's own choice. The bytes of the weights depend on it
    checkpoint_every: int = not_semantic(250, ge=1)  # steps


class TrainDescriptorConfig(StrictModel):
    """`python -m evaluation train-descriptor`: a near-duplicate descriptor from a corpus's own pictures."""

    data: PicturesConfig
    architecture: ArchitectureConfig = ArchitectureConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    run: TrainingRunConfig

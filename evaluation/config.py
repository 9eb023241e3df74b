"""What an evaluation is told: frozen, strict models, one per command.

Names, thresholds, levels and columns are semantic (they enter the digest that a report carries); places are not, because what was
read is identified by content: the corpus by its `content_root`, an evaluation set by its content hash, a model by its weights.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.content.labelled import LabelledSetConfig, check_template
from pipeline.content.readers import Layout
from pipeline.contracts.config import StrictModel, not_semantic


class Thresholds(StrictModel):
    """When two pictures count as one; recorded in the report for every set."""

    pdq_distance: int = Field(31, ge=0, le=128)  # of 256 bits; 31 is the distance PDQ's authors recommend
    pdq_quality: int = Field(
        50, ge=0, le=100
    )  # below it a picture is too flat for any perceptual hash to mean something
    phash_distance: int = Field(4, ge=0, le=32)  # of 64 bits
    phash_pdq_distance: int = Field(80, ge=0, le=256)  # a pHash match must not be contradicted by PDQ: at most this far


class OverlapSet(LabelledSetConfig):
    """One evaluation set of the overlap job."""

    limit: float = Field(0.0, ge=0, le=1)  # the largest share of overlapping examples that is still accepted
    predictions: str | None = not_semantic(None)  # predictions.parquet of `zeroshot` (its hash enters the report)
    thresholds: Thresholds | None = None  # of this set; none: those of [match]


class CorpusConfig(StrictModel):
    """The training corpus: one of this project by its manifest, or the files of one that others wrote."""

    manifest: str | None = not_semantic(None)  # manifest.json or its folder
    files: str | list[str] | None = not_semantic(None)  # files, folders and patterns (`*`, `?`, `[...]`, `**`)
    layout: Layout | None = None  # how `files` are laid out
    image: str | None = (
        None  # column of encoded pictures (Parquet only, like the next three); none: image, jpg, png or webp
    )
    caption: str | None = None  # none: caption, where there is one; likewise url and key
    url: str | None = None
    key: str | None = None  # what the corpus calls a row

    @model_validator(mode="after")
    def _one_corpus(self) -> CorpusConfig:
        if (self.manifest is None) == (self.files is None):
            raise ValueError("give manifest (a corpus of this project) or files (one that others wrote)")
        if (self.files is None) != (self.layout is None):
            raise ValueError("files and layout belong together: webdataset, parquet or folder")
        if self.layout != "parquet" and any((self.image, self.caption, self.url, self.key)):
            raise ValueError("image, caption, url and key name columns, which only the layout parquet has")
        return self


class StatisticsConfig(StrictModel):
    """Levels of the test."""

    alpha: float = Field(0.05, gt=0, lt=1)  # one-tailed, before Bonferroni
    confidence: float = Field(0.995, gt=0, lt=1)  # of every interval in the report


class ReportConfig(StrictModel):
    """Where the report goes and what it may show."""

    dir: str = not_semantic(...)
    work: str | None = not_semantic(None)  # intermediate tables, needed to resume; none: `dir` with `.work` behind it
    evidence: Literal["thumbs", "hash-only"] = (
        "thumbs"  # hash-only: no picture, caption or URL of the corpus is written
    )
    pairs_shown: int = Field(60, ge=0, le=2000)  # matched pairs per set that the page shows; the tables hold all
    thumbnail: int = Field(240, ge=32, le=512)  # longest side in pixels


class ClusterConfig(StrictModel):
    """How the work is spread; changes no result. The keys of `pipeline.engine.EngineConfig`, which would load ray here."""

    address: str | None = not_semantic(None)  # a running Ray cluster; none: the one this job is in, else a local one
    workers: int | None = not_semantic(None, ge=1)  # units at a time; none: one for each CPU


class OverlapConfig(StrictModel):
    """`python -m evaluation overlap`: how much of each set is in the corpus, and did it matter?"""

    corpus: CorpusConfig
    sets: list[OverlapSet] = Field(min_length=1)
    match: Thresholds = Thresholds()
    statistics: StatisticsConfig = StatisticsConfig()
    report: ReportConfig
    engine: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _names_differ(self) -> OverlapConfig:
        names = [one.name.lower() for one in self.sets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sets: the name {twice[0]!r} is used twice; each set needs its own")
        return self


class PromptConfig(StrictModel):
    """Sentences with `{}` where the class name goes."""

    templates: list[str] = Field(default_factory=list)  # empty: from `file`
    file: str = not_semantic(
        "general"
    )  # a set of evaluation/prompts by name, or a path: one template a line, or a JSON list

    @model_validator(mode="after")
    def _has_a_place(self) -> PromptConfig:
        for template in self.templates:
            check_template(template)
        return self


class ZeroshotConfig(StrictModel):
    """`python -m evaluation zeroshot` and `retrieval`: one exported model, some labelled sets."""

    model: str = not_semantic(...)  # folder or file that trainer.export wrote
    sets: list[LabelledSetConfig] = Field(min_length=1)
    prompts: PromptConfig = PromptConfig()
    caption_template: str = "{}"  # retrieval: the text of a picture's caption
    confidence: float = Field(0.95, gt=0, lt=1)
    out: str = not_semantic(...)
    batch: int = not_semantic(64, ge=1)
    device: str = not_semantic("cpu")

    @model_validator(mode="after")
    def _names_differ(self) -> ZeroshotConfig:
        names = [one.name.lower() for one in self.sets]
        if len(set(names)) != len(names):
            raise ValueError("sets: two sets have the same name; each set needs its own")
        check_template(self.caption_template)
        return self

"""What an evaluation is told: frozen, strict models, one per command.

Names, thresholds, levels and columns are semantic (they enter the digest that a report carries); places are not, because what was
read is identified by content: the corpus by its `content_root`, an evaluation set by its content hash, a model by its weights.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from evaluation.descriptor.views import VIEWS, ViewKind
from evaluation.overlap.measures import MeasureName
from pipeline.content.labelled import SET_NAME, LabelledSetConfig, check_template
from pipeline.content.readers import Layout
from pipeline.contracts.config import StrictModel, not_semantic

Metric = Literal["accuracy", "mean_per_class", "map11", "roc_auc", "mean_top1_top5"]
"""How a set is scored; `evaluation.metrics` computes them."""


def _names_differ(sets: list[EvaluationSet | ProbeSet]) -> list[EvaluationSet | ProbeSet]:
    names = [one.name.lower() for one in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the name {twice[0]!r} is used twice; each set needs its own")
    return sets


_Set = TypeVar("_Set", bound="EvaluationSet | ProbeSet")
Sets = Annotated[list[_Set], Field(min_length=1), AfterValidator(_names_differ)]
"""At least one set, each with a name of its own; case does not tell names apart, because there are files by these names."""


class EvaluationSet(LabelledSetConfig):
    """A labelled set as the evaluations read it: a Parquet file, a folder, webdataset tars, or the archive of a known dataset."""

    dataset: str | None = None  # its name in evaluation/datasets/catalogue.toml: classes, sizes, metric, layout
    split: str = "test"  # of a dataset; what Parquet files and folders hold is the split that they are said to be
    layout: Literal["published", "folders"] = "published"  # of a dataset: as its authors pack it, or a folder per class
    other_counts: bool = False  # accept another number of examples or classes than the catalogue knows

    @model_validator(mode="after")
    def _split_of_a_dataset(self) -> EvaluationSet:
        for key in ("split", "layout", "other_counts"):
            if self.dataset is None and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no meaning without dataset; name the dataset or drop the key")
        return self


class Thresholds(StrictModel):
    """When two pictures count as one; recorded in the report for every set."""

    pdq_distance: int = Field(31, ge=0, le=128)  # of 256 bits; 31 is the distance PDQ's authors recommend
    pdq_quality: int = Field(
        50, ge=0, le=100
    )  # below it a picture is too flat for any perceptual hash to mean something
    phash_distance: int = Field(4, ge=0, le=32)  # of 64 bits
    phash_pdq_distance: int = Field(80, ge=0, le=256)  # a pHash match must not be contradicted by PDQ: at most this far
    descriptor_score: float | None = Field(None, gt=0, le=1)  # of [descriptor]; none: the descriptor does not decide


class TextRule(StrictModel):
    """When two captions count as one; recorded in the report for every set. A token is a word, or one character of a script without
    spaces."""

    similarity: float = Field(0.8, gt=0, le=1)  # the weighted share of a caption's runs of tokens that must be there
    run: int = Field(2, ge=1, le=8)  # the longest run
    whole_below: int = Field(8, ge=1)  # a caption of fewer tokens must be there as a whole
    least: int = Field(4, ge=1)  # one of fewer is not searched: its words come together by chance


class OverlapSet(EvaluationSet):
    """One evaluation set of the overlap job."""

    limit: float = Field(0.0, ge=0, le=1)  # the largest share of overlapping examples that is still accepted
    predictions: str | None = not_semantic(None)  # predictions.parquet of `zeroshot` (its hash enters the report)
    metric: Metric | None = None  # by which its score is judged; none: the dataset's, else accuracy
    thresholds: Thresholds | None = None  # of this set; none: those of [match]
    text: TextRule | None = None  # of this set; none: that of [text]
    names: list[str] = not_semantic([])  # files of further names of the classes (their hashes enter the report)


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
        if self.files is not None and not self.files:
            raise ValueError(f"files is {self.files!r}, which names nothing; name files, folders or patterns")
        if (self.files is None) != (self.layout is None):
            raise ValueError("files and layout belong together: webdataset, parquet or folder")
        if self.layout != "parquet" and any((self.image, self.caption, self.url, self.key)):
            raise ValueError("image, caption, url and key name columns, which only the layout parquet has")
        return self


class NearestConfig(StrictModel):
    """The nearest corpus picture, whatever it is: by PDQ's distance, and by the score where there is a descriptor."""

    examples: int = Field(500, ge=0, le=100_000)  # of each set, chosen by the hash of their ids; 0: none


class CopiesConfig(StrictModel):
    """Planted copies: how much of what is changed on the way into a corpus the search would find."""

    examples: int = Field(50, ge=0, le=10_000)  # of each set, chosen by the hash of their ids; 0: none


class DescriptorConfig(StrictModel):
    """The learned descriptor, a further way to match; without this table there is none. Which scores match: `descriptor_score`."""

    weights: str = not_semantic(
        ...
    )  # folder that `train-descriptor` wrote (the sha256 of the weights enters the report)
    vectors: str | None = not_semantic(
        None
    )  # where the corpus's vectors are kept; none: `derived` beside the shards, for `files` in `report.work`
    beta: float = Field(1.0, ge=0, le=1)  # how much a score is lowered where the example is near to everything
    part_margin: float = Field(0.08, ge=0, le=1)  # how much more a part must score than the whole picture as it is
    views: list[ViewKind] = Field(
        list(VIEWS), min_length=1
    )  # what is looked at of an example: up to 16 parts, and mirrored

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views: {self.views!r} names one twice; name each once")
        if self.views == ["mirrored"]:
            raise ValueError("views: ['mirrored'] names no part to mirror; name 'whole' too")
        if set(self.views) <= {"square", "mirrored"}:
            raise ValueError(f"views: {self.views!r} shows nothing of a square picture; name 'whole' too")
        return self


class StatisticsConfig(StrictModel):
    """Levels of the test."""

    alpha: float = Field(0.05, gt=0, lt=1)  # one-tailed, before Bonferroni
    confidence: float = Field(0.995, gt=0, lt=1)  # of every interval in the report
    draws: int = Field(5000, ge=100, le=1_000_000)  # of each resampling of a metric that is no proportion
    seed: int = Field(0, ge=0, lt=1 << 63)  # of these


class ReportConfig(StrictModel):
    """Where the report goes and what it may show."""

    dir: str = not_semantic(...)
    work: str | None = not_semantic(None)  # intermediate tables, needed to resume; none: `dir` with `.work` behind it
    evidence: Literal["thumbs", "hash-only"] = (
        "thumbs"  # hash-only: no picture, caption or URL of the corpus is written
    )
    pairs_shown: int = Field(60, ge=0, le=2000)  # matched pairs per set that the page shows; the tables hold more
    page_pairs: int = Field(600, ge=1, le=20_000)  # the same of all sets together, each set's share alike
    pairs_kept: int = Field(
        100, ge=1, le=100_000
    )  # pairs of each example, or caption, and method that the tables hold, the nearest; counts and removal lists are of all
    misses_shown: int = Field(12, ge=0, le=2000)  # near misses per set that the page shows
    thumbnail: int = Field(240, ge=32, le=512)  # longest side in pixels


class LabellingConfig(StrictModel):
    """What `python -m evaluation label` asks people; changes no report."""

    dir: str | None = not_semantic(None)  # where the pages go; none: `report.dir` with `.labelling` behind it
    by: MeasureName = not_semantic(
        "pdq"
    )  # which nearest pictures are asked about; "descriptor": those of the highest score
    per_bin: int = not_semantic(20, ge=1, le=1000)  # pairs of each bin of eight PDQ bits, or of a twentieth in score
    longest: int = not_semantic(480, ge=64, le=1024)  # longest side of a picture in pixels


class ClusterConfig(StrictModel):
    """How the work is spread; changes no result. The keys of `pipeline.engine.EngineConfig`, which would load ray here."""

    address: str | None = not_semantic(None)  # a running Ray cluster; none: the one this job is in, else a local one
    workers: int | None = not_semantic(None, ge=1)  # units at a time; none: one for each CPU


class OverlapConfig(StrictModel):
    """`python -m evaluation overlap`: how much of each set is in the corpus, and did it matter?"""

    corpus: CorpusConfig
    sets: Sets[OverlapSet]
    match: Thresholds = Thresholds()
    nearest: NearestConfig = NearestConfig()
    copies: CopiesConfig = CopiesConfig()
    descriptor: DescriptorConfig | None = None
    text: TextRule = TextRule()
    statistics: StatisticsConfig = StatisticsConfig()
    labels: list[str] = not_semantic([])  # files that the labelling page exported (their hashes enter the report)
    report: ReportConfig
    labelling: LabellingConfig = LabellingConfig()
    engine: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _scores_need_a_descriptor(self) -> OverlapConfig:
        for place, limits in (
            ("match", self.match),
            *((f"sets.{one.name}.thresholds", one.thresholds) for one in self.sets),
        ):
            if self.descriptor is None and limits is not None and limits.descriptor_score is not None:
                raise ValueError(
                    f"{place}.descriptor_score is {limits.descriptor_score!r} and there is no table [descriptor]; name its weights there"
                )
        if self.descriptor is None and self.labelling.by == "descriptor":
            raise ValueError(
                "labelling.by is 'descriptor' and there is no table [descriptor]; name its weights there, or ask by 'pdq'"
            )
        return self


class PromptConfig(StrictModel):
    """Sentences with `{}` where the class name goes, for every set that brings none of its own."""

    templates: list[str] = Field(default_factory=list)  # empty: from `file`
    file: str | None = not_semantic(
        None
    )  # `general`, `drawing`, `plain`, or what `load_prompts` reads; none: those of the dataset, else `general`
    language: Literal["en", "zh"] = "en"  # of the class names and templates that the project has for a dataset

    @model_validator(mode="after")
    def _has_a_place(self) -> PromptConfig:
        for template in self.templates:
            check_template(template)
        return self


class BiasSet(EvaluationSet):
    """One set of portraits and the probe to run on it; `subgroup` names the groups that are compared."""

    probe: Literal["gender", "race", "age", "denigration", "identity"]
    subgroup: str | None = None  # needed by every probe but identity

    @model_validator(mode="after")
    def _fits_the_probe(self) -> Self:
        if self.subgroup is None and self.probe != "identity":
            raise ValueError(f"subgroup: the {self.probe} probe compares groups; name their column")
        if self.label is None and self.probe != "denigration":
            raise ValueError(f"label: the {self.probe} probe needs the column of labels")
        if (self.classes or self.classes_file is not None) and self.probe != "identity":
            raise ValueError(f"classes: the {self.probe} probe brings its own class list; leave it out")
        return self


class BiasConfig(StrictModel):
    """`python -m evaluation bias`: the CLIP paper's probes of bias (7.1) on sets that the user has."""

    model: str = not_semantic(...)  # folder or file that trainer.export wrote
    sets: Sets[BiasSet]
    templates: list[str] = Field(["a photo of a {}"], min_length=1)  # the paper does not print its own
    identities: list[Annotated[int, Field(ge=2)]] = Field(
        [100, 1000, 2000], min_length=1
    )  # identity: names to choose from
    confidence: float = Field(0.95, gt=0, lt=1)
    out: str = not_semantic(...)
    batch: int = not_semantic(64, ge=1)
    device: str = not_semantic("cpu")

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        for template in self.templates:
            check_template(template)
        return self


class HumanConfig(StrictModel):
    """`python -m evaluation human` and `human-scores`: people classify the pictures of a set, as in the CLIP paper's section 4."""

    set: EvaluationSet
    samples: EvaluationSet | None = None  # where the pictures that people see of each class come from
    shots: int = Field(0, ge=0, le=2)  # such pictures of each class
    participants: int = Field(5, ge=1, le=100)
    pictures: int | None = Field(None, ge=1)  # how many of the set, chosen by hash; none: all
    longest: int = Field(480, ge=32, le=2048)  # longest side of a picture on the page, in pixels
    seed: int = Field(0, ge=0, lt=1 << 64)
    confidence: float = Field(0.95, gt=0, lt=1)
    answers: list[str] = not_semantic([])  # human-scores: files that the pages exported
    predictions: str | None = not_semantic(None)  # human-scores: a model's prediction file on this set, to stand beside
    out: str = not_semantic(...)

    @model_validator(mode="after")
    def _samples_where_shots(self) -> Self:
        if (self.samples is None) != (self.shots == 0):
            raise ValueError("samples: go with shots = 1 or 2, and only with them")
        return self


def _no_boolean(value: object) -> object:
    """True would be taken for an accuracy of 1."""
    if isinstance(value, bool):
        raise ValueError(
            f"{str(value).lower()} is no accuracy; give a share, such as 0.63, or the place of predictions"
        )
    return value


StatedAccuracy = Annotated[Annotated[float, Field(ge=0, le=1)] | str, BeforeValidator(_no_boolean)]
"""A share, or the place of a prediction file."""


class ShiftScores(StrictModel):
    """A model on one natural distribution shift: accuracies as shares, or places of prediction files."""

    name: Literal[
        "imagenetv2", "imagenet_sketch", "objectnet", "imagenet_r", "imagenet_a", "imagenet_vid", "youtube_bb"
    ]
    standard: StatedAccuracy  # on ImageNet, on the classes that the shifted set has
    standard_classes: list[int] = Field(
        default_factory=list
    )  # take `standard` from predictions on more classes, for these class numbers alone
    shift: list[StatedAccuracy] = Field(min_length=1, max_length=2)  # of the two video sets pm-0 and pm-10

    @model_validator(mode="after")
    def _as_many_as_settings(self) -> Self:
        settings = 2 if self.name in ("imagenet_vid", "youtube_bb") else 1
        if len(self.shift) != settings:
            raise ValueError(
                f"shift: {self.name} takes {settings} accuracies{' (pm-0, pm-10)' if settings == 2 else ''}, got {len(self.shift)}"
            )
        if self.standard_classes and not isinstance(self.standard, str):
            raise ValueError("standard_classes needs predictions as `standard`, not a number")
        return self


class RobustnessConfig(StrictModel):
    """`python -m evaluation robustness`: one model on some of the seven shifts, beside reference models."""

    shifts: list[ShiftScores] = Field(min_length=1)
    reference: str | None = not_semantic(
        None
    )  # CSV of reference models (its sha256 is in the result); none: published lines
    confidence: float = Field(0.95, gt=0, lt=1)
    out: str = not_semantic(...)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if len({one.name for one in self.shifts}) != len(self.shifts):
            raise ValueError("shifts: one comes twice; give each shift once")
        return self


class ZeroshotSet(EvaluationSet):
    """One set of `zeroshot` and `retrieval`."""

    prompts: str | None = not_semantic(
        None
    )  # class names (and templates): `cifar10.zh`, `open_clip:imagenet`, a file; none: by `dataset`
    templates: str | None = not_semantic(None)  # templates from elsewhere than `prompts`
    metric: Metric | None = None  # the headline; none: the dataset's, else accuracy


class ZeroshotConfig(StrictModel):
    """`python -m evaluation zeroshot` and `retrieval`: one exported model, some labelled sets."""

    model: str = not_semantic(...)  # folder or file that trainer.export wrote
    sets: Sets[ZeroshotSet]
    prompts: PromptConfig = PromptConfig()
    caption_template: str = "{}"  # retrieval: the text of a picture's caption; the paper's is "a photo of {}"
    keep_scores: bool = (
        False  # zeroshot: write every class's cosine, which a fitted temperature needs (4 bytes a class and example)
    )
    confidence: float = Field(0.95, gt=0, lt=1)
    out: str = not_semantic(...)
    batch: int = not_semantic(64, ge=1)
    device: str = not_semantic("cpu")
    cache: str | None = not_semantic(None)  # folder of features kept by content; none: nothing is kept

    @model_validator(mode="after")
    def _has_a_place(self) -> ZeroshotConfig:
        check_template(self.caption_template)
        return self


class ProbeSet(StrictModel):
    """One dataset of a probe: what is learned from, where the strength is chosen, what is reported. All three have one class list."""

    name: str = Field(pattern=SET_NAME, max_length=100)
    train: EvaluationSet
    validation: EvaluationSet | None = None  # none: `validation_share` of train
    test: EvaluationSet
    # Of the choice of the strength and of the headline. None: the dataset's, the strength being chosen by the mean per class where that is
    # the metric, else by top-1. Sets with several labels a picture take none: both are the 11-point mAP.
    metric: Literal["top1", "mean_per_class"] | None = None


class _ProbeConfig(StrictModel):
    model: str = not_semantic(...)  # folder or file that trainer.export wrote
    sets: Sets[ProbeSet]
    validation_share: float = Field(0.2, gt=0, lt=1)  # cut from train, class by class, where a set has no validation
    seed: int = Field(0, ge=0, lt=1 << 64)  # of that cut
    tolerance: float = Field(1e-5, gt=0, lt=1)  # largest entry of a finished fit's gradient
    confidence: float = Field(0.95, gt=0, lt=1)
    out: str = not_semantic(...)
    batch: int = not_semantic(64, ge=1)
    device: str = not_semantic("cpu")
    cache: str | None = not_semantic(None)  # folder of features kept by content; none: nothing is kept


class ProbeConfig(_ProbeConfig):
    """`python -m evaluation probe`: a linear classifier on the features of one exported model."""


class FewshotConfig(_ProbeConfig):
    """`python -m evaluation fewshot`: the same from a few examples a class, several times."""

    shots: list[Annotated[int, Field(ge=1)]] = Field([1, 2, 4, 8, 16], min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=1 << 64)]] = Field([0, 1, 2, 3, 4], min_length=2)
    lists: str | None = not_semantic(
        None
    )  # folder of the lists of an earlier run (its `lists`); none: chosen by the seeds

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if sorted(set(self.shots)) != self.shots:
            raise ValueError(f"shots: {self.shots} must ascend without repeats")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} names one twice; each seed is one draw")
        return self

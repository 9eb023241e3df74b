"""What `report.json` says, as models; the JSON Schema that lies beside every report is made from them.

A report holds figures and identities only. What depends on the moment or the machine (times, versions, places) is in `run.json`,
which is not part of it: the same inputs give the same bytes of every other file.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from evaluation.config import Metric, TextRule, Thresholds
from evaluation.descriptor.artefact import Card
from evaluation.descriptor.views import ViewKind
from evaluation.overlap.statistics import Verdict
from pipeline.content.labelled import SET_NAME
from pipeline.contracts.config import StrictModel

SCHEMA_NAME = "evaluation.overlap.report"
SCHEMA_VERSION = 7
"""2: clusters of repeats, differences with intervals, exact tests, classes, Holm. 3: other thresholds, nearest pictures, planted copies,
labels, words, corpora that others wrote. 4: the learned descriptor, what a checkpoint had seen, predictions, metrics that are no
proportions, tables that hold the nearest pairs of many. 5: nearest pictures and labels by the descriptor's score, too; the tables of both
say by which measure; of videos, a video is the example. 6: a part's margin of the descriptor. 7: the detectable gain is both tests'."""


class Share(StrictModel):
    """`hits` of `n`, with the two-sided Clopper-Pearson interval; `value` is null where `n` is 0."""

    n: int
    hits: int
    value: float | None
    low: float
    high: float


class Difference(StrictModel):
    """One accuracy minus another (Overlap minus Clean, where nothing else is said), with the ends of its interval."""

    value: float
    low: float
    high: float


class Corpus(StrictModel):
    """Which corpus was searched: `shards` of this project, or the files of one that others wrote, by their layout.

    `rows_without_hashes` could only be compared by their exact bytes. Of foreign files (`shards` counts them, or blocks of a folder's
    pictures), `rows` were searched, those in `rejected`, by reason, have no picture that can be, and `damaged_files` were searched up to
    the place where they are damaged.
    """

    kind: Literal["shards", "webdataset", "parquet", "folder"]
    content_root: str
    rows: int
    shards: int
    rows_without_hashes: int
    rejected: dict[str, int]
    damaged_files: int
    hashes: dict[str, str]
    config_digest: str | None


class DescriptorReport(StrictModel):
    """The learned descriptor: its card, how it was used, and how many corpus rows have no vector (no picture, a broken or a flat one).

    `vectors_sha256` is over all vectors, of corpus and sets: machines that compute them alike have the same one.
    """

    card: Card
    views: list[ViewKind]
    beta: float
    part_margin: float
    rows_without_vector: int
    vectors_sha256: str


class Found(StrictModel):
    """What the search found in one set; `by_method` counts each overlapping example once, under its strongest match.

    `pairs` and `corpus_rows` count all, `pairs_held` those that pairs.parquet holds (see `Report.pairs_kept`).
    """

    share: Share
    by_method: dict[str, int]
    pairs: int
    pairs_held: int
    corpus_rows: int


class Classes(StrictModel):
    """Overlap minus Clean within classes, over the `units` of the `classes` that have units on both sides."""

    classes: int
    units: int
    difference: Difference | None
    p_value: float


class Value(StrictModel):
    """A metric over `n` examples; `undefined` says why there is no value, `classes` how many a mean over classes is over."""

    n: int
    classes: int | None
    value: float | None
    undefined: str | None


class MetricEffect(StrictModel):
    """The same question asked of the set's own metric, where that is no proportion; what decides the verdict there.

    All − Clean has its two-sided BCa interval (`low`, `high`), and `least`, the lower end of the one-sided one at the corrected alpha, from
    those `drawn` of the bootstrap's draws on which the metric has a value; draws are of whole clusters. `p_value` is that of the placements
    of Overlap at random over the units, `detectable_gain` the gain on Overlap that both would see four times in five
    (`overlap.statistics.inflation`).
    """

    all: Value
    clean: Value
    overlap: Value
    clean_units: int
    overlap_units: int
    all_minus_clean: float | None
    low: float | None
    high: float | None
    least: float | None
    drawn: int
    p_value: float | None
    detectable_gain: float | None


class Effect(StrictModel):
    """Did it change the score? `all`, `clean` and `overlap` are over the scored examples of each split; tests are over units.

    A unit is a cluster of repeats. All of this is of top-1 answers; `own` is the set's own metric where that is another one. `p_value` is
    the paper's test, `holm_p` the p that decides (that of `own` where there is one) after Holm's correction over the sets of the report,
    `exact_p` takes Clean for a sample too; an effect needs both, and `detectable_gain` is the gain on Overlap that both would see four
    times in five; `largest_inflation` is the most that the upper end of `difference` allows.
    """

    model: str | None
    model_content_root: str | None
    same_corpus: bool | None
    predictions_sha256: str
    all: Share
    clean: Share
    overlap: Share
    all_minus_clean: float | None
    clean_units: Share
    overlap_units: Share
    p_value: float | None
    holm_p: float | None
    alpha: float
    detectable_gain: float | None
    difference: Difference | None
    largest_inflation: float | None
    exact_p: float | None
    by_class: Classes | None
    own: MetricEffect | None


class Exposure(StrictModel):
    """What the checkpoint behind the scores had seen of the overlapping examples; known where it was trained on this corpus.

    Its run had come to `samples_seen` samples, in the order of `seed` and `window_row_groups`, from random weights or those of
    `init_sha256`. `share`: of the overlapping examples, those with a matched row that it had shown; `corpus_rows` of the matched rows are
    such. `seen` and `unseen`: accuracies on the scored ones of both kinds, `difference` the first minus the second over units.
    """

    samples_seen: int
    seed: int
    window_row_groups: int
    init_sha256: str | None
    share: Share
    corpus_rows: int
    seen: Share
    unseen: Share
    seen_units: Share
    unseen_units: Share
    difference: Difference | None


class Step(StrictModel):
    """What another threshold would have given: the examples with the same bytes, or a PDQ match of at most `distance` bits.

    `overlapping` counts examples, `scored` those of them that have a score; the figures beside them are those of `Effect`, null without
    scores or with one side empty.
    """

    distance: int
    overlapping: int
    scored: int
    all_minus_clean: float | None
    difference: Difference | None
    p_value: float | None


class ScoreStep(StrictModel):
    """What a stricter descriptor would have given: the examples that bytes or hashes find, or it with a score of at least `score`.

    The other figures are those of `Step`.
    """

    score: float
    overlapping: int
    scored: int
    all_minus_clean: float | None
    difference: Difference | None
    p_value: float | None


class Nearest(StrictModel):
    """How far the nearest corpus picture is from each of `sampled` pictures, in PDQ bits.

    `counts[k]` of them lie at 8 k to 8 k + 7 bits; `median` is null where the corpus has no picture with enough texture.
    """

    sampled: int
    counts: list[int] = Field(min_length=33, max_length=33)
    median: float | None


class ScoreNearest(StrictModel):
    """How high the descriptor scores the nearest corpus picture of each of `sampled` examples (those with a vector).

    `counts[k]` of them lack 50 k to 50 k + 49 thousandths of 1, rounded up, the last all of it or more; `median` is null without any.
    """

    sampled: int
    counts: list[int] = Field(min_length=21, max_length=21)
    median: float | None


class Rates(StrictModel):
    """Precision and recall within a threshold, from people's labels, with one-sided lower bounds; no recall: none is the same."""

    answers: int
    precision: float
    precision_low: float
    recall: float | None
    recall_low: float | None


class Point(Rates):
    """Within `distance` PDQ bits."""

    distance: int


class ScorePoint(Rates):
    """With a score of at least `score`; 0 stands for any."""

    score: float


class Labelled(StrictModel):
    """What people said of a set's nearest pictures; see `overlap.thresholds`."""

    raters: list[str]
    answers: int
    kappa: float | None


class Calibration(Labelled):
    """Of those by PDQ, and the distance that the rule chooses."""

    curve: list[Point]
    chosen: int | None
    band: tuple[int, int] | None


class ScoreCalibration(Labelled):
    """Of those by the descriptor, and the score that the rule chooses."""

    curve: list[ScorePoint]
    chosen: float | None
    band: tuple[float, float] | None


class Recall(StrictModel):
    """Of the copies that were changed by `transform`, the share that the set's thresholds find; `pdq`, `phash` and `descriptor` are
    counts by method."""

    transform: str
    found: Share
    pdq: int
    phash: int
    descriptor: int


class Captions(StrictModel):
    """A set's captions in the corpus's captions: of the `share.n` pictures whose caption is long enough to be searched. Here a picture
    is an example in a set of videos, too: captions are of frames.

    `texts` is how many different captions those are, `too_short` how many examples have a shorter one; `by_method` counts each example
    once, under its strongest match. `pairs` and `corpus_rows` count all, `pairs_held` those that text_pairs.parquet holds. `with_picture`
    examples have caption and picture in one and the same corpus row, among the pairs that pairs.parquet holds.
    """

    share: Share
    texts: int
    too_short: int
    by_method: dict[str, int]
    pairs: int
    pairs_held: int
    corpus_rows: int
    with_picture: int


class Labels(StrictModel):
    """The names of a set's classes in the corpus's captions.

    `named`: of the examples whose picture was found in a row that has a caption (by a pair that is held), and whose class has a name, those
    with a caption among them that names the class. `expected` is what the same classes would have on average in any rows of the corpus
    (null where n is 0). Over the whole corpus: `classes_named` of the `classes` with a name stand in a caption at all, `mentions` is the
    sum over classes of such rows.
    """

    named: Share
    expected: float | None
    classes: int
    classes_named: int
    mentions: int


class TextReport(StrictModel):
    """Words of a set inside the corpus; `captions` is null where the set has none, `labels` where its classes have no names."""

    rule: TextRule
    names_sha256: list[str]
    captions: Captions | None
    labels: Labels | None


class SetReport(StrictModel):
    """One evaluation set. An example is a picture; where the set's pictures are the `frames` of videos (else null), a video.

    `repeated_pictures` have the bytes of an earlier one, `too_flat` ones are compared by these only; examples that repeat one another
    count once in `clusters`. `score_nearest` and `score_calibration` are null without a descriptor.
    """

    name: str = Field(pattern=SET_NAME, max_length=100)
    content_hash: str
    examples: int
    frames: int | None
    repeated_pictures: int
    clusters: int
    too_flat: int
    thresholds: Thresholds
    limit: float
    over_limit: bool
    found: Found
    metric: Metric
    effect: Effect | None
    exposure: Exposure | None
    sweep: list[Step]
    score_sweep: list[ScoreStep]  # empty where the descriptor does not decide
    nearest: Nearest
    score_nearest: ScoreNearest | None
    copies: list[Recall]
    calibration: Calibration | None
    score_calibration: ScoreCalibration | None
    text: TextReport
    verdict: Verdict


class Statistics(StrictModel):
    """The levels of every test in the report; `tests` is what Bonferroni divides by, `draws` and `seed` are of every resampling."""

    alpha: float
    confidence: float
    tests: int
    draws: int
    seed: int


class Removal(StrictModel):
    """Lines of removal_ids.txt and removal_ids_text.txt: every corpus row that matches a picture, and those that only a caption matches."""

    pictures: int
    captions: int


class Report(StrictModel):
    """The whole report.

    The tables of pairs hold, of each example (of each caption) and method, the best `pairs_kept`, of equal ones the first in the corpus,
    and every caption that stands with its picture; all counts, distances and lists of rows are of all pairs.
    """

    schema_name: Literal["evaluation.overlap.report"]
    schema_version: Literal[7]
    config_digest: str
    evidence: Literal["thumbs", "hash-only"]
    pairs_kept: int
    removal: Removal
    corpus: Corpus
    descriptor: DescriptorReport | None
    labels: list[str]  # sha256 of the files of labels
    statistics: Statistics
    over_limit: list[str]
    sets: list[SetReport]
    not_checked: list[str]

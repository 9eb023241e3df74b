"""`python -m evaluation robustness`: how much of an accuracy stays when the pictures come from elsewhere, beside what other models keep.

The seven natural distribution shifts of the CLIP paper (3.3; after Taori et al., 2020). A model that scores x on ImageNet is expected
to score σ(a · logit(x) + b) on the shifted set, a line fitted by least squares to the logits of reference models, which were trained on
ImageNet alone. What a model reaches above that line is its effective robustness:

    ρ = accuracy(shift) − σ(a · logit(accuracy(standard)) + b)

`standard` is the accuracy on those ImageNet classes that the shifted set has (200 of ImageNet-A and -R, 113 of ObjectNet, the classes
of the two video sets; all for V2 and Sketch), with just these classes to choose from: `standard_classes` takes it from predictions on
all of ImageNet. The two video sets are scored twice: on the middle frames (pm-0), and counting a frame as right only when the frames
within ten of it are too (pm-10); as in the paper, the accuracy and ρ of such a set are the means of both.

The lines come from a table of reference models that the user names (`reference`; one row a model, accuracies in per cent; the columns
of `SHIFTS` are those of robustness_top1s.csv in modestyachts/imagenet-testbed), and then have 95 % intervals by bootstrap over models,
which ρ inherits. Without a table the coefficients in `PUBLISHED` are used, and ρ's interval holds the examples only.

Published accuracies are given as numbers; those of a run of `zeroshot` as places of prediction files, which also give the counts an
interval needs. `robustness.svg` shows the shift's accuracy against the standard one on logit axes, with the line and the reference
models.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import binom

from evaluation import predictions
from evaluation.config import RobustnessConfig, ShiftScores
from evaluation.intervals import Interval, clopper_pearson
from evaluation.predictions import Predictions
from evaluation.report.files import canonical
from evaluation.robustness_figure import Panel, draw
from pipeline.contracts import storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError

DRAWS = 2000
_SEED = 0
_MOST_BYTES = 64 << 20
_EDGE = 1e-9  # an accuracy drawn as 0 or 1 counts as this far from it

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to score a shift: the reference table's column of it, and of ImageNet on the same classes."""

    name: str
    column: str
    standard: str


SHIFTS: dict[str, tuple[Setting, ...]] = {
    "imagenetv2": (Setting("imagenetv2", "imagenetv2-matched-frequency-format-val", "val"),),
    "imagenet_sketch": (Setting("imagenet_sketch", "imagenet-sketch", "val"),),
    "objectnet": (Setting("objectnet", "objectnet-1.0-beta", "val-on-objectnet-classes"),),
    "imagenet_r": (Setting("imagenet_r", "imagenet-r", "val-on-imagenet-r-classes"),),
    "imagenet_a": (Setting("imagenet_a", "imagenet-a", "val-on-imagenet-a-classes"),),
    "imagenet_vid": (
        Setting("imagenet_vid.pm0", "imagenet-vid-robust_pm0", "val-on-vid-robust-classes"),
        Setting("imagenet_vid.pm10", "imagenet-vid-robust_pm10", "val-on-vid-robust-classes"),
    ),
    "youtube_bb": (
        Setting("youtube_bb.pm0", "ytbb-robust_pm0", "val-on-ytbb-robust-classes"),
        Setting("youtube_bb.pm10", "ytbb-robust_pm10", "val-on-ytbb-robust-classes"),
    ),
}
"""The seven shifts; those with two settings are the video sets."""

PUBLISHED: dict[str, tuple[float, float]] = {
    "imagenetv2": (0.9333, -0.4947),
    "imagenet_sketch": (1.0352, -2.2730),
    "objectnet": (0.8996, -1.8497),
    "imagenet_r": (0.6808, -2.0892),
    "imagenet_a": (0.5515, -3.8769),
    "imagenet_vid.pm0": (0.5375, -1.4038),
    "imagenet_vid.pm10": (0.4963, -1.9377),
    "youtube_bb.pm0": (0.4180, -1.4120),
    "youtube_bb.pm10": (0.4403, -2.0724),
}
"""Slope and intercept of each setting: least squares on logits over the models of imagenet-testbed's table (commit 0170eec) other than
CLIP."""


@dataclasses.dataclass(frozen=True)
class Line:
    """logit(shift) = slope · logit(standard) + intercept. `drawn` float64[DRAWS, 2] are the same of resampled models, none without a
    table."""

    slope: float
    intercept: float
    slope_interval: Interval | None
    intercept_interval: Interval | None
    r_squared: float | None
    models: int | None
    drawn: Floats | None = dataclasses.field(default=None, repr=False)

    def expected(self, standard: float) -> float:
        """The accuracy on the shift that models with this standard accuracy have."""
        return float(expit(self.slope * logit(standard) + self.intercept))


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share; the number of examples, which model answered which set, and Clopper-Pearson's interval, where it was counted and not
    given."""

    value: float
    n: int | None = None
    model: str | None = None
    set_hash: str | None = None
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Robustness:
    """One shift: means over its settings. `standard` is the accuracy on ImageNet's corresponding classes."""

    name: str
    standard: float
    shift: float
    expected: float
    effective: Interval
    standard_from: Accuracy
    shifts_from: list[Accuracy]


# ---- lines


def fit(standard: Floats, shift: Floats, confidence: float = 0.95) -> Line:
    """Least squares through the logits of accuracies float64[models], with bootstrap intervals over models.

    Models with an accuracy of 0 or 1 have no logit and are left out. Raises InputError for fewer than three models, or models that all
    have the same standard accuracy.
    """
    usable = (standard > 0) & (standard < 1) & (shift > 0) & (shift < 1)
    x, y = logit(standard[usable]), logit(shift[usable])
    if len(x) < 3 or np.ptp(x) == 0:
        raise InputError(
            f"reference: {len(x)} models with two accuracies strictly between 0 and 100 %, where a line needs three that are not all "
            "alike; give more reference models"
        )
    slope, intercept = _least_squares(x, y)
    residual = y - slope * x - intercept
    spread = float(((y - y.mean()) ** 2).sum())
    random = np.random.default_rng(_SEED)
    drawn = np.empty((DRAWS, 2))
    for number in range(DRAWS):
        rows = random.integers(0, len(x), len(x))
        while np.ptp(x[rows]) == 0:  # one model over and over has no line
            rows = random.integers(0, len(x), len(x))
        drawn[number] = _least_squares(x[rows], y[rows])
    ends = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Line(
        slope,
        intercept,
        Interval(slope, float(ends[0, 0]), float(ends[1, 0])),
        Interval(intercept, float(ends[0, 1]), float(ends[1, 1])),
        1 - float((residual**2).sum()) / spread if spread > 0 else None,
        len(x),
        drawn,
    )


def _least_squares(x: Floats, y: Floats) -> tuple[float, float]:
    away = x - x.mean()
    slope = float((away * y).sum() / (away**2).sum())
    return slope, float(y.mean() - slope * x.mean())


def read_reference(uri: str) -> dict[str, Floats]:
    """The columns of a table of reference models, as shares; an empty field is nan.

    A CSV with the columns `model` and those of `SHIFTS` that it has, accuracies in per cent. Raises InputError for anything else.
    """
    try:
        text = storage.read_bytes(uri, limit=_MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{uri}: not UTF-8 text; give a CSV of accuracies, one row a model") from None
    rows = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next(rows, [])
        wanted = {column for settings in SHIFTS.values() for one in settings for column in (one.column, one.standard)}
        places = {name: place for place, name in enumerate(header) if name in wanted}
        if "model" not in header or len(places) < 2 or len(set(header)) != len(header):
            raise InputError(
                f"{uri}: no column 'model', fewer than two columns of accuracies, or a name twice; the columns are those of "
                f"imagenet-testbed's table, for example {sorted(wanted)[0]!r}"
            )
        found: dict[str, list[float]] = {name: [] for name in places}
        for row in rows:
            if len(row) != len(header):
                raise InputError(
                    f"{uri}: line {rows.line_num}: {len(row)} fields, the header has {len(header)}; mend the line"
                )
            for name, place in places.items():
                found[name].append(_share(uri, rows.line_num, name, row[place]))
    except csv.Error as error:
        raise InputError(f"{uri}: line {rows.line_num}: not CSV ({error}); mend the line") from None
    return {name: np.array(values) for name, values in found.items()}


def _share(uri: str, line: int, column: str, text: str) -> float:
    if not text.strip():
        return math.nan
    try:
        value = float(text) / 100
    except ValueError:
        value = math.inf
    if not 0 <= value <= 1:
        raise InputError(
            f"{uri}: line {line}: {column} is {text!r}, not a percentage between 0 and 100; mend the field"
        )
    return value


def lines(reference: Mapping[str, Floats] | None, settings: Sequence[Setting], confidence: float) -> dict[str, Line]:
    """The line of each setting: fitted to the reference models that have both accuracies, or the published one without a table."""
    if reference is None:
        return {one.name: Line(*PUBLISHED[one.name], None, None, None, None) for one in settings}
    found = {}
    for one in settings:
        if one.column not in reference or one.standard not in reference:
            raise InputError(
                f"reference: no columns {one.column!r} and {one.standard!r}, which {one.name} needs; leave the shift out or add them"
            )
        standard, shift = reference[one.standard], reference[one.column]
        both = np.isfinite(standard) & np.isfinite(shift)
        found[one.name] = fit(standard[both], shift[both], confidence)
    return found


# ---- effective robustness


def effective(
    name: str, standard: Accuracy, shifts: Sequence[Accuracy], fits: Sequence[Line], confidence: float = 0.95
) -> Robustness:
    """ρ of one shift, the mean over its settings (one, or pm-0 and pm-10).

    The interval joins what is known to vary: the examples, where their numbers are (binomial draws; the two settings of a video set
    share their frames and are drawn together, which can only widen it), and the reference models, where the lines were fitted. No
    interval where neither is known. Raises InputError for a standard accuracy of 0 or 1, which has no logit.
    """
    if not 0 < standard.value < 1:
        raise InputError(
            f"{name}: a standard accuracy of {standard.value!r} has no logit; it must lie strictly between 0 and 1"
        )
    expected = float(np.mean([line.expected(standard.value) for line in fits]))
    shift = float(np.mean([one.value for one in shifts]))
    uniform = np.random.default_rng(_SEED).random((2, DRAWS))
    x = logit(np.clip(_drawn(standard, uniform[0]), _EDGE, 1 - _EDGE))
    total: Floats = np.zeros(DRAWS)
    for one, line in zip(shifts, fits, strict=True):
        slope, intercept = (line.slope, line.intercept) if line.drawn is None else line.drawn.T
        total += (_drawn(one, uniform[1]) - expit(slope * x + intercept)) / len(fits)
    interval = Interval(shift - expected, None, None)
    if np.ptp(total) > 0:
        low, high = np.quantile(total, [(1 - confidence) / 2, (1 + confidence) / 2])
        interval = Interval(shift - expected, float(low), float(high))
    return Robustness(name, standard.value, shift, expected, interval, standard, list(shifts))


def _drawn(one: Accuracy, uniform: Floats) -> Floats:
    """Accuracies that other draws of as many examples would give."""
    if one.n is None:
        return np.full(DRAWS, one.value)
    shares: Floats = binom.ppf(uniform, one.n, one.value) / one.n
    return shares


def subset_accuracy(one: Predictions, classes: Sequence[int], confidence: float = 0.95) -> Accuracy:
    """Accuracy over the examples of some classes when only these may be answered; different pictures are counted.

    Raises InputError where the file has no scores of every class, or no example of these.
    """
    if one.scores is None:
        raise InputError(
            f"{one.place}: has no scores of every class, which an accuracy on some classes needs; score the set with keep_scores=true"
        )
    allowed = np.unique(np.array(classes, np.int64))
    if allowed[0] < 0 or allowed[-1] >= one.scores.shape[1]:
        odd = int(allowed[0] if allowed[0] < 0 else allowed[-1])
        raise InputError(f"{one.place}: class {odd} of {one.scores.shape[1]}; check standard_classes")
    rows = one.units()[np.isin(one.labels[one.units()], allowed)]
    if not len(rows):
        raise InputError(f"{one.place}: has no example of these {len(allowed)} classes; check standard_classes")
    answers = allowed[one.scores[rows][:, allowed].argmax(axis=1)]
    return _counted(answers == one.labels[rows], one, confidence)


def _counted(correct: NDArray[np.bool_], one: Predictions, confidence: float) -> Accuracy:
    low, high = clopper_pearson(int(correct.sum()), len(correct), confidence)
    return Accuracy(float(correct.mean()), len(correct), one.model, one.set_hash, low, high)


# ---- the command


def run(config: RobustnessConfig) -> str:
    """Fit, compare, write `robustness.json` and `robustness.svg`; returns the lines for the terminal."""
    settings = [each for one in config.shifts for each in SHIFTS[one.name]]
    reference = None if config.reference is None else read_reference(config.reference)
    fitted = lines(reference, settings, config.confidence)
    found, panels = [], []
    for one in config.shifts:
        standard, shifts = (
            _standard(one, config.confidence),
            [_accuracy(given, config.confidence) for given in one.shift],
        )
        fits = [fitted[each.name] for each in SHIFTS[one.name]]
        found.append(effective(one.name, standard, shifts, fits, config.confidence))
        for each, accuracy, line in zip(SHIFTS[one.name], shifts, fits, strict=True):
            models = None if reference is None else (reference[each.standard], reference[each.column])
            panels.append(Panel(each.name, standard.value, accuracy.value, line.slope, line.intercept, models))
    _one_model(found)
    storage.write_atomic(storage.join(config.out, "robustness.svg"), draw(panels))
    place = storage.join(config.out, "robustness.json")
    storage.write_atomic(place, canonical(_as_json(config, found, fitted)))
    return "\n".join([*_describe(found, fitted, config), f"\nfigures: {place}"])


def _one_model(found: Sequence[Robustness]) -> None:
    counted = [each for one in found for each in (one.standard_from, *one.shifts_from) if each.model is not None]
    who = sorted({str(each.model)[:12] for each in counted})
    if len(who) > 1:
        raise InputError(f"shifts: the prediction files are of {len(who)} models ({', '.join(who)}); give those of one")


def plan(config: RobustnessConfig) -> str:
    """What a run would do, for `--check`."""
    source = "the published lines" if config.reference is None else f"lines fitted to {config.reference!r}"
    return f"{', '.join(one.name for one in config.shifts)} against {source}; figures in {config.out!r}"


def _standard(one: ShiftScores, confidence: float) -> Accuracy:
    if one.standard_classes and isinstance(one.standard, str):
        return subset_accuracy(predictions.read(one.standard), one.standard_classes, confidence)
    return _accuracy(one.standard, confidence)


def _accuracy(given: float | str, confidence: float) -> Accuracy:
    if isinstance(given, str):
        one = predictions.read(given)
        return _counted(one.correct[one.units()], one, confidence)
    return Accuracy(given)


def _describe(found: Sequence[Robustness], fitted: Mapping[str, Line], config: RobustnessConfig) -> list[str]:
    said = ["shift               standard    shift  expected  effective robustness, points"]
    for one in found:
        ends = one.effective
        interval = (
            "" if ends.low is None or ends.high is None else f"  ({100 * ends.low:+.2f} to {100 * ends.high:+.2f})"
        )
        said.append(
            f"{one.name:18} {one.standard:9.2%} {one.shift:8.2%} {one.expected:9.2%}  {100 * ends.value:+6.2f}{interval}"
        )
        said += [
            f"  {what} {each.value:.2%} ({each.low:.2%} to {each.high:.2%}) of {each.n:,}"
            for what, each in (("standard", one.standard_from), *(("shift", each) for each in one.shifts_from))
            if each.low is not None and each.high is not None
        ]
    said.append("lines (logit of the shift on the logit of the standard accuracy)")
    for name, line in fitted.items():
        about = "published" if line.models is None else f"{line.models:,} models, R² {line.r_squared:.4f}"
        said.append(f"  {name:18} slope {_coefficient(line.slope, line.slope_interval)}  intercept "
                    f"{_coefficient(line.intercept, line.intercept_interval)}   {about}")  # fmt: skip
    if config.reference is None:
        said.append("  give `reference`, a table of models, to fit them here and to have their intervals")
    return said


def _coefficient(value: float, interval: Interval | None) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return f"{value:.4f}"
    return f"{value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def _as_json(config: RobustnessConfig, found: Sequence[Robustness], fitted: Mapping[str, Line]) -> Json:
    shifts: list[Json] = [dict(dataclasses.asdict(one)) for one in found]
    return {
        "kind": "evaluation.robustness",
        "version": 1,
        "confidence": config.confidence,
        "reference_sha256": None if config.reference is None else storage.sha256_file(config.reference),
        "shifts": shifts,
        "lines": {
            name: {
                "slope": line.slope,
                "slope_interval": None if line.slope_interval is None else dataclasses.asdict(line.slope_interval),
                "intercept": line.intercept,
                "intercept_interval": None
                if line.intercept_interval is None
                else dataclasses.asdict(line.intercept_interval),
                "r_squared": line.r_squared,
                "models": line.models,
            }
            for name, line in fitted.items()
        },
    }

"""`python -m evaluation versus-probe ZEROSHOT PROBE`: what classifying by names alone is worth beside learning from every example.

Over the datasets that both runs scored (the CLIP paper's 3.1.5, figures 7 and 8), on the same test examples and by the same metric:

    correlation   Pearson's r of the zero-shot and the probe's scores
    slope         least squares of the zero-shot score on the probe's: how many points of zero-shot go with one of the probe. The paper
                  prints r 0.82, slope 1.28 (0.93 to 1.79). It does not say how the slope or its interval were computed; this line and a
                  bootstrap over datasets (BCa) are our reading
    logit slope   the same on the logits of both, where a point near 100 % counts for more than one in the middle
    shots         how many examples a class a probe needs to reach the zero-shot score: linear interpolation of the scores over the
                  logarithm of the shots, from a run of `fewshot`, with the probe on all examples as the last point. The paper: median
                  5.4, mean 20.8, most 184

A dataset is one observation, and a benchmark's datasets are no sample of anything: the intervals say how much hangs on single datasets.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, TypeVar

import numpy as np
import pydantic
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import pearsonr

from evaluation.config import Metric
from evaluation.intervals import Interval, bootstrap
from evaluation.report.files import canonical
from pipeline.contracts import storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError

CONFIDENCE = 0.95
_MOST_BYTES = 1 << 28
_LEAST = 3  # datasets, below which a correlation says nothing

Floats = NDArray[np.float64]
_Metric = Annotated[Metric, pydantic.BeforeValidator(lambda name: "accuracy" if name == "top1" else name)]
"""Few-shot says top1 where the other two say accuracy."""
_Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class _Rate(pydantic.BaseModel):
    value: _Share
    low: _Share | None = None
    high: _Share | None = None


class _Zeroshot(pydantic.BaseModel):
    content_hash: str
    classes: int = pydantic.Field(ge=2)
    metric: _Metric
    headline: _Rate
    top1: _Rate
    mean_per_class: _Rate | None


class _Probe(pydantic.BaseModel):
    content_hash: dict[str, str]
    examples: dict[str, Annotated[int, pydantic.Field(ge=0)]]
    metric: _Metric
    headline: _Rate
    top1: _Rate
    mean_per_class: _Rate | None


class _Mean(pydantic.BaseModel):
    mean: _Share


class _Fewshot(pydantic.BaseModel):
    content_hash: dict[str, str]
    metric: _Metric
    shots: dict[Annotated[int, pydantic.Field(ge=1)], dict[str, _Mean]]


Entry = TypeVar("Entry", _Zeroshot, _Probe, _Fewshot)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One dataset: both scores, the shots that zero-shot is worth (None: unknown, or more than there are), and the scores' intervals
    where they are known."""

    name: str
    zero_shot: float
    probe: float
    shots: float | None
    zero_shot_interval: tuple[float | None, float | None] = (None, None)
    probe_interval: tuple[float | None, float | None] = (None, None)


@dataclasses.dataclass(frozen=True)
class Versus:
    """All datasets together; `logit_slope` and its count leave out scores of 0 and 1. The shots are of datasets for which they are
    known."""

    datasets: list[Dataset]
    correlation: Interval
    correlation_p: float
    slope: Interval
    logit_slope: Interval | None
    logit_datasets: int
    shots_median: float | None
    shots_mean: float | None
    shots_most: float | None


# ---- the figures


def shots_worth(score: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """How many shots a class reach `score`, by linear interpolation over log(shots) of a curve of (shots, score), shots ascending.

    The first crossing counts. A score below the first point is found on the first segment carried on, where that rises, and is then below
    the first number of shots. None where no point of the curve reaches the score.
    """
    for (few, low), (more, high) in itertools.pairwise(curve):
        if score <= max(low, high):
            part = (score - low) / (high - low) if high > low else 0.0
            return float(few * (more / few) ** part)
    return None


def versus(
    zero_shot: Mapping[str, float], probe: Mapping[str, float], curves: Mapping[str, Sequence[tuple[float, float]]]
) -> Versus:
    """Compare scores (shares) by dataset; `curves` are few-shot curves of some of them, the probe on all examples as their last point.

    Raises InputError for fewer than three common datasets, or scores that are all alike.
    """
    names = [name for name in zero_shot if name in probe]
    x, y = np.array([probe[name] for name in names]), np.array([zero_shot[name] for name in names])
    if len(names) < _LEAST or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise InputError(
            f"versus-probe: {len(names)} datasets with both scores, where a correlation needs {_LEAST} that are not all alike; score "
            "more datasets"
        )
    found = [
        Dataset(
            name, zero_shot[name], probe[name], shots_worth(zero_shot[name], curves[name]) if name in curves else None
        )
        for name in names
    ]
    shots = [one.shots for one in found if one.shots is not None]
    inner = (x > 0) & (x < 1) & (y > 0) & (y < 1)
    steep = inner.sum() >= _LEAST and np.ptp(x[inner]) > 0
    return Versus(
        datasets=found,
        correlation=_over_datasets(_correlation, x, y),
        correlation_p=float(pearsonr(x, y).pvalue),
        slope=_over_datasets(_slope, x, y),
        logit_slope=_over_datasets(_slope, logit(x[inner]), logit(y[inner])) if steep else None,
        logit_datasets=int(inner.sum()),
        shots_median=float(np.median(shots)) if shots else None,
        shots_mean=float(np.mean(shots)) if shots else None,
        shots_most=max(shots) if shots else None,
    )


def _slope(x: Floats, y: Floats) -> float:
    if np.ptp(x) == 0:  # one dataset over and over: its mean is rounded, and its spread is that rounding
        return math.nan
    away = x - x.mean()
    return float((away * y).sum() / (away**2).sum())


def _correlation(x: Floats, y: Floats) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std()))


def _over_datasets(figure: Callable[[Floats, Floats], float], x: Floats, y: Floats) -> Interval:
    return bootstrap(lambda rows: figure(x[rows], y[rows]), np.arange(len(x), dtype=np.int64), confidence=CONFIDENCE)


# ---- the command


def run(zero_shot_place: str, probe_place: str, fewshot_place: str | None, out: str | None) -> str:
    """Read `zeroshot.json`, `probe.json` and `fewshot.json` (or the folders that hold them); returns the lines for the terminal.

    Raises InputError for a file of another kind or about another model, and for a dataset whose test examples are not the same in all of
    them.
    """
    model, named = _read(zero_shot_place, "zeroshot", _Zeroshot)
    other, probes = _read(probe_place, "probe", _Probe)
    _same_model(model, other, probe_place)
    few: dict[str, _Fewshot] = {}
    if fewshot_place is not None:
        other, few = _read(fewshot_place, "fewshot", _Fewshot)
        _same_model(model, other, fewshot_place)
    zero, full, curves = {}, {}, {}
    for name, probe in probes.items():
        if name not in named:
            continue
        _same_test(name, named[name].content_hash, probe.content_hash, probe_place)
        zero[name], full[name] = _metric(named[name], probe.metric, name), _metric(probe, probe.metric, name)
        if name in few:
            _same_test(name, named[name].content_hash, few[name].content_hash, str(fewshot_place))
            curves[name] = _curve(name, few[name], probe, named[name].classes, full[name].value)
    found = versus(_values(zero), _values(full), curves)
    datasets = [
        dataclasses.replace(one, zero_shot_interval=_ends(zero[one.name]), probe_interval=_ends(full[one.name]))
        for one in found.datasets
    ]
    found = dataclasses.replace(found, datasets=datasets)
    said = [_describe(found)]
    if out is not None:
        storage.write_atomic(out, canonical(_as_json(found)))
        said.append(f"\nfigures: {out}")
    return "\n".join(said)


def _values(rates: Mapping[str, _Rate]) -> dict[str, float]:
    return {name: rate.value for name, rate in rates.items()}


def _ends(rate: _Rate) -> tuple[float | None, float | None]:
    return rate.low, rate.high


def _read(place: str, kind: str, model: type[Entry]) -> tuple[Json, dict[str, Entry]]:
    """Which model the file is about, and its sets by name."""
    uri = place if place.endswith(".json") else storage.join(place, f"{kind}.json")
    problem = f"{uri}: not what `python -m evaluation {kind}` writes"
    try:
        value = json.loads(storage.read_bytes(uri, limit=_MOST_BYTES))
    except (ValueError, RecursionError):
        raise InputError(f"{problem} (no JSON); give its `out`") from None
    if (
        not isinstance(value, dict)
        or value.get("kind") != f"evaluation.{kind}"
        or not isinstance(value.get("sets"), dict)
    ):
        raise InputError(f"{problem}; give its `out`")
    try:
        sets = {str(name): model.model_validate(entry) for name, entry in value["sets"].items()}
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{problem} ({where}: {first['msg']}); run it again with this version") from None
    about = value.get("model")
    return about.get("sha256") if isinstance(about, dict) else None, sets


def _same_model(ours: Json, theirs: Json, place: str) -> None:
    if theirs != ours:
        raise InputError(
            f"{place}: is of the model {str(theirs)[:12]!r}, zero-shot of {str(ours)[:12]!r}; give runs of one model"
        )


def _same_test(name: str, ours: str, theirs: Mapping[str, str], place: str) -> None:
    if theirs.get("test") != ours:
        raise InputError(
            f"{place}: {name!r} was tested on content hash {theirs.get('test', '')[:12]!r}, zero-shot on {ours[:12]!r}; give both the "
            "same test set"
        )


def _metric(entry: _Zeroshot | _Probe, metric: Metric, name: str) -> _Rate:
    rates: dict[Metric, _Rate | None] = {"accuracy": entry.top1, "mean_per_class": entry.mean_per_class}
    rate = rates.get(metric, entry.headline if entry.metric == metric else None)
    if rate is None:
        raise InputError(
            f"set {name!r}: has no {metric} in one of the files, by which the probe was scored; score it by one metric in both"
        )
    return rate


def _curve(name: str, few: _Fewshot, probe: _Probe, classes: int, full: float) -> list[tuple[float, float]]:
    """The few-shot scores of the logistic probe, then the probe's on all examples, at their mean number a class."""
    if few.metric != probe.metric:
        raise InputError(
            f"set {name!r}: scored by {few.metric} in fewshot and {probe.metric} in probe; give both one metric"
        )
    points = [
        (float(shots), kinds["logistic"].mean) for shots, kinds in sorted(few.shots.items()) if "logistic" in kinds
    ]
    every = (probe.examples.get("train", 0) + probe.examples.get("validation", 0)) / classes
    return [*points, (every, full)] if not points or every > points[-1][0] else points


def _describe(found: Versus) -> str:
    lines = [f"{'dataset':24} zero-shot {'':20}    probe {'':20} shots that zero-shot is worth"]
    lines += [
        f"{one.name:24} {one.zero_shot:9.2%} {_range(one.zero_shot_interval):20} {one.probe:8.2%} {_range(one.probe_interval):20} "
        f"{'' if one.shots is None else f'{one.shots:.1f}'}"
        for one in found.datasets
    ]
    lines.append(f"over {len(found.datasets)} datasets (in brackets what the CLIP paper printed over its 27)")
    lines.append(f"  correlation  {_said(found.correlation)}, p {found.correlation_p:.3g}   [0.82]")
    lines.append(f"  slope        {_said(found.slope)}   [1.28 (0.93 to 1.79)]")
    if found.logit_slope is not None:
        lines.append(f"  logit slope  {_said(found.logit_slope)}   over {found.logit_datasets}")
    if found.shots_median is not None:
        lines.append(
            f"  shots        median {found.shots_median:.1f}, mean {found.shots_mean:.1f}, most {found.shots_most:.1f}   [5.4, 20.8, 184]"
        )
    return "\n".join(lines)


def _range(ends: tuple[float | None, float | None]) -> str:
    return "" if ends[0] is None or ends[1] is None else f"({ends[0]:.2%} to {ends[1]:.2%})"


def _said(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f} (no interval)"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _as_json(found: Versus) -> Json:
    plain: dict[str, Json] = dataclasses.asdict(found)
    return {"kind": "evaluation.versus_probe", "version": 1, "confidence": CONFIDENCE, **plain}

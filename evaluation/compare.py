"""`python -m evaluation compare A B …`: which of some models is better on the same sets, and by how much one can be sure.

Every place is what a run of `zeroshot` wrote (or one prediction file of it); the first is the one that the others are compared with.
Models are compared example by example: the difference of their accuracies with a paired interval (`intervals.paired_difference`),
McNemar's exact test, and Holm's correction over all the tests of the call. Accuracies count every example; tests and intervals count a
picture once, however often the set repeats it. Files that were scored on different versions of a set are refused.

Over several sets stands the mean difference, every set with the same weight, with a bootstrap over the examples of each set. It speaks
of these sets: that other sets would show the same is not in it.

Where a run has one of the three datasets on which the CLIP paper compares itself with Visual N-Grams, that table is printed with its
published figures (`VISUAL_NGRAMS`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation import predictions
from evaluation.intervals import DRAWS, Interval, clopper_pearson, holm, mcnemar, paired_difference
from evaluation.predictions import Predictions
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError

_SEED = 0

VISUAL_NGRAMS = {
    "ayahoo": ("aYahoo", 0.724, 0.984),
    "imagenet": ("ImageNet", 0.115, 0.762),
    "sun397": ("SUN", 0.230, 0.585),
}
"""Set name → dataset, accuracy of Visual N-Grams (Li et al., 2017), accuracy of CLIP: table 1 of the CLIP paper (arXiv 2103.00020),
which does not say which split of SUN was used."""


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two models on one set: `wins` and `losses` of the second over the first among `tested` different pictures.

    `first` and `second` are accuracies over all `n` examples, `difference` is second minus first over the tested ones.
    """

    name: str
    n: int
    tested: int
    first: float
    second: float
    difference: Interval
    wins: int
    losses: int
    p: float


@dataclasses.dataclass(frozen=True)
class Against:
    """One model against the first, over all sets that both have; `adjusted` are Holm's p values over all tests of the call."""

    place: str
    model: str
    sets: list[Paired]
    adjusted: list[float]
    mean_difference: Interval | None


def pair(first: Predictions, second: Predictions, confidence: float) -> Paired:
    """Compare two models on one set.

    Raises InputError where the two files are not about the same version of the set.
    """
    if first.set_hash != second.set_hash or not first.set_hash:
        raise InputError(
            f"set {first.name!r}: {first.place} was scored on content hash {first.set_hash[:12]!r}, {second.place} on "
            f"{second.set_hash[:12]!r}; score both models on the same version of the set"
        )
    if first.ids != second.ids or (first.labels != second.labels).any() or first.sha256 != second.sha256:
        raise InputError(
            f"set {first.name!r}: {first.place} and {second.place} do not list the same examples; score both models again"
        )
    units = first.units()
    before, after = first.correct[units], second.correct[units]
    wins, losses = int((after & ~before).sum()), int((before & ~after).sum())
    return Paired(
        name=first.name,
        n=len(first.ids),
        tested=len(units),
        first=float(first.correct.mean()),
        second=float(second.correct.mean()),
        difference=paired_difference(wins, losses, len(units), confidence),
        wins=wins,
        losses=losses,
        p=mcnemar(before, after),
    )


def mean_difference(sets: Sequence[Paired], confidence: float) -> Interval | None:
    """The mean over sets of the differences, with a percentile bootstrap of the examples of each set; None for fewer than two sets.

    Resampling a set's examples is a multinomial draw of its wins, losses and the rest.
    """
    if len(sets) < 2:
        return None
    random = np.random.default_rng(_SEED)
    drawn: NDArray[np.float64] = np.zeros(DRAWS)
    for one in sets:
        shares = np.array([one.wins, one.losses, one.tested - one.wins - one.losses]) / one.tested
        counts = random.multinomial(one.tested, shares, size=DRAWS)
        drawn += (counts[:, 0] - counts[:, 1]) / one.tested / len(sets)
    value = float(np.mean([one.difference.value for one in sets]))
    if np.ptp(drawn) == 0:
        return Interval(value, None, None)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def compare(places: Sequence[str], confidence: float) -> tuple[dict[str, Predictions], list[Against]]:
    """The first run's answers by set, and every further run against it.

    Raises InputError where a run has no set in common with the first, or another version of one, or holds answers of several models.
    """
    reference = _of_one_model(places[0], predictions.find(places[0]))
    found: list[tuple[str, str, list[Paired]]] = []
    for place in places[1:]:
        files = predictions.find(place)
        common = [name for name in reference if name in files]
        if not common:
            raise InputError(
                f"{place}: has none of the sets of {places[0]} ({', '.join(sorted(reference))}); score the same sets with both models"
            )
        others = _of_one_model(place, {name: files[name] for name in common})
        sets = [pair(reference[name], others[name], confidence) for name in common]
        found.append((place, others[common[0]].model, sets))
    adjusted = holm([one.p for _, _, sets in found for one in sets])
    against = []
    for place, model, sets in found:
        mine, adjusted = adjusted[: len(sets)], adjusted[len(sets) :]
        against.append(Against(place, model, sets, mine, mean_difference(sets, confidence)))
    return reference, against


def _of_one_model(place: str, files: Mapping[str, str]) -> dict[str, Predictions]:
    read = {name: predictions.read(uri) for name, uri in files.items()}
    who = sorted({one.model[:12] for one in read.values()})
    if len(who) > 1:
        raise InputError(
            f"{place}: holds answers of {len(who)} models ({', '.join(who)}); score each model into an `out` of its own"
        )
    return read


def ngrams_table(accuracies: Mapping[str, float]) -> list[dict[str, Json]]:
    """The rows of the CLIP paper's table 1 of which `accuracies` (by set name) has one; published figures beside ours."""
    return [
        {"dataset": title, "visual_ngrams": ngrams, "clip": clip, "here": accuracies[name]}
        for name, (title, ngrams, clip) in VISUAL_NGRAMS.items()
        if name in accuracies
    ]


# ---- what is said


def describe(reference: Mapping[str, Predictions], against: Sequence[Against], first: str, confidence: float) -> str:
    """The lines for the terminal."""
    lines = [f"{first}: the first of the comparison"]
    for name, one in reference.items():
        hits = int(one.correct.sum())
        low, high = clopper_pearson(hits, len(one.ids), confidence)
        lines.append(f"  {name:24} {hits / len(one.ids):7.2%}  ({low:.2%} to {high:.2%})   {len(one.ids):,} examples")
    tests = sum(len(other.sets) for other in against)
    for other in against:
        lines.append(f"{other.place}: minus the first, in points; p of McNemar's exact test, Holm over {tests} tests")
        for paired, adjusted in zip(other.sets, other.adjusted, strict=True):
            lines.append(
                f"  {paired.name:24} {_points(paired.difference)}   {_accuracy(paired.second, paired.n, confidence)}, won {paired.wins:,} "
                f"lost {paired.losses:,} of {paired.tested:,}   p {paired.p:.3g}, Holm {adjusted:.3g}"
            )
        if other.mean_difference is not None:
            lines.append(f"  {'mean of the sets':24} {_points(other.mean_difference)}   of these sets, not of others")
    table = ngrams_table({name: float(one.correct.mean()) for name, one in reference.items()})
    if table:
        lines.append("beside Visual N-Grams (published figures: table 1 of arXiv 2103.00020; here: the first)")
        lines += [
            f"  {row['dataset']:24} Visual N-Grams {row['visual_ngrams']:.1%}   CLIP {row['clip']:.1%}   here {row['here']:.1%}"
            for row in table
        ]
    return "\n".join(lines)


def as_json(reference: Mapping[str, Predictions], against: Sequence[Against], confidence: float) -> Json:
    """The same figures for machines; no places, so that the same files give the same bytes wherever they lie."""
    return {
        "kind": "evaluation.compare",
        "version": 1,
        "confidence": confidence,
        "first": {
            "model": next(iter(reference.values())).model,
            "sets": {
                name: {
                    "content_hash": one.set_hash,
                    "n": len(one.ids),
                    "accuracy": float(one.correct.mean()),
                    "interval": list(clopper_pearson(int(one.correct.sum()), len(one.ids), confidence)),
                }
                for name, one in reference.items()
            },
        },
        "others": [
            {
                "model": other.model,
                "sets": {
                    paired.name: {
                        **_plain(paired),
                        "second_interval": list(_interval(paired.second, paired.n, confidence)),
                        "p_holm": adjusted,
                    }
                    for paired, adjusted in zip(other.sets, other.adjusted, strict=True)
                },
                "mean_difference": None if other.mean_difference is None else _plain(other.mean_difference),
            }
            for other in against
        ],
        "visual_ngrams": list(ngrams_table({name: float(one.correct.mean()) for name, one in reference.items()})),
    }


def _interval(accuracy: float, n: int, confidence: float) -> tuple[float, float]:
    return clopper_pearson(round(accuracy * n), n, confidence)


def _accuracy(accuracy: float, n: int, confidence: float) -> str:
    low, high = _interval(accuracy, n, confidence)
    return f"{accuracy:.2%} ({low:.2%} to {high:.2%})"


def _plain(value: Paired | Interval) -> dict[str, Json]:
    plain: dict[str, Json] = dataclasses.asdict(value)
    plain.pop("name", None)
    return plain


def _points(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{100 * interval.value:+6.2f}  (no interval)"
    return f"{100 * interval.value:+6.2f}  ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"

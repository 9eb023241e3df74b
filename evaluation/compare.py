"""`python -m evaluation compare A B …`: which of some models is better on the same sets, and by how much one can be sure.

Every place is what a run of `zeroshot` or `retrieval` wrote (or one file of it); the first is the one that the others are compared with.
Models are compared example by example: the difference of their accuracies with a paired interval (`intervals.paired_difference`),
McNemar's exact test, and Holm's correction over all the tests of the call. Accuracies count every example, and their intervals take a
picture's repeats for a cluster (`intervals.clustered`); tests and the intervals of differences count a picture once, however often the set
repeats it. Recall is compared at each cutoff, both ways, picture by picture (`ranks`). Files that were scored on different versions of a
set are refused.

Over several sets stands the mean difference, every set with the same weight, with a bootstrap over the examples of each set. It speaks
of these sets: that other sets would show the same is not in it.

Where a run has one of the three datasets on which the CLIP paper compares itself with Visual N-Grams, that table is printed with its
published figures (`VISUAL_NGRAMS`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation import predictions, ranks
from evaluation.intervals import DRAWS, Interval, clustered, holm, mcnemar, paired_difference
from evaluation.predictions import Predictions
from evaluation.ranks import DIRECTIONS, PairedRecall, Ranks, Share
from evaluation.retrieval import CUTOFFS
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError

_SEED = 0
_ARROWS = dict(zip(DIRECTIONS, ("picture → caption", "caption → picture"), strict=True))

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

    `first` and `second` are accuracies over all `n` examples, `second_interval` is that of `second`, `difference` is second minus
    first over the tested ones.
    """

    name: str
    n: int
    tested: int
    first: float
    second: float
    second_interval: tuple[float, float]
    difference: Interval
    wins: int
    losses: int
    p: float


@dataclasses.dataclass(frozen=True)
class Against:
    """One model against the first, over all sets that both have; `adjusted`, and `recalls_adjusted`, are Holm's p values over all tests of
    the call."""

    place: str
    model: str
    sets: list[Paired]
    adjusted: list[float]
    mean_difference: Interval | None
    recalls: list[PairedRecall]
    recalls_adjusted: list[float]


class Run(NamedTuple):
    """The files of a run by the name of their set: answers, and ranks of retrieval."""

    answers: dict[str, str]
    ranks: dict[str, str]


class Said(NamedTuple):
    """What one run, of one model, said by the name of the set."""

    model: str
    answers: dict[str, Predictions]
    ranks: dict[str, Ranks]


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
        second_interval=_interval(second, confidence),
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


def find(place: str) -> Run:
    """The files of a run. Raises InputError where there is none."""
    found = Run({}, {})
    for uri in sorted({*predictions.tables(place, predictions.FOLDER), *predictions.tables(place, ranks.FOLDER)}):
        (found.ranks if ranks.holds_ranks(uri) else found.answers)[predictions.set_name(uri)] = uri
    if not found.answers and not found.ranks:
        raise InputError(
            f"{place}: no predictions there; give the `out` of `python -m evaluation zeroshot` or `retrieval`, or one file of it"
        )
    return found


def compare(places: Sequence[str], confidence: float) -> tuple[Said, list[Against]]:
    """What the first run said, and every further run against it.

    Raises InputError where a run has no set in common with the first, or another version of one, or holds answers of several models.
    """
    reference = _read(places[0], find(places[0]))
    found: list[tuple[str, str, list[Paired], list[PairedRecall]]] = []
    for place in places[1:]:
        files = find(place)
        common = Run(
            {name: uri for name, uri in files.answers.items() if name in reference.answers},
            {name: uri for name, uri in files.ranks.items() if name in reference.ranks},
        )
        if not common.answers and not common.ranks:
            names = sorted({*reference.answers, *reference.ranks})
            raise InputError(
                f"{place}: has none of the sets of {places[0]} ({', '.join(names)}); score the same sets with both models"
            )
        other = _read(place, common)
        sets = [pair(reference.answers[name], other.answers[name], confidence) for name in other.answers]
        recalls = [
            one for name in other.ranks for one in ranks.pair(reference.ranks[name], other.ranks[name], confidence)
        ]
        found.append((place, other.model, sets, recalls))
    p_values = ([*(one.p for one in sets), *(one.p for one in recalls)] for _, _, sets, recalls in found)
    adjusted = iter(holm([p for of_run in p_values for p in of_run]))
    return reference, [
        Against(
            place,
            model,
            sets,
            [next(adjusted) for _ in sets],
            mean_difference(sets, confidence),
            recalls,
            [next(adjusted) for _ in recalls],
        )
        for place, model, sets, recalls in found
    ]


def _read(place: str, files: Run) -> Said:
    answers = {name: predictions.read(uri) for name, uri in files.answers.items()}
    ranked = {name: ranks.read(uri) for name, uri in files.ranks.items()}
    models = sorted({*(one.model for one in answers.values()), *(one.model for one in ranked.values())})
    if len(models) > 1:
        raise InputError(
            f"{place}: holds answers of {len(models)} models ({', '.join(model[:12] for model in models)}); score each model into an "
            "`out` of its own"
        )
    return Said(models[0], answers, ranked)


def ngrams_table(accuracies: Mapping[str, float]) -> list[dict[str, Json]]:
    """The rows of the CLIP paper's table 1 of which `accuracies` (by set name) has one; published figures beside ours."""
    return [
        {"dataset": title, "visual_ngrams": ngrams, "clip": clip, "here": accuracies[name]}
        for name, (title, ngrams, clip) in VISUAL_NGRAMS.items()
        if name in accuracies
    ]


# ---- what is said


def describe(reference: Said, against: Sequence[Against], first: str, confidence: float) -> str:
    """The lines for the terminal."""
    lines = [f"{first}: the first of the comparison"]
    for name, one in reference.answers.items():
        lines.append(
            f"  {name:24} {_with_ends(float(one.correct.mean()), *_interval(one, confidence))}   {len(one.ids):,} examples"
        )
    for name, ranked in reference.ranks.items():
        for direction in DIRECTIONS:
            recalls = _recalls(ranked, direction, confidence)
            said = ", ".join(f"R@{k} {_with_ends(one.value, one.low, one.high)}" for k, one in recalls.items())
            asked = max((one.n for one in recalls.values()), default=0)
            lines.append(f"  {name:24} {_ARROWS[direction]}  {said or 'not asked'}   {asked:,} queries")
    tests = sum(len(other.sets) + len(other.recalls) for other in against)
    for other in against:
        captions = any(recall.pictures < recall.n for recall in other.recalls)
        test = "McNemar's exact test" + (" (of captions: of signs, picture by picture)" if captions else "")
        lines.append(f"{other.place}: minus the first, in points; p of {test}, Holm over {tests} tests")
        for paired, adjusted in zip(other.sets, other.adjusted, strict=True):
            lines.append(
                f"  {paired.name:24} {_points(paired.difference)}   {_with_ends(paired.second, *paired.second_interval)}, won "
                f"{paired.wins:,} lost {paired.losses:,} of {paired.tested:,}   p {paired.p:.3g}, Holm {adjusted:.3g}"
            )
        for recall, adjusted in zip(other.recalls, other.recalls_adjusted, strict=True):
            many = "" if recall.pictures == recall.n else f" captions of {recall.pictures:,} pictures"
            lines.append(
                f"  {recall.name:24} {_ARROWS[recall.direction]}  R@{recall.k:<2} {_points(recall.difference)}   "
                f"{_with_ends(recall.second, *recall.second_interval)}, won {recall.wins:,} lost {recall.losses:,} of {recall.n:,}{many}   "
                f"p {recall.p:.3g}, Holm {adjusted:.3g}"
            )
        if other.mean_difference is not None:
            lines.append(f"  {'mean of the sets':24} {_points(other.mean_difference)}   of these sets, not of others")
    table = ngrams_table({name: float(one.correct.mean()) for name, one in reference.answers.items()})
    if table:
        lines.append("beside Visual N-Grams (published figures: table 1 of arXiv 2103.00020; here: the first)")
        lines += [
            f"  {row['dataset']:24} Visual N-Grams {row['visual_ngrams']:.1%}   CLIP {row['clip']:.1%}   here {row['here']:.1%}"
            for row in table
        ]
    return "\n".join(lines)


def as_json(reference: Said, against: Sequence[Against], confidence: float) -> Json:
    """The same figures for machines; no places, so that the same files give the same bytes wherever they lie."""
    return {
        "kind": "evaluation.compare",
        "version": 2,
        "confidence": confidence,
        "first": {
            "model": reference.model,
            "sets": {
                name: {
                    "content_hash": one.set_hash,
                    "n": len(one.ids),
                    "accuracy": float(one.correct.mean()),
                    "interval": list(_interval(one, confidence)),
                }
                for name, one in reference.answers.items()
            },
            "retrieval": {
                name: {
                    "content_hash": one.set_hash,
                    "queries": len(one.queries),
                    **{
                        direction: {
                            f"R@{k}": {"n": found.n, "value": found.value, "interval": [found.low, found.high]}
                            for k, found in _recalls(one, direction, confidence).items()
                        }
                        for direction in DIRECTIONS
                    },
                }
                for name, one in reference.ranks.items()
            },
        },
        "others": [
            {
                "model": other.model,
                "sets": {
                    paired.name: {
                        **_plain(paired),
                        "second_interval": list(paired.second_interval),
                        "p_holm": adjusted,
                    }
                    for paired, adjusted in zip(other.sets, other.adjusted, strict=True)
                },
                "mean_difference": None if other.mean_difference is None else _plain(other.mean_difference),
                "retrieval": {
                    name: [
                        {
                            **_plain(recall),
                            "second_interval": list(recall.second_interval),
                            "p_holm": adjusted,
                        }
                        for recall, adjusted in zip(other.recalls, other.recalls_adjusted, strict=True)
                        if recall.name == name
                    ]
                    for name in dict.fromkeys(recall.name for recall in other.recalls)
                },
            }
            for other in against
        ],
        "visual_ngrams": list(
            ngrams_table({name: float(one.correct.mean()) for name, one in reference.answers.items()})
        ),
    }


def _plain(value: Paired | PairedRecall | Interval) -> dict[str, Json]:
    plain: dict[str, Json] = dataclasses.asdict(value)
    plain.pop("name", None)
    return plain


def _recalls(one: Ranks, direction: str, confidence: float) -> dict[int, Share]:
    """The share at each cutoff; none where nothing was asked that way."""
    found = {k: one.recall(direction, k, confidence) for k in CUTOFFS}
    return {k: share for k, share in found.items() if share is not None}


def _interval(one: Predictions, confidence: float) -> tuple[float, float]:
    """Of the accuracy over all examples."""
    return clustered(one.correct, one.clusters(), confidence)


def _with_ends(share: float, low: float, high: float) -> str:
    return f"{share:.2%} ({low:.2%} to {high:.2%})"


def _points(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{100 * interval.value:+6.2f}  (no interval)"
    return f"{100 * interval.value:+6.2f}  ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"

"""`python -m evaluation human-scores`: how well people classified the pictures of a set, beside a model (the CLIP paper's table 2).

    accuracy            share of right answers, "I don't know" being wrong; the mean over participants
    on guesses          the same among answers that name a class
    majority            the class that most participants named; classes with equally many share the point. Nobody named one: wrong
    majority, guesses   the same over the pictures for which somebody named a class

Their intervals draw participants and pictures anew, both: other people might have answered, and other pictures been asked. With few
participants the bootstrap of them is narrow for what it knows; the single people's accuracies are printed for that reason. A picture
that a participant has not answered is left out of that participant's share.

Beside a model: its accuracy on the same pictures, and whether what is hard for people is hard for it, by the correlation of the
classes' accuracies.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
import pydantic
from numpy.typing import NDArray
from scipy.stats import rankdata

from evaluation import predictions
from evaluation.config import HumanConfig
from evaluation.human import Sheet, sheet_of
from evaluation.intervals import Interval, bootstrap
from evaluation.metrics import Rate, rate
from evaluation.report.files import canonical
from pipeline.contracts import storage
from pipeline.contracts.config import Json, StrictModel
from pipeline.contracts.errors import InputError

UNKNOWN = -1
"""In an array of answers: "I don't know"."""
MISSING = -2
"""In an array of answers: not answered."""
_DRAWS = 1000
_SEED = 0
_MOST_BYTES = 256 << 20
_MOST_VOTES = 1 << 28  # participants x pictures x classes


class Answer(StrictModel):
    """One line of an exported file."""

    sheet: str
    participant: int
    picture: str
    answer: int | None


@dataclasses.dataclass(frozen=True)
class Humans:
    """Figures of some participants on n pictures. `by_participant` are plain accuracies with exact intervals, `by_class` shares of the
    answers to the pictures of each class. The figures on guesses are None where nobody guessed."""

    participants: int
    pictures: int
    answered: int
    unknown: int
    accuracy: Interval
    on_guesses: Interval | None
    majority: Interval
    majority_on_guesses: Interval | None
    by_participant: dict[int, Rate]
    by_class: list[float | None]
    by_class_intervals: list[Interval | None]


@dataclasses.dataclass(frozen=True)
class BesideModel:
    """A model on the same pictures, and correlations of class accuracies (people's and its own) over the classes that were asked:
    None where all classes are alike."""

    accuracy: Rate
    by_class: list[float | None]
    by_class_rates: list[Rate | None]
    pearson: Interval | None
    spearman: Interval | None


# ---- reading


def read_answers(places: Sequence[str], sheet: Sheet, participants: int) -> tuple[list[int], NDArray[np.int32]]:
    """The participants who answered, ascending, and int32[participants, pictures]: class numbers, UNKNOWN or MISSING.

    Raises InputError for a line that is no answer to this sheet, and for two answers of one participant to one picture.
    """
    place_of = {name: place for place, name in enumerate(sheet.names)}
    found: dict[int, NDArray[np.int32]] = {}
    for uri in places:
        try:
            text = storage.read_bytes(uri, limit=_MOST_BYTES).decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{uri}: not UTF-8; give the file as the page exported it") from None
        for number, line in enumerate(text.splitlines(), 1):
            where = f"{uri}: line {number}"
            try:
                one = Answer.model_validate(json.loads(line))
            except (ValueError, RecursionError, pydantic.ValidationError):
                raise InputError(
                    f"{where}: {line[:60]!r} is no answer; give the file as the page exported it"
                ) from None
            if one.sheet != sheet.digest:
                raise InputError(
                    f"{where}: answers sheet {one.sheet[:12]!r}, this configuration writes {sheet.digest[:12]!r}; give the one that wrote "
                    "the pages"
                )
            if not 1 <= one.participant <= participants or one.picture not in place_of:
                raise InputError(
                    f"{where}: participant {one.participant}, picture {one.picture!r} are not of this sheet; mend the line"
                )
            if one.answer is not None and not 0 <= one.answer < len(sheet.labelled.classes):
                raise InputError(
                    f"{where}: answer {one.answer} of {len(sheet.labelled.classes)} classes; mend the line"
                )
            row = found.setdefault(one.participant, np.full(len(sheet.names), MISSING, np.int32))
            if row[place_of[one.picture]] != MISSING:
                raise InputError(
                    f"{where}: participant {one.participant} answers picture {one.picture!r} twice; keep one of the two"
                )
            row[place_of[one.picture]] = UNKNOWN if one.answer is None else one.answer
    if not found:
        raise InputError("answers: no answer in any file; give the files that the pages exported with answers=['…']")
    who = sorted(found)
    return who, np.stack([found[one] for one in who])


# ---- the figures


def score(
    answers: NDArray[np.int32], labels: NDArray[np.int32], who: Sequence[int], classes: int, confidence: float
) -> Humans:
    """From answers int32[participants, n] (UNKNOWN and MISSING as above) and labels int32[n]."""
    given, guessed, right = answers != MISSING, answers >= 0, answers == labels
    participants, n = answers.shape
    votes = np.zeros((participants, n, classes), np.float32)
    people, pictures = np.nonzero(guessed)
    votes[people, pictures, answers[guessed]] = 1

    def figures(by_person: NDArray[np.float64], by_picture: NDArray[np.float64]) -> list[float]:
        def share(hits: NDArray[np.bool_], among: NDArray[np.bool_]) -> float:
            of_person = np.where(among, by_picture, 0).sum(axis=1)
            weights = by_person * (of_person > 0)
            means = (np.where(hits & among, by_picture, 0).sum(axis=1)) / np.maximum(of_person, 1)
            return float((weights * means).sum() / weights.sum()) if weights.sum() else float("nan")

        counts = np.tensordot(by_person.astype(np.float32), votes, axes=1)
        most = counts.max(axis=1)
        best = (counts == most[:, None]) & (most > 0)[:, None]
        credit = np.where(best[np.arange(n), labels], 1 / np.maximum(best.sum(axis=1), 1), 0.0)
        asked = (by_person[:, None] * given).sum(axis=0) > 0
        somebody = most > 0
        majorities = [
            float((credit * by_picture * among).sum() / (by_picture * among).sum())
            if (by_picture * among).sum()
            else float("nan")
            for among in (asked, somebody)
        ]
        asked_of, right_of = (
            np.bincount(labels, weights=(by_person @ one) * by_picture, minlength=classes)
            for one in (given, right & given)
        )
        of_class = np.where(asked_of > 0, right_of / np.maximum(asked_of, 1), np.nan)
        return [share(right, given), share(right, guessed), *majorities, *of_class.tolist()]

    whole = figures(np.ones(participants), np.ones(n))
    random = np.random.default_rng(_SEED)
    drawn = np.array(
        [
            figures(
                random.multinomial(participants, np.full(participants, 1 / participants)).astype(np.float64),
                random.multinomial(n, np.full(n, 1 / n)).astype(np.float64),
            )
            for _ in range(_DRAWS)
        ]
    )
    accuracy, on_guesses, majority, majority_on_guesses, *of_class = (
        _interval(value, column, confidence) for value, column in zip(whole, drawn.T, strict=True)
    )
    return Humans(
        participants=participants,
        pictures=n,
        answered=int(given.sum()),
        unknown=int((answers == UNKNOWN).sum()),
        accuracy=accuracy,
        on_guesses=_defined(on_guesses),
        majority=majority,
        majority_on_guesses=_defined(majority_on_guesses),
        by_participant={
            one: rate(right[place][given[place]], confidence) for place, one in enumerate(who) if given[place].any()
        },
        by_class=[None if np.isnan(one.value) else one.value for one in of_class],
        by_class_intervals=[_defined(one) for one in of_class],
    )


def beside(
    correct: NDArray[np.bool_], labels: NDArray[np.int32], humans: Sequence[float | None], confidence: float
) -> BesideModel:
    """A model's outcomes bool[n] on the asked pictures, labels int32[n], beside people's accuracy by class; intervals draw classes."""
    by_class = [_mean(correct[labels == k]) for k in range(len(humans))]
    both = [(a, b) for a, b in zip(humans, by_class, strict=True) if a is not None and b is not None]
    x, y = (np.array([pair[side] for pair in both]) for side in (0, 1))
    units = np.arange(len(both), dtype=np.int64)

    def pearson(rows: NDArray[np.int64]) -> float:
        return _correlation(x[rows], y[rows])

    def spearman(rows: NDArray[np.int64]) -> float:
        return _correlation(rankdata(x[rows]), rankdata(y[rows]))

    return BesideModel(
        rate(correct, confidence),
        by_class,
        [rate(correct[labels == k], confidence) if (labels == k).any() else None for k in range(len(humans))],
        _defined(bootstrap(pearson, units, confidence=confidence, draws=_DRAWS)),
        _defined(bootstrap(spearman, units, confidence=confidence, draws=_DRAWS)),
    )


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(((x - x.mean()) * (y - y.mean())).mean() / (x.std() * y.std()))


def _mean(hits: NDArray[np.bool_]) -> float | None:
    return float(hits.mean()) if hits.size else None


def _defined(interval: Interval) -> Interval | None:
    return None if np.isnan(interval.value) else interval


def _interval(value: float, draws: NDArray[np.float64], confidence: float) -> Interval:
    draws = draws[np.isfinite(draws)]
    if not len(draws) or np.ptp(draws) == 0:
        return Interval(value, None, None)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


# ---- the command


def run(config: HumanConfig) -> str:
    """Read the answers, score them, write `human.json`; returns the lines for the terminal."""
    sheet = sheet_of(config)
    who, answers = read_answers(config.answers, sheet, config.participants)
    labels = np.array(sheet.labels, np.int32)
    classes = sheet.labelled.classes
    if answers.size * len(classes) > _MOST_VOTES:
        raise InputError(
            f"human-scores: {len(who)} people, {len(labels):,} pictures and {len(classes):,} classes are more than memory is given for; "
            "ask about fewer pictures"
        )
    humans = score(answers, labels, who, len(classes), config.confidence)
    model = None
    if config.predictions is not None:
        one = predictions.read(config.predictions)
        if one.set_hash != sheet.labelled.content_hash:
            raise InputError(
                f"predictions: {config.predictions} was scored on content hash {one.set_hash[:12]!r}, the set of the sheet has "
                f"{sheet.labelled.content_hash[:12]!r}; score this version of the set"
            )
        row_of = {one.sha256[row]: row for row in one.units()}
        lacking = sum(sheet.labelled.sha256[row] not in row_of for row in sheet.rows)
        if lacking:
            raise InputError(
                f"predictions: {config.predictions} has no answer to {lacking:,} of the {len(sheet.rows):,} pictures; score the set again"
            )
        rows = [row_of[sheet.labelled.sha256[row]] for row in sheet.rows]
        model = beside(one.correct[rows], labels, humans.by_class, config.confidence)
    value: Json = {
        "kind": "evaluation.human",
        "version": 1,
        "confidence": config.confidence,
        "sheet": sheet.digest,
        "content_hash": sheet.labelled.content_hash,
        "shots": config.shots,
        "classes": list(classes),
        "humans": dataclasses.asdict(humans),
        "model": None if model is None else dataclasses.asdict(model),
    }
    place = storage.join(config.out, "human.json")
    storage.write_atomic(place, canonical(value))
    return "\n".join([*_describe(humans, model, classes, config.shots), f"\nfigures: {place}"])


def _describe(humans: Humans, model: BesideModel | None, classes: Sequence[str], shots: int) -> list[str]:
    lines = [
        f"{humans.participants} people, {humans.pictures:,} pictures, {shots} samples a class: {humans.answered:,} answers, of which "
        f'{humans.unknown:,} are "I don\'t know"'
    ]
    for title, interval in (
        ("accuracy", humans.accuracy),
        ("on guesses", humans.on_guesses),
        ("majority", humans.majority),
        ("majority, guesses", humans.majority_on_guesses),
    ):
        if interval is None:
            continue
        ends = "" if interval.low is None or interval.high is None else f"  ({interval.low:.2%} to {interval.high:.2%})"
        lines.append(f"  {title:18} {interval.value:7.2%}{ends}")
    lines += [f"  participant {one:<6} {rate.value:7.2%}  of {rate.n:,}" for one, rate in humans.by_participant.items()]
    if model is not None:
        lines.append(
            f"  the model          {model.accuracy.value:7.2%}  ({model.accuracy.low:.2%} to {model.accuracy.high:.2%})"
        )
        for title, interval in (("Pearson", model.pearson), ("Spearman", model.spearman)):
            if interval is None:
                lines.append(f"  classes, {title:9} none: all classes are alike, for people or for the model")
                continue
            ends = (
                ""
                if interval.low is None or interval.high is None
                else f"  ({interval.low:+.2f} to {interval.high:+.2f})"
            )
            lines.append(f"  classes, {title:9} {interval.value:+.2f}{ends}")
    hardest = sorted((value, name) for value, name in zip(humans.by_class, classes, strict=True) if value is not None)[
        :5
    ]
    lines.append(f"  hardest: {', '.join(f'{name} {value:.0%}' for value, name in hardest)}")
    return lines

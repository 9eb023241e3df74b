"""`python -m evaluation probe`: a linear classifier on the features of a model, as in A.3 of the CLIP paper, from config to files.

Features of train → the strength by the 15-fit search on validation → refit on train and validation → once on test. Validation is a set of
its own or a share of train, cut class by class by the hash of the picture's bytes, so that the same picture is never on both sides. Of a
video the middle frame stands for it, in all three.

The headline is the dataset's own metric, as in `zeroshot`. The strength is chosen by the mean per class where that is the dataset's metric,
else by top-1 (`metric` of a set says otherwise); of sets with several labels a picture, which take no `metric`, both are the 11-point mAP
(`one_vs_rest.py`).

Written under `out`: `probe.json` (figures, the whole path of the search, and the identity of what they were computed from), and in
`probes`, so that zero-shot's answers of the same name stay what they are, `predictions/SET.parquet` (as `zeroshot` writes it, the rows of a
video all with its answer) and the classifier itself, `SET.safetensors` with its card `SET.json`. The same inputs on the same machine give
the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from scipy.special import softmax

from evaluation import metrics, one_vs_rest, probe, zeroshot
from evaluation.calibration import with_probabilities
from evaluation.config import FewshotConfig, Metric, ProbeConfig, ProbeSet
from evaluation.datasets import open_set
from evaluation.datasets.catalogue import check_known, metric_of
from evaluation.features import FeatureEncoder
from evaluation.report.files import canonical
from evaluation.scoring import ModelIdentity, describe_scores, load_encoder, write_predictions
from pipeline.content.labelled import LabelledSet
from pipeline.contracts import storage
from pipeline.contracts.config import Json, digest, digest_json
from pipeline.contracts.errors import InputError

FORMAT_VERSION = 2  # 2: `metric` is that of the headline, `chosen_by` that of the search
CARD_VERSION = 2  # 2: several_labels
FOLDER = "probes"


@dataclasses.dataclass(frozen=True)
class Part:
    """Some examples of an opened set: `rows` int64[n] ascending (of a video its middle frame's), `labels` int64[n]."""

    labelled: LabelledSet
    rows: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.labelled.labels[self.rows].astype(np.int64)

    @property
    def marks(self) -> NDArray[np.int8]:
        """int8[n, classes] of a set with several labels a picture. Raises ValueError for another."""
        if self.labelled.marks is None:
            raise ValueError("the set has one label a picture")
        return self.labelled.marks[self.rows]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a probe of one dataset learns from, chooses by and reports on; all have the same `classes`."""

    train: Part
    validation: Part
    test: Part

    @property
    def classes(self) -> list[str]:
        return self.test.labelled.classes

    @property
    def several(self) -> bool:
        """Whether a picture has several labels."""
        return self.test.labelled.marks is not None

    def test_in_train(self) -> int:
        """How many test pictures are, bit for bit, among those that were learned from."""
        learned = {part.labelled.sha256[row] for part in (self.train, self.validation) for row in part.rows}
        return sum(self.test.labelled.sha256[row] in learned for row in self.test.rows)


def run(config: ProbeConfig) -> str:
    """Probe every set, write the files, return the lines for the terminal."""
    opened = [(one, open_parts(one, config)) for one in config.sets]
    for one, parts in opened:
        metrics.check(headline(one, parts), f"set {one.name!r} ({one.test.path})", len(parts.classes), parts.several)
    encoder, model = load_encoder(config)
    said, entries = [], {}
    for one, parts in opened:
        train, validation, test = (features(encoder, part) for part in (parts.train, parts.validation, parts.test))
        found, final = (_learn_several if parts.several else _learn)(config, one, parts, train, validation)
        scores = _score(config, one, parts, final.logits(test), model)
        weights = _write_probe(config, one, parts, final, model)
        entries[one.name] = entry(config, one, parts) | _path(found, final) | {"weights_sha256": weights, **scores[0]}
        said.append("\n".join([describe_scores(one.name, scores[1]), *_describe(found, parts)]))
    place = write_figures(config, "probe", model, entries)
    told = [f"\nfigures: {place}", f"predictions: {storage.join(config.out, FOLDER, 'predictions')}"]
    return "\n".join([*said, *told, f"classifiers: {storage.join(config.out, FOLDER)}"])


def _learn(
    config: ProbeConfig, one: ProbeSet, parts: Parts, train: NDArray[np.float32], validation: NDArray[np.float32]
) -> tuple[probe.Search, probe.Probe]:
    """The search, and the fit on train and validation that is reported."""
    labels, others = parts.train.labels, parts.validation.labels
    shared: _Shared = {"classes": len(parts.classes), "tolerance": config.tolerance, "device": config.device}
    score = probe.SCORES[chosen_by(one, parts)]
    found = probe.search(train, labels, validation, others, score=score, **shared)
    every, strength = np.concatenate([labels, others]), found.best.probe.strength
    return found, probe.fit(np.concatenate([train, validation]), every, strength, start=found.best.probe, **shared)


class _Shared(TypedDict):
    classes: int
    tolerance: float
    device: str


def _learn_several(
    config: ProbeConfig, _one: ProbeSet, parts: Parts, train: NDArray[np.float32], validation: NDArray[np.float32]
) -> tuple[probe.Search, probe.Probe]:
    marks, others = parts.train.marks, parts.validation.marks
    found = one_vs_rest.search(train, marks, validation, others, tolerance=config.tolerance, device=config.device)
    return found, one_vs_rest.fit(
        np.concatenate([train, validation]),
        np.concatenate([marks, others]),
        found.best.probe.strength,
        tolerance=config.tolerance,
        start=found.best.probe,
        device=config.device,
    )


def plan(config: ProbeConfig) -> str:
    """What a run would do, for `--check`."""
    check_datasets(config)
    names = ", ".join(one.name for one in config.sets)
    return f"model {config.model!r} probed on {names}: 15 fits and one more for each; figures in {config.out!r}"


# ---- sets and features, for `fewshot` too


def check_datasets(config: ProbeConfig | FewshotConfig) -> None:
    """For `--check`. Raises InputError for a dataset that is not in the catalogue."""
    for one in config.sets:
        parts = (one.train, one.test, *([one.validation] if one.validation else []))
        check_known(part.dataset for part in parts)


def chosen_by(one: ProbeSet, parts: Parts) -> str:
    """What a strength is chosen by: `map11`, or a name in `probe.SCORES`."""
    metric = headline(one, parts)
    return metric if metric in ("mean_per_class", "map11") else "top1"


def headline(one: ProbeSet, parts: Parts) -> Metric:
    """The metric that a probe's figures begin with: the one that was asked for, else the dataset's."""
    if one.metric is None:
        return "map11" if parts.several else metric_of(one.test.dataset, None)
    return "accuracy" if one.metric == "top1" else one.metric


def features(encoder: FeatureEncoder, part: Part) -> NDArray[np.float32]:
    """float32[n, width] of a part's rows: the one place where probes ask a model for features."""
    return encoder.features(part.labelled, part.rows.tolist())


def open_parts(one: ProbeSet, config: ProbeConfig | FewshotConfig) -> Parts:
    """Open the sets of one dataset.

    Raises InputError: class lists that differ, a metric for several labels a picture, a part without labelled pictures, a training part of
    fewer than two classes.
    """
    opened = [open_set(part) for part in (one.train, one.test, *([one.validation] if one.validation else []))]
    train = opened[0]
    several = train.marks is not None
    for other in opened[1:]:
        if (other.marks is not None) != several:
            raise InputError(
                f"set {one.name!r}: of {train.path} and {other.path} one has several labels a picture; give all parts the same kind"
            )
        if other.classes != train.classes:
            raise InputError(
                f"set {one.name!r}: {other.path} has {len(other.classes)} classes and {train.path} has {len(train.classes)}, or others, "
                "or in another order; give all parts the same `classes` or `classes_file` (and absent_classes = true where one has no "
                "example)"
            )
    if several and one.metric is not None:
        raise InputError(
            f"set {one.name!r} ({train.path}): metric is {one.metric!r}, and sets with several labels a picture are chosen and scored by "
            "the 11-point mAP; drop the key"
        )
    parts = [Part(part, examples(part)) for part in opened]
    if len(opened) == 3:
        learned, chosen = parts[0], parts[2]
    else:
        held = held_out(train, config.validation_share, config.seed)
        learned, chosen = Part(train, parts[0].rows[~held]), Part(train, parts[0].rows[held])
    for name, part in (("train", learned), ("validation", chosen), ("test", parts[1])):
        if not len(part.rows):
            raise InputError(
                f"set {one.name!r}: {name} ({part.labelled.path}) has no labelled picture; name its `label` column, or give "
                "a set of its own"
            )
    if not several and len(np.unique(learned.labels)) < 2:
        raise InputError(
            f"set {one.name!r}: train ({train.path}) has pictures of one class only; a probe needs two classes or more"
        )
    return Parts(learned, chosen, parts[1])


def examples(labelled: LabelledSet) -> NDArray[np.int64]:
    """The rows that are learned from or asked, ascending: those with a label (or several); of a video the middle one of its frames.

    Frames are in the order of the numbers in their ids: 9.jpg is before 10.jpg. Raises InputError where a video's have different labels.
    """
    rows = zeroshot.labelled_rows(labelled)
    if labelled.groups is None:
        return rows
    videos: dict[str, list[int]] = {}
    for row in rows.tolist():
        frames = videos.setdefault(labelled.groups[row], [])
        frames.append(row)
        if labelled.labels[row] != labelled.labels[frames[0]]:
            raise InputError(
                f"set {labelled.name!r} ({labelled.path}): frame {labelled.ids[row]!r} has another label than its video; mend the labels"
            )
    middle = [
        sorted(frames, key=lambda row: _by_number(labelled.ids[row]))[len(frames) // 2] for frames in videos.values()
    ]
    return np.sort(np.array(middle, np.int64))


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sorts runs of digits, which are every second part, as numbers: without leading zeros a longer one is larger."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")), part.lstrip("0")) if place % 2 else (0, part) for place, part in enumerate(parts)]


def held_out(labelled: LabelledSet, share: float, seed: int) -> NDArray[np.bool_]:
    """Which of a set's examples are cut off for validation: bool[examples].

    In each class its different pictures are ordered by the keyed BLAKE2b of their sha256, and the first `share` of them (rounded, at least
    one where there are two, never all) are held out with all their repeats. A picture that comes under several labels is cut in the lowest
    of these classes, and goes with it in the others. A set with several labels a picture is cut as if it were one class.
    """
    rows = examples(labelled)
    classes: dict[bytes, int] = {}
    for row in rows:
        digest, label = labelled.sha256[row], int(labelled.labels[row])
        classes[digest] = min(label, classes.get(digest, label))
    pictures: dict[int, list[bytes]] = {}
    for digest, label in classes.items():
        pictures.setdefault(label, []).append(digest)
    held: set[bytes] = set()
    for digests in pictures.values():
        ordered = sorted(digests, key=lambda digest: keyed(digest, seed))
        count = min(max(1, round(share * len(ordered))), len(ordered) - 1)
        held.update(ordered[:count])
    return np.array([labelled.sha256[row] in held for row in rows], bool)


def keyed(value: bytes, seed: int) -> bytes:
    """BLAKE2b-128 of `value` under the key `seed`, 8 bytes little-endian: what every choice of examples is ordered by."""
    return hashlib.blake2b(value, digest_size=16, key=seed.to_bytes(8, "little")).digest()


# ---- what is written


def entry(config: ProbeConfig | FewshotConfig, one: ProbeSet, parts: Parts) -> dict[str, Json]:
    """What the figures of one dataset were computed from."""
    classes: Sequence[str] = parts.classes
    cut: Json = None if one.validation else {"share": config.validation_share, "seed": config.seed}
    return {
        "content_hash": {
            "train": parts.train.labelled.content_hash,
            "validation": parts.validation.labelled.content_hash,
            "test": parts.test.labelled.content_hash,
        },
        "classes_sha256": digest_json(list(classes)),
        "examples": {name: len(getattr(parts, name).rows) for name in ("train", "validation", "test")},
        "validation_cut": cut,
        "test_in_train": parts.test_in_train(),
        "chosen_by": chosen_by(one, parts),
    }


def write_figures(
    config: ProbeConfig | FewshotConfig, kind: str, model: ModelIdentity, entries: dict[str, dict[str, Json]]
) -> str:
    """KIND.json, written last; returns its URI."""
    place = storage.join(config.out, f"{kind}.json")
    sets: dict[str, Json] = dict(entries)
    value: Json = {
        "kind": f"evaluation.{kind}",
        "version": FORMAT_VERSION,
        "config_digest": digest(config),
        "confidence": config.confidence,
        "tolerance": config.tolerance,
        "model": {"sha256": model.sha256, "content_root": model.content_root},
        "sets": sets,
    }
    storage.write_atomic(place, canonical(value))
    return place


def _score(
    config: ProbeConfig, one: ProbeSet, parts: Parts, logits: NDArray[np.float64], model: ModelIdentity
) -> tuple[dict[str, Json], zeroshot.Scores]:
    """Figures and predictions/NAME.parquet of the test rows."""
    test = parts.test
    # The dataset's name, not its test part's, names the file.
    labelled = dataclasses.replace(test.labelled, name=one.name)
    answers = zeroshot.answers_of(labelled, test.rows, logits)
    rows, example = _frames(test)
    if parts.several:  # log-odds of each class, which mAP needs
        table, scale = zeroshot.prediction_table(labelled, rows, answers, example, keep_scores=True), None
    else:
        shares = dataclasses.replace(answers, scores=softmax(logits, axis=1).astype(np.float32))
        table, scale = zeroshot.prediction_table(labelled, rows, shares, example), 1.0  # a probe's own logits
        table = with_probabilities(table, shares.scores[example], None)
    write_predictions(storage.join(config.out, FOLDER), labelled, table, dataclasses.replace(model, logit_scale=scale))
    scores = zeroshot.summarise(
        answers,
        labelled.classes,
        groups=zeroshot.groups_of(labelled, test.rows),
        unlabelled=len(labelled) - len(rows),
        metric=headline(one, parts),
        confidence=config.confidence,
        place=f"set {one.name!r} ({labelled.path})",
    )
    plain: dict[str, Json] = dataclasses.asdict(scores)
    return plain, scores


def _frames(part: Part) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All labelled rows, and the place of each one's example in the part: a video's answer is that of all its frames."""
    groups = part.labelled.groups
    if groups is None:
        return part.rows, np.arange(len(part.rows))
    place = {groups[row]: number for number, row in enumerate(part.rows)}
    rows = zeroshot.labelled_rows(part.labelled)
    return rows, np.array([place[groups[row]] for row in rows], np.int64)


def _path(found: probe.Search, final: probe.Probe) -> dict[str, Json]:
    return {
        "strength": final.strength,
        "index": found.best.index,
        "search": [{"index": trial.index, "score": trial.score, **_fit(trial.probe)} for trial in found.trials],
        "refit": _fit(final),
    }


def _fit(one: probe.Probe) -> dict[str, Json]:
    return {
        "strength": one.strength,
        "objective": one.objective,
        "gradient": one.gradient,
        "evaluations": one.evaluations,
        "converged": one.converged,
    }


def _write_probe(config: ProbeConfig, one: ProbeSet, parts: Parts, final: probe.Probe, model: ModelIdentity) -> str:
    """probes/NAME.safetensors (`weights` float64[classes, width], `intercepts` float64[classes]), then its card; returns its sha256.

    log p(class) = log softmax(weights · features + intercepts), features as `trainer.models.CLIP.image_features` gives them; with several
    labels a picture each entry is the log-odds of its class.
    """
    data = safetensors.numpy.save({"weights": final.weights, "intercepts": final.intercepts})
    stem = storage.join(config.out, FOLDER, one.name)
    storage.write_atomic(f"{stem}.safetensors", data)
    sha256 = hashlib.sha256(data).hexdigest()
    classes: list[Json] = [*parts.classes]
    learned: list[Json] = [*sorted({parts.train.labelled.content_hash, parts.validation.labelled.content_hash})]
    card: Json = {
        "kind": "evaluation.probe.weights",
        "version": CARD_VERSION,
        "weights": f"{one.name}.safetensors",
        "weights_sha256": sha256,
        "model": {"sha256": model.sha256, "content_root": model.content_root},
        "features": "image_features",
        "several_labels": parts.several,
        "classes": classes,
        "trained_on": learned,
        **_fit(final),
    }
    storage.write_atomic(f"{stem}.json", canonical(card))
    return sha256


def _describe(found: probe.Search, parts: Parts) -> list[str]:
    best, passes = found.best, sum(trial.probe.evaluations for trial in found.trials)
    lines = [
        f"  strength        λ = {best.probe.strength:.4g} (C = {1 / best.probe.strength:.4g}), {best.score:.2%} on "
        f"{len(parts.validation.rows):,} of validation; {len(found.trials)} fits, {passes:,} passes over {len(parts.train.rows):,} pictures"
    ]
    if best.index in (0, len(probe.INVERSE_STRENGTHS) - 1):
        lines.append("  the best strength is the last of the grid: the features may be badly scaled")
    unfinished = sum(not trial.probe.converged for trial in found.trials)
    if unfinished:
        lines.append(f"  {unfinished} fits ended before the tolerance was reached")
    leaked = parts.test_in_train()
    if leaked:
        lines.append(f"  {leaked:,} test pictures are, bit for bit, among those learned from")
    return lines

"""`python -m evaluation probe`: a linear classifier on the features of a model, as in A.3 of the CLIP paper, from config to files.

Features of train → the strength by the 15-fit search on validation → refit on train and validation → once on test. Validation is a set of
its own or a share of train, cut class by class by the hash of the picture's bytes, so that the same picture is never on both sides.

Written under `out`: `probe.json` (figures, the whole path of the search, and the identity of what they were computed from),
`predictions/SET.parquet` (a row per test example, as `zeroshot` writes it), and the classifier itself, `probes/SET.safetensors` with
its card `probes/SET.json`. The same inputs on the same machine give the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from scipy.special import softmax

from evaluation import probe, zeroshot
from evaluation.calibration import with_probabilities
from evaluation.config import FewshotConfig, ProbeConfig, ProbeSet
from evaluation.datasets import open_set
from evaluation.features import FeatureEncoder
from evaluation.metrics import Answers
from evaluation.report.files import canonical
from evaluation.scoring import ModelIdentity, describe_scores, load_encoder, write_predictions
from pipeline.content.labelled import UNLABELLED, LabelledSet
from pipeline.contracts import storage
from pipeline.contracts.config import Json, digest, digest_json
from pipeline.contracts.errors import InputError

FORMAT_VERSION = 1
CARD_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Part:
    """Some labelled rows of an opened set: `rows` int64[n] ascending, `labels` int64[n]."""

    labelled: LabelledSet
    rows: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.labelled.labels[self.rows].astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a probe of one dataset learns from, chooses by and reports on; all have the same `classes`."""

    train: Part
    validation: Part
    test: Part

    @property
    def classes(self) -> list[str]:
        return self.test.labelled.classes

    def test_in_train(self) -> int:
        """How many test pictures are, bit for bit, among those that were learned from."""
        learned = {part.labelled.sha256[row] for part in (self.train, self.validation) for row in part.rows}
        return sum(self.test.labelled.sha256[row] in learned for row in self.test.rows)


def run(config: ProbeConfig) -> str:
    """Probe every set, write the files, return the lines for the terminal."""
    opened = [(one, open_parts(one, config)) for one in config.sets]
    encoder, model = load_encoder(config)
    said, entries = [], {}
    for one, parts in opened:
        train, validation, test = (features(encoder, part) for part in (parts.train, parts.validation, parts.test))
        found = probe.search(
            train,
            parts.train.labels,
            validation,
            parts.validation.labels,
            classes=len(parts.classes),
            tolerance=config.tolerance,
            score=probe.SCORES[one.metric],
            device=config.device,
        )
        final = probe.fit(
            np.concatenate([train, validation]),
            np.concatenate([parts.train.labels, parts.validation.labels]),
            found.best.probe.strength,
            classes=len(parts.classes),
            tolerance=config.tolerance,
            start=found.best.probe,
            device=config.device,
        )
        scores = _score(config, one, parts.test, final.logits(test), model)
        weights = _write_probe(config, one, parts, final, model)
        entries[one.name] = entry(config, one, parts) | _path(found, final) | {"weights_sha256": weights, **scores[0]}
        said.append("\n".join([describe_scores(one.name, scores[1]), *_describe(found, parts)]))
    place = write_figures(config, "probe", model, entries)
    told = [f"\nfigures: {place}", f"predictions: {storage.join(config.out, 'predictions')}"]
    return "\n".join([*said, *told, f"classifiers: {storage.join(config.out, 'probes')}"])


def plan(config: ProbeConfig) -> str:
    """What a run would do, for `--check`."""
    names = ", ".join(one.name for one in config.sets)
    return f"model {config.model!r} probed on {names}: 15 fits and one more for each; figures in {config.out!r}"


# ---- sets and features, for `fewshot` too


def features(encoder: FeatureEncoder, part: Part) -> NDArray[np.float32]:
    """float32[n, width] of a part's rows: the one place where probes ask a model for features."""
    return encoder.features(part.labelled, part.rows.tolist())


def open_parts(one: ProbeSet, config: ProbeConfig | FewshotConfig) -> Parts:
    """Open the sets of one dataset.

    Raises InputError: class lists that differ, a part without labelled pictures, a training part of fewer than two classes.
    """
    opened = [open_set(part) for part in (one.train, one.test, *([one.validation] if one.validation else []))]
    train = opened[0]
    for other in opened[1:]:
        if other.classes != train.classes:
            raise InputError(
                f"set {one.name!r}: {other.path} has {len(other.classes)} classes and {train.path} has {len(train.classes)}, or others, "
                "or in another order; give all parts the same `classes` or `classes_file` (and absent_classes = true where one has no "
                "example)"
            )
    parts = [Part(part, np.flatnonzero(part.labels != UNLABELLED)) for part in opened]
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
    if len(np.unique(learned.labels)) < 2:
        raise InputError(
            f"set {one.name!r}: train ({train.path}) has pictures of one class only; a probe needs two classes or more"
        )
    return Parts(learned, chosen, parts[1])


def held_out(labelled: LabelledSet, share: float, seed: int) -> NDArray[np.bool_]:
    """Which of a set's labelled rows are cut off for validation: bool[labelled rows].

    In each class its different pictures are ordered by the keyed BLAKE2b of their sha256, and the first `share` of them (rounded, at least
    one where there are two, never all) are held out with all their repeats.
    """
    rows = np.flatnonzero(labelled.labels != UNLABELLED)
    held: set[tuple[int, bytes]] = set()
    pictures: dict[int, set[bytes]] = {}
    for row in rows:
        pictures.setdefault(int(labelled.labels[row]), set()).add(labelled.sha256[row])
    for label, digests in pictures.items():
        ordered = sorted(digests, key=lambda digest: keyed(digest, seed))
        count = min(max(1, round(share * len(ordered))), len(ordered) - 1)
        held |= {(label, digest) for digest in ordered[:count]}
    return np.array([(int(labelled.labels[row]), labelled.sha256[row]) in held for row in rows], bool)


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
        "metric": one.metric,
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
    config: ProbeConfig, one: ProbeSet, test: Part, logits: NDArray[np.float64], model: ModelIdentity
) -> tuple[dict[str, Json], zeroshot.Scores]:
    """Figures and predictions/NAME.parquet of the test rows."""
    # The dataset's name, not its test part's, names the file.
    labelled = dataclasses.replace(test.labelled, name=one.name)
    answers = Answers(softmax(logits, axis=1).astype(np.float32), zeroshot.rank(logits), labelled.labels[test.rows])
    table = with_probabilities(zeroshot.prediction_table(labelled, test.rows, answers), answers.scores, None)
    write_predictions(config.out, labelled, table, dataclasses.replace(model, logit_scale=1.0))  # a probe's own logits
    scores = zeroshot.summarise(
        answers,
        labelled.classes,
        groups=zeroshot.groups_of(labelled, test.rows),
        unlabelled=len(labelled) - len(test.rows),
        metric="accuracy" if one.metric == "top1" else one.metric,
        confidence=config.confidence,
    )
    plain: dict[str, Json] = dataclasses.asdict(scores)
    return plain, scores


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

    log p(class) = log softmax(weights · features + intercepts), features as `trainer.models.CLIP.image_features` gives them.
    """
    data = safetensors.numpy.save({"weights": final.weights, "intercepts": final.intercepts})
    stem = storage.join(config.out, "probes", one.name)
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

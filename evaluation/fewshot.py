"""`python -m evaluation fewshot`: the linear probe from 1, 2, 4, 8, 16 examples a class, several times, by lists that anyone can use.

Which examples: in each class the pictures are ordered by the keyed BLAKE2b of their ids under the seed, and k shots are the first k. So 1
shot is part of 2, every model learns from the same pictures, and neither the order of the files nor a library's random numbers matter. The
lists are written (`lists/SET.json`) and are read again with `lists = FOLDER`, which refuses lists of another version of the set.

The strength is chosen as in the probe, by the 15-fit search on the validation rows; these are no shots, and their number is in the figures.
What was learned from stays the k shots: there is no refit. Beside it stands the ridge classifier (`evaluation/ridge.py`), chosen on the
same rows.

Under `out`: `fewshot.json`, `lists/SET.json`, `fewshot/SET.parquet` (every classifier's answer to
every test example). Per dataset and number of shots `fewshot.json` has `logistic` and `ridge`, each with

    mean, low, high     the mean over seeds of the score on test (by the metric that chooses the strength), and its interval
    per_seed            seed, strength, score

The interval says how far another draw of shots *and* another draw of test examples may lie: the variances of both means are added. They
share what hangs on the pair of shots and example, which is therefore counted twice: the interval is a little too wide rather than too
narrow. Its t quantile has Satterthwaite's degrees of freedom, for five seeds know their own spread badly.

`versus_probe.shots_worth` reads such a curve the other way round: how many shots reach a given score (paper, 3.1.5).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
import pydantic
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import stdtrit

from evaluation import probe, ridge
from evaluation.config import FewshotConfig, ProbeSet
from evaluation.features import FeatureEncoder
from evaluation.intervals import Interval
from evaluation.probing import Part, Parts, check_datasets, chosen_by, entry, features, keyed, open_parts, write_figures
from evaluation.report.files import canonical
from evaluation.scoring import load_encoder, write_rows
from pipeline.contracts import storage
from pipeline.contracts.cli import Progress
from pipeline.contracts.config import Json, StrictModel, digest_json
from pipeline.contracts.errors import InputError

_MOST_BYTES = 1 << 28


class Draw(StrictModel):
    """One seed's choice: per class the ids of its shots in order, so that the first k of each are k shots."""

    seed: Annotated[int, Field(ge=0, lt=1 << 64)]
    ids: list[list[str]]


class ShotLists(StrictModel):
    """lists/SET.json: which examples are learned from, for every seed. `train_content_hash` is the labelled set's, which holds the ids."""

    kind: Literal["evaluation.fewshot.lists"] = "evaluation.fewshot.lists"
    version: Literal[1] = 1
    name: str
    train_content_hash: str
    classes: list[str]
    draws: list[Draw] = Field(min_length=1)


ANSWER_SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("shots", pa.int32(), nullable=False),
        pa.field("seed", pa.uint64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("eval_id", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("prediction", pa.int32(), nullable=False),
    ]
)
"""One row per classifier (`logistic` or `ridge`, shots a class, seed of the draw) and test example."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """One classifier from k shots: the strength that was chosen, its predictions int64[n] on test."""

    strength: float
    predictions: NDArray[np.int64]


def run(config: FewshotConfig) -> str:
    """Every dataset, every seed, every number of shots; write the files, return the lines for the terminal."""
    opened = []
    for one in config.sets:
        parts = open_parts(one, config)
        if parts.several:
            raise InputError(
                f"set {one.name!r} ({one.test.path}): has several labels a picture, and shots are so many of one class; leave it out"
            )
        opened.append((one, parts, lists_of(config, one, parts.train)))
    encoder, model = load_encoder(config)
    said, entries = [], {}
    for one, parts, lists in opened:
        found = learn(encoder, one, parts, lists, config)
        curves = {
            kind: [curve_point(parts.test, by_seed, chosen_by(one, parts), config.confidence) for by_seed in each]
            for kind, each in found.items()
        }
        named = dataclasses.replace(parts.test.labelled, name=one.name)
        write_rows(config.out, "fewshot", named, answers(parts.test, config.shots, lists, found), model)
        written = storage.join(config.out, "lists", f"{one.name}.json")
        storage.write_atomic(written, canonical(lists.model_dump(mode="json")))
        entries[one.name] = entry(config, one, parts) | {
            "metric": chosen_by(one, parts),
            "lists_sha256": digest_json(lists.model_dump(mode="json")),
            "shots": {
                str(shots): {
                    kind: _plain(curves[kind][place], lists, found[kind][place], parts.test, chosen_by(one, parts))
                    for kind in found
                }
                for place, shots in enumerate(config.shots)
            },
        }
        said.append(_describe(one, parts, config.shots, curves))
    place = write_figures(config, "fewshot", model, entries)
    kept = (
        f"{what}: {storage.join(config.out, folder)}" for what, folder in (("lists", "lists"), ("answers", "fewshot"))
    )
    return "\n".join([*said, f"\nfigures: {place}", *kept])


def plan(config: FewshotConfig) -> str:
    """What a run would do, for `--check`."""
    check_datasets(config)
    names = ", ".join(one.name for one in config.sets)
    return (
        f"model {config.model!r} on {names}: {', '.join(map(str, config.shots))} shots a class, {len(config.seeds)} draws of each; "
        f"figures in {config.out!r}"
    )


# ---- which examples


def lists_of(config: FewshotConfig, one: ProbeSet, train: Part) -> ShotLists:
    """The lists of one dataset: chosen by the seeds, or read from the folder that the configuration names."""
    most = max(config.shots)
    if config.lists is None:
        return choose(one.name, train, config.seeds, most)
    lists = read_lists(storage.join(config.lists, f"{one.name}.json"), train, most)
    drawn = [draw.seed for draw in lists.draws]
    if sorted(drawn) != sorted(config.seeds):
        raise InputError(f"lists: {one.name!r} has the seeds {drawn}, asked for are {config.seeds}; give seeds={drawn}")
    return lists


def choose(name: str, train: Part, seeds: Sequence[int], shots: int) -> ShotLists:
    """The first `shots` of each class in the order of each seed.

    Raises InputError where a class of the set has fewer, and names it.
    """
    labelled, labels = train.labelled, train.labels
    sizes = np.bincount(labels, minlength=len(labelled.classes))
    scarce = int(sizes.argmin())
    if sizes[scarce] < shots:
        raise InputError(
            f"set {name!r}: class {labelled.classes[scarce]!r} has {sizes[scarce]} pictures to learn from ({labelled.path}), "
            f"{shots} shots need as many; give fewer with shots=[…], or a smaller validation_share"
        )
    draws = []
    for seed in seeds:
        ranked: list[list[str]] = [[] for _ in labelled.classes]
        for row in sorted(train.rows, key=lambda row: (keyed(_encoded(labelled.ids[row]), seed), labelled.ids[row])):
            if len(ranked[labelled.labels[row]]) < shots:
                ranked[labelled.labels[row]].append(labelled.ids[row])
        draws.append(Draw(seed=seed, ids=ranked))
    return ShotLists(name=name, train_content_hash=labelled.content_hash, classes=labelled.classes, draws=draws)


def read_lists(path: str, train: Part, shots: int) -> ShotLists:
    """Lists that an earlier run wrote. Raises InputError: no such lists, of another version of the set, ids that are not of their class."""
    try:
        lists = ShotLists.model_validate_json(storage.read_bytes(path, limit=_MOST_BYTES))
    except (pydantic.ValidationError, json.JSONDecodeError):
        raise InputError(f"{path}: no lists of few-shot examples; give the `lists` folder of an earlier run") from None
    labelled = train.labelled
    if lists.train_content_hash != labelled.content_hash or lists.classes != labelled.classes:
        raise InputError(
            f"{path}: chosen from a set of content hash {lists.train_content_hash[:16]}…, {labelled.path} has "
            f"{labelled.content_hash[:16]}…; give the same set, or leave `lists` out to choose anew"
        )
    label_of = {labelled.ids[row]: int(labelled.labels[row]) for row in train.rows}
    for draw in lists.draws:
        if len(draw.ids) != len(labelled.classes) or min(map(len, draw.ids)) < shots:
            raise InputError(
                f"{path}: seed {draw.seed} has fewer than {shots} shots for some class; give fewer with shots=[…]"
            )
        for label, ids in enumerate(draw.ids):
            wrong = next((one for one in ids if label_of.get(one) != label), None)
            if wrong is not None or len(set(ids)) != len(ids):
                raise InputError(
                    f"{path}: seed {draw.seed}: {wrong or ids[0]!r} is no picture of class {labelled.classes[label]!r} to learn from, or "
                    "comes twice; give the same validation_share and seed as then"
                )
    return lists


# ---- learning


def learn(
    encoder: FeatureEncoder, one: ProbeSet, parts: Parts, lists: ShotLists, config: FewshotConfig
) -> dict[str, list[list[Learned]]]:
    """`logistic` and `ridge`, each with a list per number of shots of a `Learned` per seed."""
    row_of = {parts.train.labelled.ids[row]: int(row) for row in parts.train.rows}
    most = max(config.shots)
    needed = np.unique([row_of[one] for draw in lists.draws for ids in draw.ids for one in ids[:most]])
    pool = features(encoder, Part(parts.train.labelled, needed))
    validation, test = features(encoder, parts.validation), features(encoder, parts.test)
    found: dict[str, list[list[Learned]]] = {"logistic": [], "ridge": []}
    with Progress(len(config.shots) * len(lists.draws), "probes", one.name, summary=False) as progress:
        for shots in config.shots:
            by_seed: dict[str, list[Learned]] = {"logistic": [], "ridge": []}
            for draw in lists.draws:
                places = np.searchsorted(needed, [row_of[name] for ids in draw.ids for name in ids[:shots]])
                labels = np.repeat(np.arange(len(parts.classes)), shots)
                told = (pool[places], labels, validation, parts.validation.labels)
                score, classes = probe.SCORES[chosen_by(one, parts)], len(parts.classes)
                best = probe.search(
                    *told, classes=classes, tolerance=config.tolerance, score=score, device=config.device
                ).best.probe
                flat = ridge.sweep(*told, classes=classes, score=score)
                by_seed["logistic"].append(Learned(best.strength, best.predict(test)))
                by_seed["ridge"].append(Learned(flat.strength, flat.predict(test)))
                progress.update()
            for kind, each in by_seed.items():
                found[kind].append(each)
    return found


def curve_point(test: Part, by_seed: Sequence[Learned], metric: str, confidence: float) -> Interval:
    """The mean score over seeds, with the interval over seeds and examples."""
    correct = np.stack([one.predictions for one in by_seed]) == test.labels
    return crossed(correct, test.labels if metric == "mean_per_class" else None, confidence)


def crossed(correct: NDArray[np.bool_], classes: NDArray[np.int64] | None, confidence: float) -> Interval:
    """The mean of bool[draws, examples] with an interval over other draws and other examples; no interval where nothing varies.

    classes: int64[examples], the mean is then the mean of the classes' means. Var = s²(draws) / draws + s²(examples) / examples, a t
    interval with Satterthwaite's degrees of freedom; ends are cut at 0 and 1.
    """
    draws, n = correct.shape
    rights = correct.mean(axis=0)
    if classes is None:
        influence = rights - rights.mean()
        by_draw = correct.mean(axis=1)
    else:
        _, numbered, sizes = np.unique(classes, return_inverse=True, return_counts=True)
        means = np.bincount(numbered, weights=rights) / sizes
        influence = (rights - means[numbered]) * n / (len(sizes) * sizes[numbered])
        by_draw = np.array([(np.bincount(numbered, weights=row) / sizes).mean() for row in correct])
    value = float(by_draw.mean())
    between, within = float(by_draw.var(ddof=1)) / draws, float((influence**2).sum()) / max(1, n - 1) / n
    variance = between + within
    if variance <= 0.0:
        return Interval(value, None, None)
    freedom = variance**2 / (between**2 / (draws - 1) + within**2 / max(1, n - 1))
    half = float(stdtrit(freedom, 0.5 + confidence / 2.0)) * variance**0.5
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


# ---- what is written


def answers(test: Part, shots: Sequence[int], lists: ShotLists, found: dict[str, list[list[Learned]]]) -> pa.Table:
    """ANSWER_SCHEMA rows: every classifier's answer to every test example."""
    ids = [test.labelled.ids[row] for row in test.rows]
    digests = [test.labelled.sha256[row] for row in test.rows]
    tables = [
        pa.table(
            [
                pa.array([kind] * len(ids), pa.string()),
                pa.array([count] * len(ids), pa.int32()),
                pa.array([draw.seed] * len(ids), pa.uint64()),
                pa.array(test.rows, pa.int64()),
                pa.array(ids, pa.string()),
                pa.array(digests, pa.binary(32)),
                pa.array(test.labels, pa.int32()),
                pa.array(learned.predictions, pa.int32()),
            ],
            schema=ANSWER_SCHEMA,
        )
        for kind, each in found.items()
        for count, by_seed in zip(shots, each, strict=True)
        for draw, learned in zip(lists.draws, by_seed, strict=True)
    ]
    return pa.concat_tables(tables)


def _plain(point: Interval, lists: ShotLists, by_seed: Sequence[Learned], test: Part, metric: str) -> dict[str, Json]:
    score = probe.SCORES[metric]
    return {
        "mean": point.value,
        "low": point.low,
        "high": point.high,
        "per_seed": [
            {"seed": draw.seed, "strength": one.strength, "score": score(test.labels, one.predictions)}
            for draw, one in zip(lists.draws, by_seed, strict=True)
        ],
    }


def _describe(one: ProbeSet, parts: Parts, shots: Sequence[int], curves: dict[str, list[Interval]]) -> str:
    lines = [
        f"{one.name}: {len(parts.test.rows):,} test pictures, {len(parts.classes):,} classes, {chosen_by(one, parts)}; strengths chosen on "
        f"{len(parts.validation.rows):,} pictures of validation"
    ]
    for kind, points in curves.items():
        for k, point in zip(shots, points, strict=True):
            ends = "" if point.low is None or point.high is None else f"  ({point.low:.2%} to {point.high:.2%})"
            lines.append(f"  {kind:8} {k:4} shots  {point.value:7.2%}{ends}")
    leaked = parts.test_in_train()
    if leaked:
        lines.append(f"  {leaked:,} test pictures are, bit for bit, among train and validation")
    return "\n".join(lines)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")

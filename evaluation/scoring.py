"""`python -m evaluation zeroshot` and `retrieval`: a model and some sets → figures, and a row per example.

Written under `out`: `zeroshot.json` or `retrieval.json` (figures, and the identity of everything they were computed from: weights, corpus
root, content hash of the set, prompts), and `predictions/SET.parquet`, which the overlap job takes as a set's `predictions`. Files are
written atomically, the JSON last; the same inputs on the same machine give the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from evaluation import metrics, retrieval, zeroshot
from evaluation.config import FewshotConfig, ProbeConfig, PromptConfig, ZeroshotConfig, ZeroshotSet
from evaluation.datasets import open_set
from evaluation.datasets.catalogue import check_known, metric_of
from evaluation.features import CachedEncoder, Encoder, normalise
from evaluation.metrics import Rate
from evaluation.model import ModelEncoder
from evaluation.overlap.exposure import Training
from evaluation.overlap.tables import PREDICTIONS_VERSION
from evaluation.prompts import Prompts, check_classes, load_prompts, load_templates, shipped_sets
from evaluation.report.files import canonical, table_bytes
from pipeline.content.labelled import LabelledSet
from pipeline.contracts import storage
from pipeline.contracts.config import Json, digest, digest_json
from pipeline.contracts.errors import InputError

FORMAT_VERSION = 3  # 2: retrieval takes rows with the same picture for one. 3: prompts of each set, metric, guard

_CLASSES_OF = {"imagenetv2": "imagenet", "imagenet_sketch": "imagenet"}
"""Datasets with the classes of another."""


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """Which weights, trained on which corpus and how far; goes into every file. `logit_scale` is what they multiply cosines by."""

    sha256: str
    content_root: str | None
    logit_scale: float | None = None
    training: Training | None = None


def run_zeroshot(config: ZeroshotConfig) -> str:
    """Score every set, write the files, return the lines for the terminal."""
    sets = [open_set(one) for one in config.sets]
    prompts = [prompts_of(one, config.prompts, labelled) for one, labelled in zip(config.sets, sets, strict=True)]
    encoder, model = load_encoder(config)
    said, entries = [], {}
    for one, labelled, words in zip(config.sets, sets, prompts, strict=True):
        scores, table = zeroshot.evaluate(
            encoder,
            labelled,
            words.templates or [],
            class_names=words.classes,
            metric=metric_of(one.dataset, one.metric),
            confidence=config.confidence,
            logit_scale=model.logit_scale,
            keep_scores=config.keep_scores,
        )
        write_predictions(config.out, labelled, table, model)
        names: dict[str, Json] = {
            "source": words.source,
            "sha256": words.sha256,
            "templates": list(words.templates or []),
            "names": sum(len(several) for several in words.classes or []),
        }
        about: dict[str, Json] = {"dataset": one.dataset, "split": one.split if one.dataset else None, "prompts": names}
        entries[labelled.name] = _entry(labelled, about | _plain(scores))
        said.append(describe_scores(labelled.name, scores))
    place = _write(config, "zeroshot", model, entries)
    return "\n".join([*said, f"\nfigures: {place}", f"predictions: {storage.join(config.out, 'predictions')}"])


def prompts_of(one: ZeroshotSet, config: PromptConfig, labelled: LabelledSet) -> Prompts:
    """The class names and templates of one set, none of them None; their digest enters the results.

    Names: the set's `prompts`, else the project's for its dataset (unless the set has a class list), else the names of its classes.
    Templates: the set's `templates`, else those of [prompts], else those that came with the names, else `general`.
    Raises InputError for names that are not of this set's classes.
    """
    ours = f"{_CLASSES_OF.get(one.dataset or '', one.dataset)}.{config.language}"
    place = one.prompts
    if place is None and not one.classes and one.classes_file is None and ours in shipped_sets():
        place = ours
    named = Prompts("the set's own names", None, None) if place is None else load_prompts(place, one.dataset)
    check_classes(named, labelled.classes, f"set {one.name!r} ({one.path})")
    if one.templates is not None:
        templates = load_prompts(one.templates, one.dataset).templates
        if templates is None:
            raise InputError(
                f"set {one.name!r}: templates: {one.templates!r} holds class names only; name a file with templates"
            )
    elif config.templates or config.file is not None or named.templates is None:
        templates = load_templates(config)
    else:
        templates = named.templates
    return Prompts(named.source, named.classes or [[text] for text in labelled.class_texts], templates)


def run_retrieval(config: ZeroshotConfig) -> str:
    """Image-text retrieval over every set, by the caption column."""
    sets = [open_set(one) for one in config.sets]
    for labelled in sets:
        if labelled.captions is None:
            raise InputError(f"set {labelled.name!r} ({labelled.path}) has no captions; name its column with `caption`")
    encoder, model = load_encoder(config)
    said, entries = [], {}
    for labelled in sets:
        found, rows, used = retrieve_set(encoder, labelled, config.caption_template, confidence=config.confidence)
        write_rows(config.out, "retrieval", labelled, rows, model)
        value: dict[str, Json] = {
            "pairs": used,
            "pictures": len(found.image_ranks),
            "without_caption": len(labelled) - used,
            "captions": len(found.texts),
            "image_to_text": [_plain(one) for one in found.image_to_text],
            "text_to_image": [_plain(one) for one in found.text_to_image],
            "caption_template": config.caption_template,
        }
        entries[labelled.name] = _entry(labelled, value)
        said.append(describe_retrieval(labelled.name, found, used))
    place = _write(config, "retrieval", model, entries)
    return "\n".join([*said, f"\nfigures: {place}", f"a rank per query: {storage.join(config.out, 'retrieval')}"])


def retrieve_set(
    encoder: Encoder, labelled: LabelledSet, template: str = "{}", *, confidence: float = 0.95
) -> tuple[retrieval.Retrieval, pa.Table, int]:
    """Retrieval over the rows of a set that have a caption, RANK_SCHEMA rows, and how many rows of the set these were.

    Rows with the same bytes are one picture.
    """
    captions = labelled.captions or [None] * len(labelled)
    rows = [row for row, caption in enumerate(captions) if caption is not None and caption.strip()]
    if not rows:
        raise InputError(f"set {labelled.name!r} ({labelled.path}) has no row with a caption; check the caption column")
    texts = [str(captions[row]) for row in rows]
    names, caption_of_row = retrieval.distinct(texts)
    embedded = normalise(encoder.texts([template.replace("{}", name) for name in names]))
    digests = [labelled.sha256[row] for row in rows]
    first_places = np.unique(retrieval.distinct(digests)[1], return_index=True)[1]
    images = normalise(encoder.images(labelled, [rows[place] for place in first_places]))
    found = retrieval.retrieve(images, embedded, digests, texts, confidence=confidence)
    first_captions = np.unique(caption_of_row, return_index=True)[1]
    queries = [("image_to_text", place, rank) for place, rank in zip(first_places, found.image_ranks, strict=True)]
    queries += [("text_to_image", place, rank) for place, rank in zip(first_captions, found.text_ranks, strict=True)]
    table = [
        (direction, rows[place], labelled.ids[rows[place]], digests[place], texts[place], int(rank))
        for direction, place, rank in queries
    ]
    columns = [
        pa.array(values, field.type)
        for values, field in zip(zip(*table, strict=True), retrieval.RANK_SCHEMA, strict=True)
    ]
    return found, pa.table(columns, schema=retrieval.RANK_SCHEMA), len(rows)


def load_encoder(
    config: ZeroshotConfig | ProbeConfig | FewshotConfig,
) -> tuple[ModelEncoder | CachedEncoder, ModelIdentity]:
    """The exported model, behind the cache where the configuration names one, and who it is."""
    encoder = ModelEncoder(config.model, batch=config.batch, device=config.device)
    card = encoder.card
    training = Training(card.samples_seen, card.seed, card.window_row_groups, card.init_sha256)
    identity = ModelIdentity(card.weights_sha256, card.content_root, encoder.logit_scale, training)
    return encoder if config.cache is None else CachedEncoder(encoder, config.cache), identity


def plan(config: ZeroshotConfig) -> str:
    """What a run would do, for `--check`."""
    check_known(one.dataset for one in config.sets)
    names = ", ".join(f"{one.name} ({metric_of(one.dataset, one.metric)})" for one in config.sets)
    templates = load_templates(config.prompts)
    return f"model {config.model!r} on {names}; {len(templates)} templates for sets without their own; figures in {config.out!r}"


def plan_retrieval(config: ZeroshotConfig) -> str:
    """The same for `retrieval`, which has captions for templates."""
    check_known(one.dataset for one in config.sets)
    names = ", ".join(one.name for one in config.sets)
    return f"model {config.model!r} on {names}; captions as {config.caption_template!r}; figures in {config.out!r}"


def write_predictions(out: str, labelled: LabelledSet, table: pa.Table, model: ModelIdentity) -> str:
    """predictions/NAME.parquet, with the identities of the model and of the set in its metadata; returns its URI."""
    return write_rows(out, "predictions", labelled, table, model)


def write_rows(out: str, folder: str, labelled: LabelledSet, table: pa.Table, model: ModelIdentity) -> str:
    """FOLDER/NAME.parquet, rows about the examples of a set, with the same metadata as predictions."""
    metadata = {
        "format_version": str(PREDICTIONS_VERSION),
        "set_content_hash": labelled.content_hash,
        "model_sha256": model.sha256,
        "content_root": model.content_root or "",
        "logit_scale": "" if model.logit_scale is None else repr(model.logit_scale),
        **({} if model.training is None else model.training.metadata()),
    }
    place = storage.join(out, folder, f"{labelled.name}.parquet")
    storage.write_atomic(place, table_bytes(table.replace_schema_metadata(metadata)))
    return place


def describe_scores(name: str, scores: zeroshot.Scores) -> str:
    """The figures of one set beside what guessing reaches; a warning where the guard has one."""
    lines = [
        f"{name}: {scores.n:,} examples, {scores.classes:,} classes"
        + (f" ({scores.classes_seen:,} with an example)" if scores.classes_seen < scores.classes else "")
        + (f", {scores.unlabelled:,} without a label left out" if scores.unlabelled else ""),
    ]
    if scores.metric not in ("accuracy", "mean_per_class"):
        title = metrics.TITLES[scores.metric]
        lines.append(f"  {title:14}  {_rate(scores.headline)}   chance {scores.headline_chance:.2%}")
    lines += [
        f"  top-1           {_rate(scores.top1)}   chance {scores.chance:.2%}, always {scores.constant_class!r} {scores.constant:.2%}",
        f"  top-5           {_rate(scores.top5)}   chance {scores.chance_top5:.2%}",
    ]
    if scores.mean_per_class is not None:
        lines.append(
            f"  mean per class  {_rate(scores.mean_per_class)}   chance {scores.chance:.2%}, always one class "
            f"{scores.constant_mean_per_class:.2%}"
        )
    guard = scores.guard
    lines.append(
        f"  {metrics.TITLES[scores.metric]} with shuffled class names: {guard.mean:.2%} (mean of {guard.shuffles}, "
        f"at most {guard.largest:.2%})"
    )
    lines += [f"  warning: {warning}" for warning in guard.warnings]
    lines += [f"  {group.name:14}  {_rate(group.top1)}   ({group.top1.n:,} examples)" for group in scores.subgroups]
    return "\n".join(lines)


def describe_retrieval(name: str, found: retrieval.Retrieval, pairs: int) -> str:
    """Recall both ways beside what a random order reaches."""
    lines = [f"{name}: {len(found.image_ranks):,} pictures, {len(found.texts):,} different captions, {pairs:,} pairs"]
    for title, recalls in (("picture → caption", found.image_to_text), ("caption → picture", found.text_to_image)):
        for one in recalls:
            lines.append(
                f"  {title}  R@{one.k:<2} {one.value:7.2%}  ({one.low:.2%} to {one.high:.2%})   chance {one.chance:.2%}"
            )
    return "\n".join(lines)


def _rate(rate: Rate) -> str:
    if rate.low is None or rate.high is None:
        return f"{rate.value:7.2%}  (no interval: classes too small or all alike)"
    return f"{rate.value:7.2%}  ({rate.low:.2%} to {rate.high:.2%})"


def _plain(value: zeroshot.Scores | retrieval.Recall) -> dict[str, Json]:
    plain: dict[str, Json] = dataclasses.asdict(value)
    return plain


def _entry(labelled: LabelledSet, figures: dict[str, Json]) -> dict[str, Json]:
    classes: Sequence[str] = labelled.classes
    return {"content_hash": labelled.content_hash, "classes_sha256": digest_json(list(classes)), **figures}


def _write(
    config: ZeroshotConfig,
    kind: str,
    model: ModelIdentity,
    entries: dict[str, dict[str, Json]],
) -> str:
    place = storage.join(config.out, f"{kind}.json")
    sets: dict[str, Json] = dict(entries)
    value: Json = {
        "kind": f"evaluation.{kind}",
        "version": FORMAT_VERSION,
        "config_digest": digest(config),
        "confidence": config.confidence,
        "model": {"sha256": model.sha256, "content_root": model.content_root},
        "sets": sets,
    }
    storage.write_atomic(place, canonical(value))
    return place

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

from evaluation import retrieval, zeroshot
from evaluation.config import ZeroshotConfig
from evaluation.features import Encoder, normalise
from evaluation.model import ModelEncoder
from evaluation.overlap.tables import PREDICTIONS_VERSION
from evaluation.prompts import load_templates
from evaluation.report.files import canonical, table_bytes
from pipeline.content.labelled import LabelledSet, open_set
from pipeline.contracts import storage
from pipeline.contracts.config import Json, digest, digest_json
from pipeline.contracts.errors import InputError

FORMAT_VERSION = 2  # 2: retrieval takes rows with the same picture for one


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """Which weights, trained on which corpus; goes into every file. `logit_scale` is what they multiply cosines by."""

    sha256: str
    content_root: str | None
    logit_scale: float | None = None


def run_zeroshot(config: ZeroshotConfig) -> str:
    """Score every set, write the files, return the lines for the terminal."""
    templates = load_templates(config.prompts)
    sets = [open_set(one) for one in config.sets]
    encoder, model = load_encoder(config)
    said, entries = [], {}
    for labelled in sets:
        scores, table = zeroshot.evaluate(
            encoder,
            labelled,
            templates,
            confidence=config.confidence,
            logit_scale=model.logit_scale,
            keep_scores=config.keep_scores,
        )
        write_predictions(config.out, labelled, table, model)
        entries[labelled.name] = _entry(labelled, _plain(scores))
        said.append(describe_scores(labelled.name, scores))
    prompts: dict[str, Json] = {"templates": list(templates), "sha256": digest_json(list(templates))}
    place = _write(config, "zeroshot", model, entries, prompts)
    return "\n".join([*said, f"\nfigures: {place}", f"predictions: {storage.join(config.out, 'predictions')}"])


def run_retrieval(config: ZeroshotConfig) -> str:
    """Image-text retrieval over every set, by the caption column."""
    sets = [open_set(one) for one in config.sets]
    for labelled in sets:
        if labelled.captions is None:
            raise InputError(f"set {labelled.name!r} ({labelled.path}) has no captions; name its column with `caption`")
    encoder, model = load_encoder(config)
    said, entries = [], {}
    for labelled in sets:
        found, used = retrieve_set(encoder, labelled, config.caption_template, confidence=config.confidence)
        value: dict[str, Json] = {
            "pairs": used,
            "pictures": len(found.image_ranks),
            "without_caption": len(labelled) - used,
            "captions": len(found.texts),
            "image_to_text": [_plain(one) for one in found.image_to_text],
            "text_to_image": [_plain(one) for one in found.text_to_image],
        }
        entries[labelled.name] = _entry(labelled, value)
        said.append(describe_retrieval(labelled.name, found, used))
    place = _write(config, "retrieval", model, entries, {"templates": [config.caption_template]})
    return "\n".join([*said, f"\nfigures: {place}"])


def retrieve_set(
    encoder: Encoder, labelled: LabelledSet, template: str = "{}", *, confidence: float = 0.95
) -> tuple[retrieval.Retrieval, int]:
    """Retrieval over the rows of a set that have a caption; also returns how many these are. Rows with the same bytes are one picture."""
    captions = labelled.captions or [None] * len(labelled)
    rows = [row for row, caption in enumerate(captions) if caption is not None and caption.strip()]
    if not rows:
        raise InputError(f"set {labelled.name!r} ({labelled.path}) has no row with a caption; check the caption column")
    texts = [str(captions[row]) for row in rows]
    names, _ = retrieval.distinct(texts)
    embedded = normalise(encoder.texts([template.replace("{}", name) for name in names]))
    digests = [labelled.sha256[row] for row in rows]
    first_places = np.unique(retrieval.distinct(digests)[1], return_index=True)[1]
    images = normalise(encoder.images(labelled, [rows[place] for place in first_places]))
    return retrieval.retrieve(images, embedded, digests, texts, confidence=confidence), len(rows)


def load_encoder(config: ZeroshotConfig) -> tuple[ModelEncoder, ModelIdentity]:
    """The exported model and who it is."""
    encoder = ModelEncoder(config.model, batch=config.batch, device=config.device)
    return encoder, ModelIdentity(encoder.card.weights_sha256, encoder.card.content_root, encoder.logit_scale)


def plan(config: ZeroshotConfig) -> str:
    """What a run would do, for `--check`."""
    templates = load_templates(config.prompts)
    names = ", ".join(one.name for one in config.sets)
    return f"model {config.model!r} on {names}; {len(templates)} prompts a class; figures in {config.out!r}"


def write_predictions(out: str, labelled: LabelledSet, table: pa.Table, model: ModelIdentity) -> str:
    """predictions/NAME.parquet, with the identities of the model and of the set in its metadata; returns its URI."""
    metadata = {
        "format_version": str(PREDICTIONS_VERSION),
        "set_content_hash": labelled.content_hash,
        "model_sha256": model.sha256,
        "content_root": model.content_root or "",
        "logit_scale": "" if model.logit_scale is None else repr(model.logit_scale),
    }
    place = storage.join(out, "predictions", f"{labelled.name}.parquet")
    storage.write_atomic(place, table_bytes(table.replace_schema_metadata(metadata)))
    return place


def describe_scores(name: str, scores: zeroshot.Scores) -> str:
    """The figures of one set beside what guessing reaches."""
    lines = [
        f"{name}: {scores.n:,} pictures, {scores.classes:,} classes"
        + (f" ({scores.classes_seen:,} with an example)" if scores.classes_seen < scores.classes else "")
        + (f", {scores.unlabelled:,} without a label left out" if scores.unlabelled else ""),
        f"  top-1           {_rate(scores.top1)}   chance {scores.chance:.2%}, always {scores.constant_class!r} {scores.constant:.2%}",
        f"  top-5           {_rate(scores.top5)}   chance {min(1, 5 * scores.chance):.2%}",
        f"  mean per class  {_rate(scores.mean_per_class)}   chance {scores.chance:.2%}, always one class "
        f"{scores.constant_mean_per_class:.2%}",
    ]
    lines += [f"  {group.name:14}  {_rate(group.top1)}   ({group.top1.n:,} pictures)" for group in scores.subgroups]
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


def _rate(rate: zeroshot.Rate) -> str:
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
    prompts: dict[str, Json],
) -> str:
    place = storage.join(config.out, f"{kind}.json")
    sets: dict[str, Json] = dict(entries)
    value: Json = {
        "kind": f"evaluation.{kind}",
        "version": FORMAT_VERSION,
        "config_digest": digest(config),
        "confidence": config.confidence,
        "model": {"sha256": model.sha256, "content_root": model.content_root},
        "prompts": prompts,
        "sets": sets,
    }
    storage.write_atomic(place, canonical(value))
    return place

"""`python -m evaluation predict IMAGE… --model MODEL --labels "a cat, a dog"`: use a model on pictures of your own.

Every label becomes a class of a zero-shot classifier, by the templates of `--prompts`; the probabilities are the softmax of the cosines
at the model's own logit scale. They say which of the given labels fits best, and sum to 1 also when none of them fits. With `--query
TEXT` the pictures are ordered by their cosine with one sentence instead. A folder stands for the pictures in it. Nothing is fetched: a
URL is refused.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from evaluation.calibration import probabilities
from evaluation.config import PromptConfig
from evaluation.features import normalise
from evaluation.model import ModelEncoder
from evaluation.prompts import load_templates
from evaluation.zeroshot import classifier
from pipeline.content.labelled import PICTURE_ENDINGS, LabelledSet, of_files
from pipeline.contracts import storage
from pipeline.contracts.config import Json
from pipeline.contracts.errors import InputError

_MOST_PICTURES = 1_000_000
_SHOWN = 5


def pictures(places: Sequence[str]) -> LabelledSet:
    """The pictures at these places, in their order, folders replaced by what is in them. Raises InputError for a URL or an empty
    folder."""
    files: list[str] = []
    for place in places:
        if re.match(r"(?!s3:)[A-Za-z][A-Za-z0-9+.-]*://", place):
            raise InputError(f"{place!r}: is a URL, and nothing is fetched; download the picture and name its file")
        if storage.is_folder(place):
            found = [uri for uri in storage.list_files(place, recursive=True) if uri.lower().endswith(PICTURE_ENDINGS)]
            if not found:
                raise InputError(f"{place}: has no picture ({', '.join(PICTURE_ENDINGS)}); name another folder")
            files += found
        else:
            files.append(place)
    twice = next((place for place, times in Counter(files).items() if times > 1), None)
    if twice is not None:
        raise InputError(f"{twice!r}: is named twice; name each picture once")
    if len(files) > _MOST_PICTURES:
        raise InputError(f"{len(files):,} pictures at once, the limit is {_MOST_PICTURES:,}; give fewer")
    return of_files("pictures", files)


def labels_of(given: str | None, file: str | None) -> list[str]:
    """The labels of `--labels` (between commas) or of `--labels-file` (one a line). Raises InputError: fewer than two, or one twice."""
    if (given is None) == (file is None):
        raise InputError("labels: give either --labels 'a, b, c' or --labels-file FILE (or --query TEXT)")
    if file is None:
        parts, place = (given or "").split(","), "--labels"
    else:
        parts, place = storage.read_text(file).splitlines(), file
    labels = [part.strip() for part in parts if part.strip()]
    if len(labels) < 2:
        raise InputError(f"{place}: {len(labels)} labels; a probability needs two or more to choose from")
    twice = next((label for label, times in Counter(labels).items() if times > 1), None)
    if twice is not None:
        raise InputError(f"{place}: {twice!r} comes twice; give each label once")
    return labels


def predict(encoder: ModelEncoder, given: LabelledSet, labels: Sequence[str], prompts: str) -> list[dict[str, float]]:
    """Per picture the probability of each label, largest first, of equals in the order of the labels."""
    weights = classifier(encoder, labels, load_templates(PromptConfig(file=prompts)))
    images = normalise(encoder.images(given, range(len(given))))
    shares = probabilities(images @ weights.T, encoder.logit_scale)
    order = np.argsort(-shares, axis=1, kind="stable")
    return [{labels[k]: float(row[k]) for k in ranked} for row, ranked in zip(shares, order, strict=True)]


def search(encoder: ModelEncoder, given: LabelledSet, query: str) -> list[tuple[str, float]]:
    """The pictures with their cosine to a sentence, nearest first, of equals in the order in which they were named."""
    if not query.strip():
        raise InputError("--query: is empty; write what the picture shows, for example 'a photo of a dog'")
    text = normalise(encoder.texts([query]))[0]
    cosines = normalise(encoder.images(given, range(len(given)))) @ text
    return [(given.ids[row], float(cosines[row])) for row in np.argsort(-cosines, kind="stable")]


def run(
    places: Sequence[str],
    model: str,
    *,
    labels: str | None = None,
    labels_file: str | None = None,
    query: str | None = None,
    prompts: str | None = None,
    as_json: bool = False,
) -> str:
    """The whole command; returns what it prints."""
    if query is not None and (labels is not None or labels_file is not None):
        raise InputError("--query: orders pictures by one sentence, --labels asks for probabilities; give one of them")
    if query is not None and prompts is not None:
        raise InputError(f"--prompts: {prompts!r} is for labels, --query is a sentence already; drop one of them")
    names = [] if query is not None else labels_of(labels, labels_file)
    given = pictures(places)
    encoder = ModelEncoder(model)
    about: dict[str, Json] = {"model": encoder.card.weights_sha256, "logit_scale": encoder.logit_scale}
    if query is not None:
        found = search(encoder, given, query)
        if as_json:
            nearest: list[Json] = [{"image": place, "cosine": cosine} for place, cosine in found]
            return json.dumps({**about, "query": query, "images": nearest}, ensure_ascii=False)
        return "\n".join(f"{cosine:+.4f}  {place}" for place, cosine in found)
    answers = predict(encoder, given, names, prompts or "general")
    if as_json:
        every: list[Json] = [
            {"image": place, "probabilities": dict(answer)} for place, answer in zip(given.ids, answers, strict=True)
        ]
        return json.dumps({**about, "images": every}, ensure_ascii=False)
    said = []
    for place, answer in zip(given.ids, answers, strict=True):
        said.append(place)
        said += [f"  {share:7.2%}  {label}" for label, share in list(answer.items())[:_SHOWN]]
    return "\n".join(said)

"""A labelled set: zero-shot classification."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from pipeline.content import labelled
from pipeline.content.labelled import LabelledSet
from pipeline.contracts.errors import InputError, StoreTrouble
from trainer.config import TrainConfig
from trainer.data.reader import patiently
from trainer.held import scores
from trainer.held.part import AT_ONCE, Part, Trouble, all_or_none, given, progress, threads, trouble_with


def open_labelled_set(config: TrainConfig, rank: int) -> Part:
    """Process 0 reads the set, which takes reading every picture, and the others are told."""
    wanted, limit = given(config).zeroshot, given(config).limit
    if wanted is None:
        raise ValueError("the configuration has no held.zeroshot")
    opened = all_or_none(lambda: patiently(lambda: labelled.open_set(wanted)) if rank == 0 else None)[0]
    if opened is None:
        raise ValueError("process 0 has opened no set")
    rows = np.flatnonzero(opened.labels != labelled.UNLABELLED)
    if not len(rows) or len(opened.classes) < 2:
        raise InputError(
            f"held.zeroshot: {wanted.path!r} has {len(rows)} labelled pictures of {len(opened.classes)} classes; zero-shot needs at least"
            " two classes: name the column with held.zeroshot.label"
        )
    if limit is not None and len(rows) > limit:  # by digest, because sets are often ordered by class
        rows = np.sort(np.array(sorted(rows.tolist(), key=lambda row: (opened.sha256[row], row))[:limit]))
    everyone = all_or_none(lambda: _check_pictures(config, opened, rows.tolist(), rank))
    if troubles := [trouble for part in everyone for trouble in part]:
        raise InputError(
            f"held.zeroshot: {wanted.path!r}: picture {opened.ids[troubles[0][0]]!r} cannot be opened ({troubles[0][1]}); mend the file or"
            " leave the row out with held.zeroshot.where"
        )
    labels = torch.from_numpy(opened.labels[rows].astype(np.int64))

    def read(places: Sequence[int]) -> Iterator[bytes]:
        return (picture.data for picture in pictures_of(opened, rows[list(places)].tolist()))

    def score(picture_features: Tensor, text_features: Tensor, rank: int, world: int) -> dict[str, float]:
        weights = scores.class_weights(text_features, len(opened.classes))
        return scores.zeroshot(picture_features, weights, labels.to(picture_features.device))

    texts = [template.replace("{}", name) for name in opened.class_texts for template in wanted.templates]
    classes = len(opened.classes)
    chance = {"zeroshot_top1": 1 / classes, "zeroshot_top5": min(1.0, 5 / classes)}
    chance["zeroshot_mean_per_class"] = chance["zeroshot_top1"]
    marks = [(opened.sha256[row], place) for place, row in enumerate(rows.tolist())]
    return Part("held.zeroshot", wanted.path, len(rows), read, texts, score, chance, marks)


def _check_pictures(config: TrainConfig, opened: LabelledSet, rows: list[int], rank: int) -> list[Trouble]:
    """Decode each process's share once; the first picture that cannot be."""
    mine = np.array_split(np.array(rows), torch.distributed.get_world_size())[rank].tolist()
    pictures = pictures_of(opened, mine)
    with (
        ThreadPoolExecutor(threads(config)) as pool,
        progress(len(mine), "pictures", "checking held.zeroshot") as done,
    ):
        while batch := list(itertools.islice(pictures, AT_ONCE)):
            said = pool.map(lambda picture: trouble_with(picture.data, config), batch)
            for picture, trouble in zip(batch, said, strict=True):
                if trouble is not None:
                    return [(picture.row, trouble)]
            done(len(batch))
    return []


def pictures_of(opened: LabelledSet, rows: list[int]) -> Iterator[labelled.Picture]:
    """The pictures of these rows; where the store does not answer for a while, from there on again."""
    coming = opened.pictures(rows)

    def following() -> labelled.Picture:
        nonlocal coming
        try:
            return next(coming)
        except StoreTrouble:
            coming = opened.pictures(rows[done:])
            raise

    done = 0
    while done < len(rows):
        yield patiently(following)
        done += 1

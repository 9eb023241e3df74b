"""From a configuration to a labelled set, whatever the layout: `open_set` is the door of every command.

A Parquet file or a folder with one folder per class is opened by `pipeline.content.labelled`; webdataset tars and the archives that the
datasets' authors publish are read here, in place. Where the configuration names a dataset of the catalogue, the set must have its number of
classes and one of the sizes that are known of the split.
"""

from __future__ import annotations

from collections.abc import Callable

from evaluation.config import EvaluationSet
from evaluation.datasets import arrays, folders, lists
from evaluation.datasets.bundle import Bundle, open_bundle
from evaluation.datasets.catalogue import Dataset, check_size, known
from evaluation.datasets.found import Found
from evaluation.datasets.webdataset import is_webdataset, webdataset
from pipeline.content import labelled
from pipeline.content.labelled import LabelledSet
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError

READERS: dict[str, Callable[[Bundle, str], Found]] = {
    "caltech101": folders.class_folders,
    "cifar10": arrays.cifar10,
    "cifar100": arrays.cifar100,
    "clevr_counts": lists.clevr_counts,
    "coco": lists.coco,
    "country211": folders.class_folders,
    "dtd": lists.dtd,
    "eurosat": folders.class_folders,
    "fer2013": arrays.fer2013,
    "fgvc_aircraft": lists.fgvc_aircraft,
    "flickr30k": lists.flickr30k,
    "flowers102": lists.flowers102,
    "food101": lists.food101,
    "gtsrb": lists.gtsrb,
    "hateful_memes": lists.hateful_memes,
    "imagenet": lists.imagenet,
    "imagenet_a": folders.whole,
    "imagenet_r": folders.whole,
    "imagenet_sketch": folders.whole,
    "imagenetv2": folders.numbered_folders,
    "kinetics700": folders.video_folders,
    "mnist": arrays.mnist,
    "oxford_pets": lists.oxford_pets,
    "rendered_sst2": folders.class_folders,
    "resisc45": folders.class_folders,
    "stanford_cars": lists.stanford_cars,
    "stl10": arrays.stl10,
    "sun397": lists.sun397,
    "svhn": arrays.svhn,
    "ucf101": lists.ucf101,
    "voc2007": lists.voc2007,
}
"""Dataset → reader of the layout that its authors publish. The others (Birdsnap, KITTI Distance, PatchCamelyon, ObjectNet and the two
sets of video frames) are read as Parquet, class folders or webdataset.
"""
_COLUMNS = ("label", "id", "caption", "subgroup", "group", "where")
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


def open_set(config: EvaluationSet) -> LabelledSet:
    """Open what `config` names. Raises InputError for what `labelled.open_set` says, a split that is not there, an archive that is
    damaged or has another layout, and another number of classes or examples than the dataset's.
    """
    if config.dataset is None:
        return _opened(config, None)
    dataset = known(config.dataset)
    opened = _opened(config, dataset)
    check_size(
        dataset,
        config.split,
        place=f"set {config.name!r} ({config.path})",
        examples=_examples(dataset, opened),
        classes=len(opened.classes),
        accept=config.other_counts,
    )
    return opened


def _opened(config: EvaluationSet, dataset: Dataset | None) -> LabelledSet:
    reader = None if dataset is None else READERS.get(dataset.name)
    is_folder = storage.is_folder(config.path)
    if not is_folder and config.path.endswith(".parquet"):
        return labelled.open_set(config)
    packed = config.path.lower().endswith(_ARCHIVES) or (
        is_folder and any(uri.lower().endswith(_ARCHIVES) for uri in storage.list_files(config.path))
    )
    if config.layout == "folders" or (reader is None and not packed):
        return labelled.open_set(config)
    bundle = open_bundle(config.path)
    if is_webdataset(bundle):
        reader = webdataset
    elif reader is None:
        raise InputError(
            f"set {config.name!r} ({config.path}): no webdataset tar (a member NAME.cls beside NAME.jpg), and no `dataset` whose archives "
            f"are read; known are {', '.join(READERS)}"
        )
    column = next((key for key in _COLUMNS if getattr(config, key)), None)
    if column is not None:
        raise InputError(
            f"set {config.name!r} ({config.path}): {column} {getattr(config, column)!r} names a column, and an archive has none; "
            "drop the key"
        )
    found = reader(bundle, config.split)
    return labelled.assemble(
        config.model_copy(update={"absent_classes": True}) if config.other_counts else config,
        found.ids,
        found.labels,
        found.pictures,
        classes=found.classes,
        captions=found.captions,
        groups=found.groups,
        marks=found.marks,
    )


def _examples(dataset: Dataset, opened: LabelledSet) -> int:
    """What the catalogue counts: videos of frames, different pictures of a retrieval set, else rows."""
    if dataset.metric == "recall":
        return len(set(opened.sha256))
    return len(opened) if opened.groups is None else len(set(opened.groups))

"""Datasets that come with lists: which picture is in which split, and what it shows. One function a dataset, in the layout of its
publisher.
"""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np

from evaluation.datasets.bundle import Bundle, Member, Members
from evaluation.datasets.folders import class_folders, listed, parent, pictures_under
from evaluation.datasets.found import Found, is_number, refuse_split
from evaluation.datasets.matlab import read_matlab
from pipeline.content.labelled import IGNORED
from pipeline.contracts.errors import InputError

VOC_CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
_MARKS = {"1": 1, "-1": 0, "0": IGNORED}
_MOST_SCENES = 1 << 30  # bytes of CLEVR's JSON of one split (train has 0.4 GB), or of COCO's captions
CAPTIONS = 5
"""Captions of a picture that retrieval is scored on."""


# ---- Oxford: pets, flowers, textures, aircraft


def oxford_pets(bundle: Bundle, split: str) -> Found:
    """`annotations/trainval.txt` and `test.txt`: picture, class 1 to 37, species, breed."""
    if split not in ("trainval", "test"):
        refuse_split(bundle, split, ("trainval", "test"))
    rows = [line.split() for line in bundle.lines(f"annotations/{split}.txt")]
    bad = next((row for row in rows if len(row) < 2 or not is_number(row[1])), None)
    if bad is not None:
        raise InputError(
            f"{bundle.path}: 'annotations/{split}.txt' has the line {' '.join(bad)!r}, expected NAME CLASS …; restore it"
        )
    number = {row[0].rpartition("_")[0]: int(row[1]) for row in rows}
    classes = sorted(number, key=lambda name: number[name])
    if [number[name] for name in classes] != list(range(1, len(classes) + 1)):
        raise InputError(f"{bundle.path}: 'annotations/{split}.txt' does not number its classes from 1 on; restore it")
    named = [(f"{row[0]}.jpg", row[0].rpartition("_")[0]) for row in rows]
    return listed(bundle, pictures_under(bundle, "images"), named, classes)


def flowers102(bundle: Bundle, split: str) -> Found:
    """`imagelabels.mat` and `setid.mat`; `train`, `val`, `trainval`, `test`."""
    keys = {"train": ["trnid"], "val": ["valid"], "trainval": ["trnid", "valid"], "test": ["tstid"]}
    wanted = keys.get(split) or refuse_split(bundle, split, keys)
    numbers = [number for key in wanted for number in _integers(bundle, "setid.mat", key)]
    labels = _integers(bundle, "imagelabels.mat", "labels")
    if not labels or not all(0 < number <= len(labels) for number in numbers):
        raise InputError(
            f"{bundle.path}: 'setid.mat' names pictures beyond the {len(labels):,} labels of 'imagelabels.mat'; restore them"
        )
    rows = [(f"image_{number:05d}.jpg", str(labels[number - 1])) for number in numbers]
    return listed(bundle, pictures_under(bundle, "jpg"), rows, [str(label) for label in range(1, 103)])


def dtd(bundle: Bundle, split: str) -> Found:
    """`labels/train1.txt` and so on (ten partitions, the first where none is said); `trainval` is both, as the paper trains."""
    name, number = (split.rstrip("0123456789"), split[len(split.rstrip("0123456789")) :] or "1")
    if name not in ("train", "val", "trainval", "test"):
        refuse_split(bundle, split, ("train", "val", "trainval", "test", "each with 1 to 10 behind it"))
    files = ("train", "val") if name == "trainval" else (name,)
    rows = [(line, parent(line)) for file in files for line in bundle.lines(f"labels/{file}{number}.txt")]
    return listed(bundle, pictures_under(bundle, "images"), rows)


def fgvc_aircraft(bundle: Bundle, split: str) -> Found:
    """`images_variant_test.txt`: picture and variant; classes in the order of `variants.txt`."""
    if split not in ("train", "val", "trainval", "test"):
        refuse_split(bundle, split, ("train", "val", "trainval", "test"))
    rows = [line.partition(" ") for line in bundle.lines(f"images_variant_{split}.txt")]
    named = [(f"{name}.jpg", variant.strip()) for name, _, variant in rows]
    return listed(bundle, pictures_under(bundle, "data/images", "images"), named, bundle.lines("variants.txt"))


# ---- foods, scenes, cars, signs


def food101(bundle: Bundle, split: str) -> Found:
    """`meta/test.txt`: class/number; classes in the order of `meta/classes.txt`."""
    if split not in ("train", "test"):
        refuse_split(bundle, split, ("train", "test"))
    rows = [(f"{line}.jpg", parent(line)) for line in bundle.lines(f"meta/{split}.txt")]
    return listed(bundle, pictures_under(bundle, "images"), rows, bundle.lines("meta/classes.txt"))


def sun397(bundle: Bundle, split: str) -> Found:
    """`Testing_01.txt` and `Training_01.txt` of the partitions (the first where no number is said); `all` needs no list."""
    pictures = pictures_under(bundle, "SUN397") or {member.name: member for member in bundle.members}
    classes = [line.strip("/") for line in bundle.lines("ClassName.txt")]
    if split == "all":
        names = [name for name in pictures if name.lower().endswith(".jpg")]
    else:
        file = {"train": "Training", "test": "Testing"}.get(split.rstrip("0123456789"))
        number = split[len(split.rstrip("0123456789")) :] or "1"
        if file is None:
            refuse_split(bundle, split, ("train", "test", "each with 1 to 10 behind it", "all"))
        names = [line.strip("/") for line in bundle.lines(f"{file}_{int(number):02d}.txt")]
    return listed(bundle, pictures, [(name, name.rpartition("/")[0]) for name in names], classes)


def stanford_cars(bundle: Bundle, split: str) -> Found:
    """`cars_test_annos_withlabels.mat` (the test labels are a file of their own) or `cars_train_annos.mat`; names in `cars_meta.mat`."""
    files = {"train": "cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    name = files.get(split) or refuse_split(bundle, split, files)
    names = [str(value) for value in _list(bundle, "cars_meta.mat", "class_names")]
    rows = []
    for entry in _list(bundle, name, "annotations"):
        label, file = _number(entry, "class"), entry.get("fname") if isinstance(entry, dict) else None
        if label is None or not isinstance(file, str):
            raise InputError(f"{bundle.path}: {name!r} has no fields class and fname; take the file with labels")
        if not 0 < label <= len(names):
            raise InputError(f"{bundle.path}: {name!r}: class {label} of {len(names)}; restore it")
        rows.append((file, str(label)))
    found = listed(
        bundle, pictures_under(bundle, f"cars_{split}"), rows, [str(number + 1) for number in range(len(names))]
    )
    return Found(found.ids, found.labels, names, found.pictures)


def gtsrb(bundle: Bundle, split: str) -> Found:
    """Training folders `00000` to `00042`; the test's labels are in `GT-final_test.csv`, which is an archive of its own."""
    classes = [f"{number:05d}" for number in range(43)]
    if split == "train":
        pictures = pictures_under(bundle, "Final_Training/Images", "Training")
        return listed(bundle, pictures, [(name, parent(name)) for name in pictures], classes)
    if split != "test":
        refuse_split(bundle, split, ("train", "test"))
    table = list(csv.DictReader(bundle.lines("GT-final_test.csv"), delimiter=";", skipinitialspace=True))
    if not all(is_number(row.get("ClassId") or "") and row.get("Filename") for row in table):
        raise InputError(
            f"{bundle.path}: 'GT-final_test.csv' has no columns Filename and ClassId; take the one with labels"
        )
    rows = [(row["Filename"], f"{int(row['ClassId']):05d}") for row in table]
    return listed(bundle, pictures_under(bundle, "Final_Test/Images"), rows, classes)


# ---- ImageNet


def imagenet(bundle: Bundle, split: str) -> Found:
    """Classes are the synsets in ascending order. `train`: a folder a synset. `val`: the same, or the flat pictures with the development
    kit (`meta.mat`, `ILSVRC2012_validation_ground_truth.txt`) or with `LOC_val_solution.csv`.
    """
    if split == "train":
        return class_folders(bundle, "train" if bundle.under("train") else "all")
    if split != "val":
        refuse_split(bundle, split, ("train", "val"))
    pictures = {
        member.name.rpartition("/")[2]: member
        for member in bundle.members
        if "ILSVRC2012_val_" in member.name.rpartition("/")[2]
    }
    if bundle.find("LOC_val_solution.csv") is not None:
        table = [line.split(",", 1) for line in bundle.lines("LOC_val_solution.csv")[1:]]
        answers = [(f"{row[0]}.JPEG", row[-1].split()[0] if row[-1].split() else "") for row in table]
        return listed(bundle, pictures, answers)
    if bundle.find("ILSVRC2012_validation_ground_truth.txt") is None:
        return class_folders(bundle, "val" if bundle.under("val") else "all")
    synset: dict[str, str] = {}
    for entry in _list(bundle, "meta.mat", "synsets"):
        number, children = _number(entry, "ILSVRC2012_ID"), _number(entry, "num_children")
        if number is None or children is None or not isinstance(entry.get("WNID"), str):
            raise InputError(
                f"{bundle.path}: 'meta.mat' has no fields ILSVRC2012_ID, WNID, num_children; take that of the development kit of 2012"
            )
        if not children:
            synset[str(number)] = entry["WNID"]
    truth = bundle.lines("ILSVRC2012_validation_ground_truth.txt")
    answers = [
        (f"ILSVRC2012_val_{place:08d}.JPEG", synset.get(word, word)) for place, word in enumerate(truth, start=1)
    ]
    return listed(bundle, pictures, answers, sorted(synset.values()))


# ---- several labels, memes, counts, videos


def voc2007(bundle: Bundle, split: str) -> Found:
    """`ImageSets/Main/CLASS_test.txt`: picture and 1, -1, or 0 where all of the class is difficult, which does not count either way."""
    marks: dict[str, list[int]] = {}
    for number, name in enumerate(VOC_CLASSES):
        for line in bundle.lines(f"ImageSets/Main/{name}_{split}.txt"):
            words = line.split()
            if len(words) != 2 or words[1] not in _MARKS:
                raise InputError(
                    f"{bundle.path}: '{name}_{split}.txt' has the line {line!r}, expected NAME and 1, 0 or -1; restore it"
                )
            marks.setdefault(words[0], [0] * len(VOC_CLASSES))[number] = _MARKS[words[1]]
    rows = [(f"{name}.jpg", "") for name in marks]
    found = listed(bundle, pictures_under(bundle, "JPEGImages"), rows, [""])
    table = np.array([marks[name.removesuffix(".jpg")] for name in found.ids], np.int8)
    unlabelled: list[int | None] = [None] * len(found.ids)
    return Found(found.ids, unlabelled, VOC_CLASSES, found.pictures, marks=table)


def hateful_memes(bundle: Bundle, split: str) -> Found:
    """`dev.jsonl` or `dev_seen.jsonl` and so on: img, label 0 or 1."""
    rows = []
    for line in bundle.lines(f"{split}.jsonl", f"{split}_seen.jsonl"):
        entry = _json(bundle, f"{split}.jsonl", line)
        if not isinstance(entry, dict) or entry.get("label") not in (0, 1) or not isinstance(entry.get("img"), str):
            raise InputError(
                f"{bundle.path}: '{split}.jsonl' has the line {line[:80]!r} without img or label 0 or 1; take a labelled split"
            )
        rows.append((entry["img"].removeprefix("img/"), str(int(entry["label"]))))
    found = listed(bundle, pictures_under(bundle, "img"), rows, ["0", "1"])
    return Found(found.ids, found.labels, ["not hateful", "hateful"], found.pictures)


def clevr_counts(bundle: Bundle, split: str) -> Found:
    """`scenes/CLEVR_val_scenes.json`: the class is the number of objects, 3 to 10."""
    if split not in ("train", "val"):
        refuse_split(bundle, split, ("train", "val"))
    name = f"scenes/CLEVR_{split}_scenes.json"
    value = _json(bundle, name, bundle.data(name, limit=_MOST_SCENES).decode("utf-8", "replace"))
    try:
        rows = [(str(scene["image_filename"]), str(len(scene["objects"]))) for scene in value["scenes"]]
    except (KeyError, TypeError):
        raise InputError(
            f"{bundle.path}: {name!r} lists no scenes with image_filename and objects; restore it"
        ) from None
    return listed(bundle, pictures_under(bundle, f"images/{split}"), rows, [str(count) for count in range(3, 11)])


def ucf101(bundle: Bundle, split: str) -> Found:
    """`testlist01.txt` (`test1` to `test3`, `train1` to `train3`; the first where no number is said) and folders of frames named like the
    videos.
    """
    name, number = split.rstrip("0123456789"), split[len(split.rstrip("0123456789")) :] or "1"
    if name not in ("train", "test"):
        refuse_split(bundle, split, ("train", "test", "each with 1 to 3 behind it"))
    classes = [line.split()[-1] for line in bundle.lines("classInd.txt")]
    videos = {}
    for line in bundle.lines(f"{name}list{int(number):02d}.txt"):
        label, _, file = line.split()[0].partition("/")
        videos[file.removesuffix(".avi")] = label
    frames: dict[str, Member] = {}
    for member in bundle.members:
        video, _, frame = member.name.rpartition("/")
        if video.rpartition("/")[2] in videos:
            frames[f"{video.rpartition('/')[2]}/{frame}"] = member
    groups = {frame: parent(frame) for frame in frames}
    absent = set(videos) - set(groups.values())
    if absent:
        raise InputError(
            f"{bundle.path}: {len(absent):,} of {len(videos):,} videos have no folder of frames, the first is {min(absent)!r}"
        )
    return listed(bundle, frames, [(frame, videos[groups[frame]]) for frame in frames], classes, groups=groups)


# ---- retrieval


def flickr30k(bundle: Bundle, split: str) -> Found:
    """`dataset_flickr30k.json` of Karpathy's splits, and the pictures."""
    return _karpathy(bundle, split, "dataset_flickr30k.json")


def coco(bundle: Bundle, split: str) -> Found:
    """`dataset_coco.json` of Karpathy's splits, and the pictures of 2014."""
    return _karpathy(bundle, split, "dataset_coco.json")


def _karpathy(bundle: Bundle, split: str, name: str) -> Found:
    """A row for each of the first five captions of a picture (a few of COCO have more, which are left out everywhere)."""
    value = _json(bundle, name, bundle.data(name, limit=_MOST_SCENES).decode("utf-8", "replace"))
    try:
        captions = {
            str(entry["filename"]): [str(sentence["raw"]) for sentence in entry["sentences"][:CAPTIONS]]
            for entry in value["images"]
            if entry["split"] == split
        }
    except (KeyError, TypeError):
        raise InputError(
            f"{bundle.path}: {name!r} lists no images with filename, split and sentences; restore it"
        ) from None
    if not captions:
        refuse_split(bundle, split, ("train", "val", "test"))
    everything = {member.name.rpartition("/")[2]: member for member in bundle.members}
    found = listed(bundle, everything, [(file, "") for file in captions], [""])
    rows = [(file, number) for file in found.ids for number in range(len(captions[file]))]
    return Found(
        ids=[f"{file}#{number}" for file, number in rows],
        labels=[None] * len(rows),
        classes=[],
        pictures=Members([everything[file] for file, _ in rows]),
        captions=[captions[file][number] for file, number in rows],
    )


# ---- tables


def _variable(bundle: Bundle, name: str, key: str) -> Any:
    table = read_matlab(bundle.data(name), f"{bundle.path}: {name!r}")
    if key not in table:
        raise InputError(f"{bundle.path}: {name!r} has no variable {key!r}, it has {', '.join(table)}; restore it")
    return table[key]


def _list(bundle: Bundle, name: str, key: str) -> list[Any]:
    """A variable that is a cell array or an array of structs."""
    values = _variable(bundle, name, key)
    if not isinstance(values, list):
        raise InputError(f"{bundle.path}: {key!r} of {name!r} is no list; restore it")
    return values


def _integers(bundle: Bundle, name: str, key: str) -> list[int]:
    values = _variable(bundle, name, key)
    if not isinstance(values, np.ndarray) or not np.isfinite(values).all():
        raise InputError(f"{bundle.path}: {key!r} of {name!r} is no list of numbers; restore it")
    return [int(value) for value in values.reshape(-1)]


def _number(entry: Any, key: str) -> int | None:
    """A field of a struct that is one number."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return int(value) if isinstance(value, np.ndarray) and value.size == 1 and np.isfinite(value).all() else None


def _json(bundle: Bundle, name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{bundle.path}: {name!r} is not valid JSON ({text[:60]!r} …); restore it") from None

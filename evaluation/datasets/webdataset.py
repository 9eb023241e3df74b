"""Labelled sets in webdataset tars: the members of a sample share their name up to the first dot; `.cls` is the class number.

`classnames.txt` beside the tars, one a line, names the classes (as CLIP_benchmark publishes its sets); `.txt` is a caption.
"""

from __future__ import annotations

from collections import Counter

from evaluation.datasets.bundle import Bundle, Member, Members, small_texts
from evaluation.datasets.found import Found, is_number, refuse_split
from pipeline.content.labelled import PICTURE_ENDINGS
from pipeline.contracts import storage
from pipeline.contracts.errors import InputError


def is_webdataset(bundle: Bundle) -> bool:
    """Whether a tar holds a `.cls`."""
    return any(member.kind in ("tar", "tar.gz") and member.name.endswith(".cls") for member in bundle.members)


def webdataset(bundle: Bundle, split: str) -> Found:
    """All samples that have a picture, tar by tar; a split is the tars under a folder of its name.

    It is all tars where it is `all`, and where none lies in a folder: they are then the split that they are said to be. Raises InputError
    where some lie in folders, and none in one of this name.
    """
    tars = [member for member in bundle.members if member.kind in ("tar", "tar.gz")]
    folders = {member.container: _folders(bundle, member.container) for member in tars}
    inside = [member for member in tars if split in folders[member.container]]
    if not inside:
        others = sorted({folder for each in folders.values() for folder in each})
        if others and split != "all":
            refuse_split(bundle, split, ("all (every tar)", *others))
        inside = tars
    samples: dict[tuple[str, str], dict[str, Member]] = {}
    for member in sorted(inside, key=lambda member: (member.container, member.start)):
        folder, _, last = member.name.rpartition("/")
        stem, _, suffix = last.partition(".")
        samples.setdefault((member.container, f"{folder}/{stem}" if folder else stem), {})[suffix.lower()] = member
    keys, pictures, classes, captions = [], [], [], []
    for key, sample in samples.items():
        picture = next((member for suffix, member in sample.items() if f".{suffix}" in PICTURE_ENDINGS), None)
        if picture is not None:
            keys.append(key)
            pictures.append(picture)
            classes.append(sample.get("cls"))
            captions.append(sample.get("txt"))
    if not keys:
        raise InputError(f"{bundle.path}: no sample has a picture; expected NAME.jpg and NAME.cls in the tars")
    labels = [_label(bundle, key, text) for key, text in zip(keys, small_texts(classes), strict=True)]
    once = Counter(name for _, name in keys).most_common(1)[0][1] == 1
    ids = [name if once else f"{storage.name(tar)}/{name}" for tar, name in keys]
    names = bundle.lines("classnames.txt") if bundle.find("classnames.txt") is not None else []
    texts = small_texts(captions) if any(captions) else None
    return Found(ids, labels, names, Members(pictures), captions=texts)


def _folders(bundle: Bundle, container: str) -> list[str]:
    """The names of the folders between the bundle and a tar."""
    return container.removeprefix(bundle.path).strip("/").split("/")[:-1]


def _label(bundle: Bundle, key: tuple[str, str], text: str | None) -> int | None:
    if text is None:
        return None
    if not is_number(text.strip()):
        raise InputError(f"{bundle.path}: '{key[1]}.cls' holds {text[:40]!r}, no class number; mend the tar")
    return int(text)

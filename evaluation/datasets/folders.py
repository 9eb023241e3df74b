"""Datasets whose labels are the names of folders, packed or not: one folder a class, or one folder a class with a folder of frames a
video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.datasets.bundle import Bundle, Member, Members
from evaluation.datasets.found import Found, is_number, refuse_split
from pipeline.content.labelled import PICTURE_ENDINGS
from pipeline.contracts.errors import InputError


def class_folders(bundle: Bundle, split: str) -> Found:
    """The whole dataset (split `all`), or what lies under a folder named like the split; classes in the order of their names (ASCII)."""
    pictures = _pictures(bundle, split)
    return listed(bundle, pictures, [(name, parent(name)) for name in pictures])


def numbered_folders(bundle: Bundle, split: str) -> Found:
    """Folders `0` to `999`, which are the class numbers (ImageNetV2)."""
    pictures = _pictures(bundle, "all" if split == "test" else split)
    names = {parent(name) for name in pictures}
    if not all(is_number(name) and len(name) < 5 for name in names):
        raise InputError(
            f"{bundle.path}: expected folders whose names are class numbers, there is {min(names, key=is_number)!r}"
        )
    classes = [str(number) for number in range(max(map(int, names)) + 1)]
    rows = [(name, str(int(parent(name)))) for name in pictures]
    return listed(bundle, pictures, rows, classes)


def whole(bundle: Bundle, split: str) -> Found:
    """Class folders of a dataset that has one split only."""
    return class_folders(bundle, "all" if split == "test" else split)


def video_folders(bundle: Bundle, split: str) -> Found:
    """`CLASS/VIDEO/FRAME.jpg`; every frame is a row, and its video is its group."""
    pictures = _pictures(bundle, split)
    shallow = next((name for name in pictures if name.count("/") < 2), None)
    if shallow is not None:
        raise InputError(f"{bundle.path}: {shallow!r} lies in no folder of a video; expected CLASS/VIDEO/FRAME.jpg")
    videos = {name: name.rpartition("/")[0] for name in pictures}
    return listed(bundle, pictures, [(name, parent(videos[name])) for name in pictures], groups=videos)


def listed(
    bundle: Bundle,
    pictures: Mapping[str, Member],
    rows: Sequence[tuple[str, str]],
    classes: Sequence[str] | None = None,
    *,
    groups: Mapping[str, str] | None = None,
) -> Found:
    """A split from its rows (name of a picture, name of its class). Names become ids; without `classes` these are the names, sorted.

    Rows are sorted by name, but where a picture is in a tar.gz by their place in it. Raises InputError for a picture that is not there
    and a class that is not in the list.
    """
    order = _in_order(bundle, pictures, [name for name, _ in rows])
    known = list(classes if classes is not None else sorted({label for _, label in rows}))
    number = {label: place for place, label in enumerate(known)}
    stranger = next(((name, label) for name, label in rows if label not in number), None)
    if stranger is not None:
        raise InputError(
            f"{bundle.path}: {stranger[0]!r} is of class {stranger[1]!r}, which is not in the class list of {len(known)}"
        )
    names = [rows[place][0] for place in order]
    return Found(
        ids=names,
        labels=[number[rows[place][1]] for place in order],
        classes=known,
        pictures=Members([pictures[name] for name in names]),
        groups=None if groups is None else [groups[name] for name in names],
    )


def _in_order(bundle: Bundle, pictures: Mapping[str, Member], names: Sequence[str]) -> list[int]:
    missing = [name for name in names if name not in pictures]
    if missing:
        raise InputError(
            f"{bundle.path}: {len(missing):,} of {len(names):,} listed pictures are not there, the first is {missing[0]!r}; add the "
            "archive that holds them to the folder"
        )
    if not names:
        raise InputError(
            f"{bundle.path}: no picture ({', '.join(PICTURE_ENDINGS)}) of this split is there; check the path and `split`"
        )
    places = range(len(names))
    if any(pictures[name].kind == "tar.gz" for name in names):
        return sorted(places, key=lambda place: (pictures[names[place]].container, pictures[names[place]].start))
    return sorted(places, key=lambda place: names[place])


def _pictures(bundle: Bundle, split: str) -> dict[str, Member]:
    """The pictures of a split by their path below its folder, or below what all of them share."""
    if split != "all":
        found = pictures_under(bundle, split)
        if not found:
            refuse_split(bundle, split, ("all (the whole dataset)", "a folder with pictures in it"))
        return found
    found = {member.name: member for member in bundle.members if member.name.lower().endswith(PICTURE_ENDINGS)}
    while found and all("/" in name for name in found) and len({name.split("/")[0] for name in found}) == 1:
        inner = {name.split("/", 1)[1]: member for name, member in found.items()}
        if not all("/" in name for name in inner):
            break
        found = inner
    return found


def pictures_under(bundle: Bundle, *folders: str) -> dict[str, Member]:
    """The pictures below the first of these folders that has some."""
    for folder in folders:
        found = {
            name: member for name, member in bundle.under(folder).items() if name.lower().endswith(PICTURE_ENDINGS)
        }
        if found:
            return found
    return {}


def parent(name: str) -> str:
    """The name of the folder that a file is in."""
    return name.rpartition("/")[0].rpartition("/")[2]

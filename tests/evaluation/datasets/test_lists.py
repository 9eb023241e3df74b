"""Datasets with lists and folders, in their publishers' layouts: each picture comes back under the label that was planted."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.content.labelled import LabelledSet
from pipeline.contracts.errors import InputError
from tests.evaluation.datasets.packing import MANNERS, encoded, matlab, opened, pack, pixels, seen

Files = dict[str, bytes]


def answers(found: LabelledSet) -> dict[str, tuple[str, bytes]]:
    """Id → class name and bytes."""
    return {one.id: (found.classes[found.labels[one.row]], one.data) for one in found.pictures()}


def lines(*rows: str) -> bytes:
    return "\n".join([*rows, ""]).encode()


def pets() -> Files:
    """Class 1 to 37 in the second column; file names with and without an underscore in the breed."""
    return {
        "annotations/test.txt": lines("Abyssinian_201 1 1 1", "american_bulldog_10 2 2 1", "Abyssinian_3 1 1 1"),
        "annotations/trainval.txt": lines("american_bulldog_7 2 2 1", "Abyssinian_7 1 1 1"),
        "annotations/._test.txt": b"what macOS leaves",
        **{
            f"images/{name}.jpg": encoded(k)
            for k, name in enumerate(("Abyssinian_201", "american_bulldog_10", "Abyssinian_3"))
        },
        **{f"images/{name}.jpg": encoded(k + 10) for k, name in enumerate(("american_bulldog_7", "Abyssinian_7"))},
    }


@pytest.mark.parametrize("manner", MANNERS)
def test_pets_however_packed(tmp_path: Path, manner: str) -> None:
    found = opened(pack(pets(), tmp_path / "pets", manner), "oxford_pets")
    assert found.classes == ["Abyssinian", "american_bulldog"]
    assert found.class_texts == ["Abyssinian", "american bulldog"]
    assert answers(found) == {
        "Abyssinian_201.jpg": ("Abyssinian", encoded(0)),
        "american_bulldog_10.jpg": ("american_bulldog", encoded(1)),
        "Abyssinian_3.jpg": ("Abyssinian", encoded(2)),
    }
    assert sorted(opened(pack(pets(), tmp_path / "again", manner), "oxford_pets", "trainval").labels.tolist()) == [0, 1]


def test_the_hash_does_not_depend_on_the_packing(tmp_path: Path) -> None:
    """Folder, tar and zip have the same rows in the same order; a tar.gz keeps its own order, with the same pictures."""
    found = {manner: opened(pack(pets(), tmp_path / manner / "pets", manner), "oxford_pets") for manner in MANNERS}
    assert len({found[manner].content_hash for manner in ("folder", "tar", "zip")}) == 1
    assert sorted(found["tar.gz"].sha256) == sorted(found["zip"].sha256)
    # Some rows, out of the middle, from each.
    for one in found.values():
        assert [picture.data for picture in one.pictures([0, 2])] == [picture.data for picture in one.pictures()][::2]


def test_archives_side_by_side(tmp_path: Path) -> None:
    """As they are downloaded: pictures and annotations in an archive each, in one folder."""
    files = pets()
    folder = tmp_path / "pets"
    pack({name: data for name, data in files.items() if name.startswith("images")}, folder / "images", "tar.gz")
    pack({name: data for name, data in files.items() if name.startswith("annot")}, folder / "annotations", "tar")
    assert sorted(opened(folder, "oxford_pets").labels.tolist()) == [0, 0, 1]


def food() -> Files:
    return {
        "food-101/meta/classes.txt": lines("apple_pie", "baby_back_ribs", "waffles"),
        "food-101/meta/test.txt": lines("waffles/12", "apple_pie/7", "baby_back_ribs/1"),
        "food-101/images/waffles/12.jpg": encoded(1),
        "food-101/images/apple_pie/7.jpg": encoded(2),
        "food-101/images/baby_back_ribs/1.jpg": encoded(3),
        "food-101/images/waffles/99.jpg": encoded(4),
    }


def dtd() -> Files:
    return {
        "dtd/labels/test1.txt": lines("banded/banded_1.jpg", "zigzagged/zigzagged_2.jpg"),
        "dtd/labels/train1.txt": lines("banded/banded_2.jpg"),
        "dtd/labels/val1.txt": lines("zigzagged/zigzagged_1.jpg"),
        **{
            f"dtd/images/{name}/{name}_{k}.jpg": encoded(k + len(name))
            for name in ("banded", "zigzagged")
            for k in (1, 2)
        },
    }


def aircraft() -> Files:
    return {
        "fgvc-aircraft-2013b/data/variants.txt": lines("707-320", "Cessna 172", "Tu-154"),
        "fgvc-aircraft-2013b/data/images_variant_test.txt": lines(
            "0034309 Cessna 172", "1514522 707-320", "0000001 Tu-154"
        ),
        **{
            f"fgvc-aircraft-2013b/data/images/{name}.jpg": encoded(k)
            for k, name in enumerate(("0034309", "1514522", "0000001"))
        },
    }


def flowers() -> Files:
    return {
        "imagelabels.mat": matlab(labels=np.array([[77, 1, 102, 5]], np.uint8)),
        "setid.mat": matlab(trnid=np.array([[1]]), valid=np.array([[4]]), tstid=np.array([[2, 3]])),
        **{f"jpg/image_{k:05d}.jpg": encoded(k) for k in range(1, 5)},
    }


def cars() -> Files:
    fields = [("bbox_x1", "u1"), ("class", "u1"), ("fname", "O")]
    table = np.array([(1, 2, "00001.jpg"), (1, 1, "00002.jpg")], fields)
    return {
        "cars_test_annos_withlabels.mat": matlab(annotations=table),
        "devkit/cars_meta.mat": matlab(class_names=np.array(["AM General Hummer", "Acura RL"], object)),
        "cars_test/00001.jpg": encoded(1),
        "cars_test/00002.jpg": encoded(2),
    }


def sun() -> Files:
    return {
        "SUN397/ClassName.txt": lines("/a/abbey", "/c/control_tower/outdoor"),
        "Partitions/Testing_01.txt": lines("/c/control_tower/outdoor/sun_b.jpg", "/a/abbey/sun_a.jpg"),
        "SUN397/a/abbey/sun_a.jpg": encoded(1),
        "SUN397/a/abbey/sun_z.jpg": encoded(3),
        "SUN397/c/control_tower/outdoor/sun_b.jpg": encoded(2),
    }


def gtsrb() -> Files:
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    ppm = [b"P6 9 9 255\n" + pixels(k, 9).tobytes() for k in range(3)]
    return {
        "GT-final_test.csv": lines(head, "00000.ppm;9;9;1;1;8;8;16", "00001.ppm;9;9;1;1;8;8;1"),
        "GTSRB/Final_Test/Images/00000.ppm": ppm[0],
        "GTSRB/Final_Test/Images/00001.ppm": ppm[1],
        "GTSRB/Training/00042/00000_00000.ppm": ppm[2],
    }


def memes() -> Files:
    rows = [
        {"id": 8291, "img": "img/08291.png", "label": 1, "text": "x"},
        {"id": 3, "img": "img/00003.png", "label": 0, "text": "y"},
    ]
    return {
        "data/dev.jsonl": lines(*map(json.dumps, rows)),
        "data/img/08291.png": encoded(1),
        "data/img/00003.png": encoded(2),
    }


def clevr() -> Files:
    scenes = [{"image_filename": f"CLEVR_val_{k:06d}.png", "objects": [{}] * count} for k, count in enumerate((3, 10))]
    return {
        "CLEVR_v1.0/scenes/CLEVR_val_scenes.json": json.dumps({"scenes": scenes}).encode(),
        **{f"CLEVR_v1.0/images/val/CLEVR_val_{k:06d}.png": encoded(k) for k in range(2)},
    }


@pytest.mark.parametrize(
    ("dataset", "split", "files", "expected"),
    [
        (
            "food101",
            "test",
            food,
            {
                "waffles/12.jpg": ("waffles", 1),
                "apple_pie/7.jpg": ("apple_pie", 2),
                "baby_back_ribs/1.jpg": ("baby_back_ribs", 3),
            },
        ),
        ("dtd", "test", dtd, {"banded/banded_1.jpg": ("banded", 7), "zigzagged/zigzagged_2.jpg": ("zigzagged", 11)}),
        (
            "dtd",
            "trainval1",
            dtd,
            {"banded/banded_2.jpg": ("banded", 8), "zigzagged/zigzagged_1.jpg": ("zigzagged", 10)},
        ),
        (
            "fgvc_aircraft",
            "test",
            aircraft,
            {"0034309.jpg": ("Cessna 172", 0), "1514522.jpg": ("707-320", 1), "0000001.jpg": ("Tu-154", 2)},
        ),
        ("flowers102", "test", flowers, {"image_00002.jpg": ("1", 2), "image_00003.jpg": ("102", 3)}),
        ("flowers102", "trainval", flowers, {"image_00001.jpg": ("77", 1), "image_00004.jpg": ("5", 4)}),
        ("stanford_cars", "test", cars, {"00001.jpg": ("Acura RL", 1), "00002.jpg": ("AM General Hummer", 2)}),
        (
            "sun397",
            "test",
            sun,
            {"a/abbey/sun_a.jpg": ("a/abbey", 1), "c/control_tower/outdoor/sun_b.jpg": ("c/control_tower/outdoor", 2)},
        ),
        ("hateful_memes", "dev", memes, {"08291.png": ("hateful", 1), "00003.png": ("not hateful", 2)}),
        ("clevr_counts", "val", clevr, {"CLEVR_val_000000.png": ("3", 0), "CLEVR_val_000001.png": ("10", 1)}),
    ],
)
@pytest.mark.parametrize("manner", ["folder", "zip"])
def test_lists(
    tmp_path: Path,
    dataset: str,
    split: str,
    files: Callable[[], Files],
    expected: dict[str, tuple[str, int]],
    manner: str,
) -> None:
    found = opened(pack(files(), tmp_path / "set", manner), dataset, split)
    assert answers(found) == {name: (label, encoded(k)) for name, (label, k) in expected.items()}


def test_gtsrb(tmp_path: Path) -> None:
    path = pack(gtsrb(), tmp_path / "gtsrb", "zip")
    found = opened(path, "gtsrb")
    assert (len(found.classes), found.labels.tolist()) == (43, [16, 1])
    np.testing.assert_array_equal(seen(found), [pixels(0, 9), pixels(1, 9)])
    assert opened(path, "gtsrb", "train").labels.tolist() == [42]


def test_class_folders(tmp_path: Path) -> None:
    files = {f"2750/{name}/{name}_1.jpg": encoded(len(name)) for name in ("Forest", "AnnualCrop", "SeaLake")}
    found = opened(pack(files, tmp_path / "EuroSAT", "zip"), "eurosat", "all")
    assert (found.ids, found.classes) == (
        ["AnnualCrop/AnnualCrop_1.jpg", "Forest/Forest_1.jpg", "SeaLake/SeaLake_1.jpg"],
        ["AnnualCrop", "Forest", "SeaLake"],
    )
    files = {
        f"country211/{split}/{code}/1.jpg": encoded(k)
        for k, (split, code) in enumerate((("test", "AD"), ("valid", "AD"), ("test", "ZW")))
    }
    found = opened(pack(files, tmp_path / "country211", "tar"), "country211")
    assert answers(found) == {"AD/1.jpg": ("AD", encoded(0)), "ZW/1.jpg": ("ZW", encoded(2))}
    # ASCII order, as Caltech's archive and its prompts have it: capitals first.
    files = {
        f"101_ObjectCategories/{name}/image_0001.jpg": encoded(k)
        for k, name in enumerate(("accordion", "Faces", "BACKGROUND_Google"))
    }
    assert opened(pack(files, tmp_path / "caltech", "tar"), "caltech101", "all").classes == [
        "BACKGROUND_Google",
        "Faces",
        "accordion",
    ]
    files = {f"imagenetv2-matched-frequency-format-val/{number}/a.jpeg": encoded(number) for number in (0, 10, 2)}
    found = opened(pack(files, tmp_path / "v2", "tar.gz"), "imagenetv2", other_counts=True)
    assert {one.id: found.labels[one.row] for one in found.pictures()} == {
        "0/a.jpeg": 0,
        "2/a.jpeg": 2,
        "10/a.jpeg": 10,
    }


def test_imagenet(tmp_path: Path) -> None:
    """The flat pictures with the development kit, with the table of the Kaggle copy, and in folders: the same labels three times."""
    synsets = np.array(
        [(1, "n02119789", 0), (2, "n01440764", 0), (3, "n09999999", 2), (4, "n15075141", 0)],
        [("ILSVRC2012_ID", "u2"), ("WNID", "O"), ("num_children", "u1")],
    )
    flat = {f"ILSVRC2012_val_{k:08d}.JPEG": encoded(k) for k in (1, 2, 3)}
    kit = {
        "ILSVRC2012_devkit_t12/data/meta.mat": matlab(synsets=synsets),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": lines("4", "1", "2"),
    }
    pack(flat, tmp_path / "a" / "ILSVRC2012_img_val", "tar")
    pack(kit, tmp_path / "a" / "ILSVRC2012_devkit_t12", "tar.gz")
    truth = ["n15075141", "n02119789", "n01440764"]
    rows = [f"ILSVRC2012_val_{k:08d},{wnid} 85 1 499 272 " for k, wnid in enumerate(truth, start=1)]
    pack(flat | {"LOC_val_solution.csv": lines("ImageId,PredictionString", *rows)}, tmp_path / "b", "folder")
    pack(
        {f"val/{wnid}/ILSVRC2012_val_{k:08d}.JPEG": encoded(k) for k, wnid in enumerate(truth, start=1)},
        tmp_path / "c",
        "folder",
    )
    for place in ("a", "b", "c"):
        found = opened(tmp_path / place, "imagenet", "val")
        assert found.classes == sorted(truth)
        assert {name[-13:-5]: label for name, (label, _) in answers(found).items()} == {
            f"{k:08d}": wnid for k, wnid in enumerate(truth, start=1)
        }


def voc(names: list[str]) -> Files:
    files = {f"VOCdevkit/VOC2007/JPEGImages/{k:06d}.jpg": encoded(k) for k in (1, 2, 3)}
    for name in names:
        marks = {"dog": (" 1", "-1", " 0"), "person": ("-1", " 1", " 1")}.get(name, ("-1", "-1", "-1"))
        files[f"VOCdevkit/VOC2007/ImageSets/Main/{name}_test.txt"] = lines(
            *(f"{k:06d} {mark}" for k, mark in enumerate(marks, start=1))
        )
    return files


def test_voc_has_several_labels_a_picture(tmp_path: Path) -> None:
    from evaluation.datasets.lists import VOC_CLASSES

    path = pack(voc(VOC_CLASSES), tmp_path / "voc", "tar")
    found = opened(path, "voc2007")
    assert found.marks is not None
    assert found.labels.tolist() == [-1, -1, -1]
    assert {name: found.marks[:, VOC_CLASSES.index(name)].tolist() for name in ("dog", "person", "cat")} == {
        "dog": [1, 0, -1],
        "person": [0, 1, 1],
        "cat": [0, 0, 0],
    }
    changed = voc(VOC_CLASSES)
    changed["VOCdevkit/VOC2007/ImageSets/Main/cat_test.txt"] = lines("000001  1", "000002 -1", "000003 -1")
    assert opened(pack(changed, tmp_path / "other", "tar"), "voc2007").content_hash != found.content_hash


def test_videos(tmp_path: Path) -> None:
    files = {
        "lists/classInd.txt": lines("1 Archery", "2 Biking"),
        "lists/testlist01.txt": lines("Biking/v_Biking_g01_c01.avi", "Archery/v_Archery_g01_c02.avi"),
        **{f"frames/v_Biking_g01_c01/{k}.jpg": encoded(k) for k in range(3)},
        "frames/v_Archery_g01_c02/0.jpg": encoded(7),
        "frames/v_Archery_g09_c09/0.jpg": encoded(8),
    }
    found = opened(pack(files, tmp_path / "ucf", "folder"), "ucf101", "test1")
    assert found.groups == ["v_Archery_g01_c02", *["v_Biking_g01_c01"] * 3]
    assert found.labels.tolist() == [0, 1, 1, 1]
    del files["frames/v_Archery_g01_c02/0.jpg"]
    with pytest.raises(InputError, match="1 of 2 videos have no folder of frames, the first is 'v_Archery_g01_c02'"):
        opened(pack(files, tmp_path / "less", "folder"), "ucf101", "test1")
    files = {
        f"k700/test/{name}/{video}/{k}.jpg": encoded(k)
        for name, video in (("abseiling", "x1"), ("zumba", "x2"))
        for k in range(2)
    }
    found = opened(pack(files, tmp_path / "kinetics", "tar"), "kinetics700")
    assert (found.labels.tolist(), found.groups) == ([0, 0, 1, 1], ["abseiling/x1"] * 2 + ["zumba/x2"] * 2)


def test_captions(tmp_path: Path) -> None:
    """A row a caption, at most five of a picture; the same picture in all of its rows."""
    images = [
        {"filename": "b.jpg", "split": "test", "sentences": [{"raw": f"caption {k} of b"} for k in range(7)]},
        {"filename": "c.jpg", "split": "train", "sentences": [{"raw": "of c"}]},
        {"filename": "a.jpg", "split": "test", "sentences": [{"raw": "two dogs"}, {"raw": "dogs"}]},
    ]
    files = {"dataset_flickr30k.json": json.dumps({"images": images, "dataset": "flickr30k"}).encode()}
    files |= {f"flickr30k-images/{name}.jpg": encoded(k) for k, name in enumerate("abc")}
    found = opened(pack(files, tmp_path / "f30k", "zip"), "flickr30k")
    assert found.ids == ["a.jpg#0", "a.jpg#1", *(f"b.jpg#{k}" for k in range(5))]
    assert found.captions == ["two dogs", "dogs", *(f"caption {k} of b" for k in range(5))]
    assert [one.data for one in found.pictures()] == [encoded(0)] * 2 + [encoded(1)] * 5
    with pytest.raises(InputError, match=r"2 examples where Flickr30k, split 'test', has 1,000 .karpathy."):
        opened(tmp_path / "f30k.zip", "flickr30k", other_counts=False)
    with pytest.raises(InputError, match="no split 'fifth'"):
        opened(tmp_path / "f30k.zip", "flickr30k", "fifth")
    files["dataset_flickr30k.json"] = b'{"images": [{"filename": "a.jpg"}]}'
    with pytest.raises(InputError, match="lists no images with filename, split and sentences"):
        opened(pack(files, tmp_path / "bad", "tar"), "flickr30k")


@pytest.mark.parametrize(
    ("dataset", "files", "said"),
    [
        ("oxford_pets", {"annotations/test.txt": lines("Abyssinian_1 one")}, "has the line 'Abyssinian_1 one'"),
        ("oxford_pets", {"annotations/test.txt": lines("Abyssinian_1 ² 1 1")}, "has the line 'Abyssinian_1 ² 1 1'"),
        (
            "oxford_pets",
            {"annotations/test.txt": lines(f"Abyssinian_1 {'1' * 5000}")},
            "has the line 'Abyssinian_1 111",
        ),
        ("imagenetv2", {"v2/²/a.jpeg": encoded(1)}, "class numbers, there is '²'"),
        (
            "gtsrb",
            {**gtsrb(), "GT-final_test.csv": lines("Filename;ClassId", "00000.ppm;²")},
            "no columns Filename and ClassId",
        ),
        ("oxford_pets", {"annotations/test.txt": lines("Abyssinian_1 2 1 1")}, "does not number its classes from 1"),
        ("oxford_pets", {"annotations/test.txt": lines("Abyssinian_1 1 1 1")}, "1 of 1 listed pictures are not there"),
        (
            "oxford_pets",
            {"a/annotations/test.txt": b"x", "b/annotations/test.txt": b"x"},
            "'annotations/test.txt' 2 times",
        ),
        ("oxford_pets", {"annotations/test.txt": b"\xff\xfe"}, "is not UTF-8"),
        ("flowers102", {**flowers(), "setid.mat": matlab(tstid=np.array([[9]]))}, "beyond the 4 labels"),
        ("flowers102", {**flowers(), "setid.mat": matlab(other=np.array([[9]]))}, "has no variable 'tstid'"),
        (
            "stanford_cars",
            {**cars(), "devkit/cars_meta.mat": matlab(class_names=np.array(["one"], object))},
            "class 2 of 1",
        ),
        (
            "fgvc_aircraft",
            {**aircraft(), "fgvc-aircraft-2013b/data/variants.txt": b"Tu-154"},
            "not in the class list of 1",
        ),
        (
            "gtsrb",
            {**gtsrb(), "GT-final_test.csv": lines("Filename;Width", "00000.ppm;9")},
            "no columns Filename and ClassId",
        ),
        ("voc2007", voc(["aeroplane"]), "holds no 'ImageSets/Main/bicycle_test.txt'"),
        ("hateful_memes", {"test.jsonl": lines('{"img": "img/1.png"}')}, "without img or label"),
        ("hateful_memes", {"test.jsonl": lines("[" * 9999)}, "not valid JSON"),
        ("country211", {"train/AD/1.jpg": encoded(1)}, "no split 'test'"),
        ("sun397", {**sun(), "Partitions/Testing_01.txt": lines("/x/none/sun_a.jpg")}, "listed pictures are not there"),
    ],
)
def test_bad_lists(tmp_path: Path, dataset: str, files: Files, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        opened(pack(files, tmp_path / "bad", "folder"), dataset)
    assert "bad" in str(caught.value)
    assert "\n" not in str(caught.value)

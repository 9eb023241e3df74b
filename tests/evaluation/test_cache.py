"""Features kept by content: the same inputs are never computed twice, and another input is never taken for the same."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from evaluation import cache as caches
from evaluation import model as models
from evaluation.features import CachedEncoder
from evaluation.model import ModelEncoder
from pipeline.content.labelled import LabelledSet, LabelledSetConfig, open_set
from tests.evaluation import exported
from tests.evaluation.planted import picture

TEXTS = ("a red square", "a blue circle")


class Counting(ModelEncoder):
    """Says how often it was asked."""

    asked = 0

    def images(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        self.asked += 1
        return super().images(labelled, rows)

    def features(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        self.asked += 1
        return super().features(labelled, rows)

    def texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        self.asked += 1
        return super().texts(sentences)


def exported_to(folder: Path, preset: str = "tiny-vit", **card: Any) -> Path:
    folder.mkdir(exist_ok=True)
    exported.tiny(folder, preset, ["red square", "blue circle"], "ab" * 32, **card)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_to(tmp_path_factory.mktemp("model"))


def pictures(folder: Path, first: int = 0) -> LabelledSet:
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": [picture(first + k, "evaluation") for k in range(4)]}), folder / "set.parquet")
    return open_set(LabelledSetConfig(name="set", path=str(folder / "set.parquet")))


def test_kept_features_are_the_computed_ones(model: Path, tmp_path: Path) -> None:
    encoder = Counting(str(model))
    labelled = pictures(tmp_path / "set")
    kept = CachedEncoder(encoder, str(tmp_path / "cache"))
    for layer in ("images", "features"):
        first, second = (getattr(kept, layer)(labelled, [0, 2, 3]) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, getattr(ModelEncoder(str(model)), layer)(labelled, [0, 2, 3]))
    np.testing.assert_array_equal(kept.texts(TEXTS), kept.texts(TEXTS))
    assert encoder.asked == 3
    # The same pictures in another set, under other names, labels and places are the same pictures.
    other = dataclasses.replace(pictures(tmp_path / "other"), name="other", ids=list("abcd"))
    kept.images(other, [0, 2, 3])
    assert encoder.asked == 3


class Case(NamedTuple):
    """What the second caller asks for."""

    encoder: ModelEncoder
    labelled: LabelledSet
    rows: Sequence[int] = (0, 1, 3)
    layer: Literal["images", "features"] = "images"
    sentences: Sequence[str] = TEXTS


Change = Callable[[pytest.MonkeyPatch, Path, LabelledSet], Case]
"""From the folder of the model and the set to the same question with one input changed."""


def with_card(**card: Any) -> Change:
    return lambda patch, folder, labelled: Case(
        ModelEncoder(str(exported_to(folder.parent / "other", **card))), labelled
    )


def version(name: str) -> Change:
    def change(patch: pytest.MonkeyPatch, folder: Path, labelled: LabelledSet) -> Case:
        real = importlib.metadata.version
        patch.setattr(importlib.metadata, "version", lambda one: "0.0" if one == name else real(one))
        return Case(ModelEncoder(str(folder)), labelled)

    return change


def attribute(owner: object, name: str, value: object) -> Change:
    def change(patch: pytest.MonkeyPatch, folder: Path, labelled: LabelledSet) -> Case:
        case = Case(ModelEncoder(str(folder)), labelled)
        patch.setattr(owner, name, value)
        return case

    return change


def in_double(patch: pytest.MonkeyPatch, folder: Path, labelled: LabelledSet) -> Case:
    encoder = ModelEncoder(str(folder))
    encoder._model.to(torch.float64)
    patch.setattr(ModelEncoder, "images", lambda self, *_: np.zeros((3, 4), np.float32))
    return Case(encoder, labelled)


def other_order(folder: Path, labelled: LabelledSet) -> LabelledSet:
    path = folder.parent / "reversed.parquet"
    pq.write_table(pq.read_table(labelled.path).take([3, 1, 2, 0]), path)
    return open_set(LabelledSetConfig(name="set", path=str(path)))


PICTURE_CHANGES: dict[str, Change] = {
    "weights": with_card(seed=5),
    "pixel_mean": with_card(pixel_mean=(0.5, 0.5, 0.5)),
    "pixel_std": with_card(pixel_std=(0.5, 0.5, 0.5)),
    "gelu": with_card(gelu="exact"),
    "preset": with_card(preset="tiny"),
    "precision": in_double,
    "matmul": attribute(torch, "get_float32_matmul_precision", lambda: "medium"),
    "torch": attribute(torch, "__version__", "9.9"),
    "pixels": attribute(models, "PIXELS_VERSION", 99),
    "format": attribute(caches, "FORMAT_VERSION", 99),
    "pillow": version("pillow"),
    "simplejpeg": version("simplejpeg"),
    "picture": lambda patch, folder, labelled: Case(ModelEncoder(str(folder)), pictures(folder.parent / "more", 9)),
    "rows": lambda patch, folder, labelled: Case(ModelEncoder(str(folder)), labelled, (0, 1, 2)),
    "order": lambda patch, folder, labelled: Case(ModelEncoder(str(folder)), other_order(folder, labelled)),
    "layer": lambda patch, folder, labelled: Case(ModelEncoder(str(folder)), labelled, layer="features"),
}
TEXT_CHANGES: dict[str, Change] = {
    "weights": PICTURE_CHANGES["weights"],
    "vocabulary": with_card(phrase="one other drawing with"),
    "texts": attribute(models, "TEXTS_VERSION", 99),
    "ftfy": version("ftfy"),
    "regex": version("regex"),
    "torch": PICTURE_CHANGES["torch"],
    "sentence": lambda patch, folder, labelled: Case(
        ModelEncoder(str(folder)), labelled, sentences=["a red square", "a blue"]
    ),
    "order": lambda patch, folder, labelled: Case(ModelEncoder(str(folder)), labelled, sentences=TEXTS[::-1]),
    "cut": lambda patch, folder, labelled: Case(
        ModelEncoder(str(folder)), labelled, sentences=["a red squarea", " blue circle"]
    ),
}


@pytest.mark.parametrize("what", PICTURE_CHANGES)
def test_a_changed_input_never_hits(what: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.symlink_to(model)
    labelled = pictures(tmp_path / "set")
    CachedEncoder(ModelEncoder(str(folder)), str(tmp_path / "cache")).images(labelled, [0, 1, 3])
    before = set((tmp_path / "cache").glob("*.npy"))
    case = PICTURE_CHANGES[what](monkeypatch, folder, labelled)
    getattr(CachedEncoder(case.encoder, str(tmp_path / "cache")), case.layer)(case.labelled, case.rows)
    assert len(before) == 1
    assert len(set((tmp_path / "cache").glob("*.npy"))) == 2


@pytest.mark.parametrize("what", TEXT_CHANGES)
def test_a_changed_text_never_hits(what: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.symlink_to(model)
    labelled = pictures(tmp_path / "set")
    CachedEncoder(ModelEncoder(str(folder)), str(tmp_path / "cache")).texts(TEXTS)
    case = TEXT_CHANGES[what](monkeypatch, folder, labelled)
    CachedEncoder(case.encoder, str(tmp_path / "cache")).texts(case.sentences)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "no array", "record", "other record", "deep record", "other entry"])
def test_a_damaged_entry_is_computed_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = caches.Cache(str(tmp_path))
    truth = np.arange(12, dtype=np.float32).reshape(3, 4)
    made = []

    def compute() -> NDArray[np.float32]:
        made.append(1)
        return truth

    cache.array({"a": 1}, compute)
    [array], [record] = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    whole = bytearray(array.read_bytes())
    if damage == "flip":
        whole[-3] ^= 1
        array.write_bytes(whole)
    elif damage == "cut":
        array.write_bytes(whole[:-4])
    elif damage == "no array":
        array.unlink()
    elif damage == "record":
        record.write_text("{")
    elif damage == "deep record":
        record.write_text("[" * 100_000)
    elif damage == "other entry":  # whole, and under this one's name
        other = caches.Cache(str(tmp_path / "other"))
        other.array({"a": 2}, lambda: truth + 1)
        for place in (array, record):
            place.write_bytes(next((tmp_path / "other").glob(f"*{place.suffix}")).read_bytes())
    else:
        record.write_text(json.dumps(["not a table"]))
    np.testing.assert_array_equal(cache.array({"a": 1}, compute), truth)
    assert len(made) == 2
    assert "is not what was written; computed again" in caplog.text
    np.testing.assert_array_equal(cache.array({"a": 1}, compute), truth)
    assert len(made) == 2

"""Planted copies: each change does what its name says, distances are those of the hashes, and the same picture gives the same copies."""

import io
from pathlib import Path

import imagehash
import numpy as np
import pdqhash
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from evaluation.overlap.copies import TRANSFORMS, copy_of, hash_copies
from evaluation.overlap.tables import COPY_SCHEMA
from pipeline.content.labelled import LabelledSetConfig, open_set
from tests.evaluation import planted

SIZES = {
    "half size": (160, 120),
    "thumbnail of 64 pixels": (64, 48),
    "square of 256, nearest": (256, 256),
    "border of 10 %": (368, 288),
    "CLIP's centre crop of 224": (224, 224),
    "crop, half of the area": (226, 170),
    "crop, a quarter of the area": (160, 120),
}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(io.BytesIO(planted.picture(3, "evaluation"))).convert("RGB").resize((320, 240))


@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_every_change_is_made(picture: Image.Image, name: str) -> None:
    before = picture.tobytes()
    changed = TRANSFORMS[name](picture)
    assert picture.tobytes() == before, "the original is left alone"
    assert changed.mode == "RGB"
    assert changed.size == SIZES.get(name, changed.size)
    assert copy_of(picture, name) == copy_of(picture, name)
    if not name.startswith("recompressed"):
        assert changed.size != picture.size or changed.tobytes() != before


def test_the_geometry(picture: Image.Image) -> None:
    pixels = np.asarray(picture)
    assert np.array_equal(np.asarray(TRANSFORMS["mirrored"](picture)), pixels[:, ::-1])
    assert np.array_equal(np.asarray(TRANSFORMS["crop, a quarter of the area"](picture)), pixels[60:180, 80:240])
    assert np.array_equal(np.asarray(TRANSFORMS["border of 10 %"](picture))[24:264, 24:344], pixels)
    banner = np.asarray(TRANSFORMS["banner of 12 %"](picture))
    assert np.array_equal(banner[:211], pixels[:211])
    assert (banner[-1] == 255).all()
    assert (banner[211:] < 100).any(), "and it says something"
    square = TRANSFORMS["CLIP's centre crop of 224"](picture)
    again = ImageOps.fit(picture, (224, 224), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(square, np.int64) - np.asarray(again)).mean() < 3


def test_distances_are_those_of_the_peers_hashes(tmp_path: Path) -> None:
    """ImageHash and pdqhash on the copies' own bytes give the table's distances (small pictures, which the house hashes as they are)."""
    data = [planted.picture(k, "evaluation") for k in range(3)]
    pq.write_table(pa.table({"id": ["a", "b", "c"], "image": data}), tmp_path / "set.parquet")
    labelled = open_set(LabelledSetConfig(name="set", path=str(tmp_path / "set.parquet"), id="id"))
    table = hash_copies(labelled, [0, 2])
    assert table.schema == COPY_SCHEMA
    assert table.equals(hash_copies(labelled, [0, 2]))
    assert [(row["eval_row"], row["transform"]) for row in table.to_pylist()] == [
        (row, name) for row in (0, 2) for name in TRANSFORMS
    ]
    for row in table.to_pylist():
        original = Image.open(io.BytesIO(data[row["eval_row"]])).convert("RGB")
        changed = Image.open(io.BytesIO(copy_of(original, row["transform"])))
        if max(original.size) >= 512:
            pytest.skip("pictures of this size are halved first")
        (ours, one), (theirs, other) = (pdqhash.compute(np.asarray(image)) for image in (original, changed))
        assert row["pdq_distance"] == int((ours != theirs).sum()), row["transform"]
        assert row["pdq_quality"] == min(one, other)
        assert row["phash_distance"] == imagehash.phash(original) - imagehash.phash(changed)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3000, 1), (60_000, 4), (65_000, 60), (65_490, 60)])
def test_dots_and_threads_end_no_job(tmp_path: Path, width: int, height: int) -> None:
    """What becomes too small, or longer than a JPEG can be, has no row; the middle of a thread is enlarged, not all of it."""
    sink = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(sink, "PNG")
    pq.write_table(pa.table({"image": [sink.getvalue()]}), tmp_path / "set.parquet")
    table = hash_copies(open_set(LabelledSetConfig(name="set", path=str(tmp_path / "set.parquet"))), [0])
    assert "CLIP's centre crop of 224" in table["transform"].to_pylist()
    assert ("border of 10 %" in table["transform"].to_pylist()) == (width == 65_000)

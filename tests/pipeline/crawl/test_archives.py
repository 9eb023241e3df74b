"""Pictures that lie in their source are not fetched: they are judged and stored like fetched ones, and nobody is connected to."""

import io
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest

from pipeline.contracts.errors import InputError
from pipeline.contracts.schema import MATCHED_SCHEMA, uid
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.outcome import Stored
from pipeline.crawl.picture import store
from pipeline.crawl.stage import crawl


def _jpeg(number: int, size: tuple[int, int] = (320, 240)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1] // 20, size[0] // 20, 3), np.uint8)
    sink = io.BytesIO()
    PIL.Image.fromarray(pixels).resize(size, PIL.Image.Resampling.BICUBIC).save(sink, "jpeg")
    return sink.getvalue()


def _table(folder: Path, pictures: list[bytes]) -> pa.Table:
    """Two captions for each picture; the second of them does not say where it lies."""
    rows = []
    with tarfile.open(folder / "t.tar", "w") as tar:
        for number, data in enumerate(pictures):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            place = tar.offset - (len(data) + 511) // 512 * 512
            for caption, archived in ((f"picture {number}", f"bytes:{place}+{len(data)}"), (f"again {number}", None)):
                # Loopback, closed, and refused by the guard: whoever connects does not get a picture.
                url = f"http://127.0.0.1:9/{number}.jpg"
                rows.append(
                    {"uid": uid(url, caption), "url": url, "caption_raw": caption, "caption": caption, "source": "t.tar#0",
                     "archived": archived, "query_ids": [0]}
                )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=MATCHED_SCHEMA)


def test_pictures_of_a_source_are_stored_as_if_fetched(tmp_path: Path) -> None:
    config = CrawlConfig()
    pictures = [_jpeg(0), _jpeg(1), b"no picture", _jpeg(3, (40, 1600)), _jpeg(4)[:-3000]]
    rows, rejected = crawl(_table(tmp_path, pictures), config, archives={"t.tar": str(tmp_path / "t.tar")})
    assert rows.num_rows + rejected.num_rows == 10
    for row in rows.to_pylist():
        expected = store(pictures[int(row["caption_raw"].split()[1])], config)
        assert isinstance(expected, Stored)
        assert (row["image"], row["source_sha256"], row["phash64"]) == (
            expected.image,
            expected.source_sha256,
            expected.phash64,
        )
    assert sorted(rows["caption_raw"].to_pylist()) == ["again 0", "again 1", "picture 0", "picture 1"]
    assert sorted(set(rejected["reason"].to_pylist())) == ["aspect_ratio", "image_truncated", "not_an_image"]


def test_limits_hold_and_a_source_that_is_gone_is_named(tmp_path: Path) -> None:
    table = _table(tmp_path, [_jpeg(0)])
    rows, rejected = crawl(table, CrawlConfig(max_bytes=1000), archives={"t.tar": str(tmp_path / "t.tar")})
    assert rows.num_rows == 0
    assert rejected["reason"].to_pylist() == ["too_many_bytes"] * 2
    with pytest.raises(InputError, match="is not there any more"):
        crawl(table, CrawlConfig(), archives={})

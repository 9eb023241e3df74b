"""Sample order, row reading, pixels and batches, each against a plain twin; and that ranks, workers and places change nothing."""

import dataclasses
import io
import itertools
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import boto3
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from PIL import Image, ImageEnhance

from pipeline.content import labelled
from pipeline.contracts import manifest as manifests
from pipeline.contracts import parquet, storage
from pipeline.contracts.errors import InputError, RunError, StoreTrouble
from tests.conftest import s3_environment
from tests.trainer.plans import small_plan
from trainer import tokenizer
from trainer.config import CLIP_MEAN, CLIP_STD, AugmentationConfig, DataConfig
from trainer.data import corpus as corpora
from trainer.data import loader, tars, transforms
from trainer.data import reader as readers
from trainer.data.order import SampleOrder, permute, replacement_row, round_keys, unpermute
from trainer.data.reader import Corpus, Group, RowReader, Source
from trainer.data.shards import ShardCorpus
from trainer.held.labelled_set import pictures_of

Pairs = list[tuple[str | None, bytes | None]]


# ---- order


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**64))
@settings(max_examples=40, deadline=None)
def test_permute_is_a_permutation(n: int, seed: int) -> None:
    places = permute(np.arange(n, dtype=np.int64), n, round_keys("test", seed))
    assert sorted(places.tolist()) == list(range(n))
    assert np.array_equal(unpermute(places, n, round_keys("test", seed)), np.arange(n))


def test_permute_looks_random() -> None:
    """Where 0 goes under many keys is uniform: chi-square over 16 cells of 4,000 draws stays below the 99.9 % point of 15 degrees."""
    cells = Counter(
        int(permute(np.zeros(1, np.int64), 1000, round_keys("u", key))[0]) * 16 // 1000 for key in range(4000)
    )
    assert sum((cells[cell] - 250) ** 2 / 250 for cell in range(16)) < 37.7


@given(
    groups=st.lists(st.integers(0, 30), min_size=1, max_size=25).filter(lambda groups: sum(groups) > 0),
    seed=st.integers(0, 99),
    window=st.integers(1, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_row_comes_once_an_epoch_and_any_place_is_found_directly(
    groups: list[int], seed: int, window: int
) -> None:
    rows = sum(groups)
    order = SampleOrder(groups, seed=seed, window_row_groups=window)
    run = order.rows(np.arange(3 * rows, dtype=np.int64))
    for epoch in range(3):
        assert sorted(run[epoch * rows : (epoch + 1) * rows].tolist()) == list(range(rows))
    fresh = SampleOrder(groups, seed=seed, window_row_groups=window)
    for sample in (3 * rows - 1, rows, 0, 2 * rows - 1):
        assert fresh.rows(np.array([sample]))[0] == run[sample]
    first = fresh.first_samples(np.arange(rows, dtype=np.int64))
    assert np.array_equal(run[first], np.arange(rows)), "every row's first sample is that row"
    assert first.max() == rows - 1


def test_a_window_bounds_what_is_mixed() -> None:
    groups = [10] * 40
    run = SampleOrder(groups, seed=3, window_row_groups=4).rows(np.arange(400, dtype=np.int64))
    touched = [set((run[start : start + 40] // 10).tolist()) for start in range(0, 400, 40)]
    assert all(len(groups_of_window) == 4 for groups_of_window in touched)
    assert set.union(*touched) == set(range(40))


def test_epochs_and_seeds_differ() -> None:
    order = SampleOrder([100] * 5, seed=0, window_row_groups=5)
    run = order.rows(np.arange(1000, dtype=np.int64))
    other = SampleOrder([100] * 5, seed=1, window_row_groups=5).rows(np.arange(500, dtype=np.int64))
    assert (run[:500] != run[500:]).mean() > 0.9
    assert (run[:500] != other).mean() > 0.9


def test_seeking_does_not_walk() -> None:
    """A row of the 40th epoch of 400 million: memory and time are those of the row groups, not of the rows."""
    order = SampleOrder([2_000] * 200_000, seed=0, window_row_groups=512)
    place = 40 * 400_000_000 + 123_456_789
    assert 0 <= int(order.rows(np.array([place]))[0]) < 400_000_000


def test_replacements_come_from_the_rows_own_group_and_then_from_anywhere() -> None:
    def chosen(row: int, attempt: int, group: tuple[int, int], seed: int = 0) -> int:
        return replacement_row(row, attempt, seed=seed, rows=10**9, group=group)

    own = [chosen(1007, attempt, (1000, 1100)) for attempt in range(1, 9)]
    assert all(1000 <= row < 1100 and row != 1007 for row in own)
    assert len(set(own)) > 5
    elsewhere = {chosen(1007, attempt, (1000, 1100)) for attempt in range(9, 29)}
    assert len(elsewhere) == 20
    assert not elsewhere & set(range(1000, 1100))
    counts = Counter(chosen(7, 1, (5, 10), seed) for seed in range(4000))
    assert set(counts) == {5, 6, 8, 9}
    assert all(850 < count < 1150 for count in counts.values())
    assert chosen(7, 1, (7, 8)) not in range(1000), "alone in its group"


def test_the_group_of_a_row() -> None:
    order = SampleOrder([3, 0, 2, 4], seed=0, window_row_groups=2)
    assert [order.group_of(row) for row in range(9)] == [(0, 3)] * 3 + [(3, 5)] * 2 + [(5, 9)] * 4


# ---- rows


def shards(folder: Path | str) -> ShardCorpus:
    return ShardCorpus(str(folder), manifests.load(str(folder)))


@pytest.mark.parametrize("ahead", [0, 3])
def test_rows_by_number(corpus: Path, ahead: int) -> None:
    manifest = manifests.load(str(corpus))
    reader = RowReader(shards(corpus), cache_bytes=1, ahead=ahead)
    table = [
        row
        for shard in manifest.shards
        for row in parquet.read(manifests.shard_uri(str(corpus), shard), ["caption", "image"]).to_pylist()
    ]
    asked = np.random.default_rng(0).integers(0, manifest.rows, (4, 60))
    for rows, then in itertools.pairwise(asked):
        assert [row._asdict() for row in reader.read(rows, then)] == [table[place] for place in rows]
    assert list(shards(corpus).captions()) == [row["caption"] for row in table]


def test_a_large_enough_cache_reads_each_row_group_once(corpus: Path) -> None:
    found = shards(corpus)
    reader = RowReader(found, cache_bytes=1 << 30, ahead=2)
    for _ in range(2):
        assert sum(1 for _ in reader.read(np.arange(found.manifest.rows))) == found.manifest.rows
    assert reader.groups_read == len(found.group_rows)


@dataclasses.dataclass
class Watched:
    """A corpus that notes which groups are read, and how many have been read or are being read and not yet been looked at."""

    corpus: Corpus
    read_groups: list[int] = dataclasses.field(default_factory=list)

    @property
    def place(self) -> str:
        return self.corpus.place

    @property
    def content_root(self) -> str:
        return self.corpus.content_root

    @property
    def rows(self) -> int:
        return self.corpus.rows

    @property
    def group_rows(self) -> list[int]:
        return self.corpus.group_rows

    @property
    def group_bytes(self) -> list[int]:
        return self.corpus.group_bytes

    def captions(self) -> Iterator[str]:
        return self.corpus.captions()

    def open(self) -> Source:
        source = self.corpus.open()

        class Noted:
            def read(inner, group: int) -> Group:  # noqa: N805
                self.read_groups.append(group)
                return source.read(group)

        return Noted()


@pytest.fixture
def many_groups(tmp_path: Path, write_corpus: Callable[..., object], shapes: Callable[..., Pairs]) -> ShardCorpus:
    """Twelve shards of eight rows, a row group each."""
    write_corpus(tmp_path / "many", shapes(96), rows_per_shard=8)
    return shards(tmp_path / "many")


def test_what_comes_next_is_read_ahead_and_no_more_of_it_than_allowed(many_groups: ShardCorpus) -> None:
    watched = Watched(many_groups)
    reader = RowReader(watched, cache_bytes=1 << 30, ahead=3)
    rows = reader.read(np.arange(16), then=np.arange(16, 96))
    assert watched.read_groups == []
    next(rows)
    wait_until(lambda: len(watched.read_groups) == 4)
    time.sleep(0.1)
    assert sorted(watched.read_groups) == [0, 1, 2, 3], "one that is wanted and three that will be"
    assert sum(1 for _ in rows) == 15
    wait_until(lambda: len(watched.read_groups) == 5)
    for _ in reader.read(np.arange(16, 96)):
        assert len(set(watched.read_groups)) <= reader.groups_read + 3
    assert sorted(watched.read_groups) == list(range(12)), "each group once"


def test_memory_for_groups_is_bounded(many_groups: ShardCorpus) -> None:
    largest = max(many_groups.open().read(group).nbytes for group in range(12))
    reader = RowReader(many_groups, cache_bytes=3 * largest, ahead=2)
    for row in np.random.default_rng(0).permutation(96):
        next(reader.read(np.array([row])))
        assert reader.kept_bytes <= 3 * largest
    assert reader.groups_read > 24


def test_a_group_that_was_read_ahead_and_is_damaged_is_named_when_it_is_wanted(many_groups: ShardCorpus) -> None:
    path = Path(many_groups.place) / many_groups.manifest.shards[1].path
    path.write_bytes(path.read_bytes()[:-20])
    rows = RowReader(many_groups, cache_bytes=1 << 30, ahead=4).read(np.arange(96))
    assert len([next(rows) for _ in range(8)]) == 8
    with pytest.raises(InputError, match=many_groups.manifest.shards[1].path):
        next(rows)


def test_the_size_of_every_shard_is_compared_before_the_first_step(
    tmp_path: Path, write_corpus: Callable[..., object], shapes: Callable[..., Pairs]
) -> None:
    write_corpus(tmp_path, shapes(30), rows_per_shard=8)
    data = DataConfig(manifest=str(tmp_path))
    found = corpora.locate(data)
    assert isinstance(found, ShardCorpus)
    path = tmp_path / found.manifest.shards[2].path
    whole = path.read_bytes()
    pq.write_table(pq.read_table(path).slice(0, 8).take(list(range(7, -1, -1))), path)
    with pytest.raises(
        InputError, match=rf"{path}: [\d,]+ bytes, the manifest says [\d,]+; run `python -m pipeline ver"
    ):
        corpora.locate(data)
    path.unlink()
    with pytest.raises(InputError, match=f"{path}: is missing; restore it"):
        corpora.locate(data)
    path.write_bytes(whole)
    assert corpora.locate(data) == found


def test_a_store_that_goes_away_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    write_corpus: Callable[..., object],
    shapes: Callable[..., Pairs],
    unused_port: int,
) -> None:
    server = ThreadedMotoServer("127.0.0.1", unused_port)
    server.start()
    for key, value in s3_environment(f"http://127.0.0.1:{unused_port}").items():
        monkeypatch.setenv(key, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    write_corpus("s3://bucket/shards", shapes(24), rows_per_shard=8)
    boto3.client("s3").put_object(Bucket="bucket", Key="tars/0.tar", Body=tar_of(shapes(4)))
    corpus = shards("s3://bucket/shards")
    packed = tars.open_tars(tars.find("s3://bucket/tars"), str(tmp_path), rank=0, world_size=1, wait=lambda: None)
    reader = RowReader(corpus, cache_bytes=1, ahead=1)
    rows = [next(reader.read(np.array([row]))) for row in (0, 20)]
    pictures = [picture for _, picture in shapes(6)]
    pq.write_table(pa.table({"image": pictures}), tmp_path / "set.parquet", row_group_size=1)
    boto3.client("s3").upload_file(str(tmp_path / "set.parquet"), "bucket", "set.parquet")
    opened = labelled.open_set(labelled.LabelledSetConfig(name="set", path="s3://bucket/set.parquet"))
    plain, patient = opened.pictures(), pictures_of(opened, list(range(6)))
    begun = [next(plain), next(patient)]
    server.stop()

    monkeypatch.setattr(readers, "_WAITS_S", ())
    in_tars = RowReader(packed, cache_bytes=1, ahead=0)
    # Of a shard that is open, of one that is not, of a tar.
    for source, row in ((reader, 0), (reader, 10), (in_tars, 0)):
        with pytest.raises(StoreTrouble, match=r"s3://bucket/.*the store is in trouble .*run the same command again"):
            next(source.read(np.array([row])))
    with pytest.raises(StoreTrouble, match=r"s3://bucket/set.parquet: the store is in trouble"):
        list(plain)

    monkeypatch.setattr(readers, "_WAITS_S", (0.2,) * 100)
    again = ThreadedMotoServer("127.0.0.1", unused_port)
    back = threading.Timer(1.0, again.start)
    back.start()
    try:
        assert [next(reader.read(np.array([row]))) for row in (0, 20)] == rows
        assert [picture.data for picture in (begun[1], *patient)] == pictures
        assert len(list(corpus.captions())) == 24
    finally:
        back.join()
        again.stop()


def tar_of(pairs: Pairs) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number, (caption, picture) in enumerate(pairs):
            for name, data in ((f"{number}.png", picture or b""), (f"{number}.txt", (caption or "").encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.mark.parametrize(("answers_after", "tries", "seconds"), [(0.0, 7, 60.0), (10.0, 6, 90.0), (200.0, 2, 401.0)])
def test_a_silent_store_is_not_waited_for_longer_than_a_minute_or_so(
    monkeypatch: pytest.MonkeyPatch, answers_after: float, tries: int, seconds: float
) -> None:
    """By a clock that goes on with each try and each sleep."""
    now, tried = 0.0, 0

    def silent() -> None:
        nonlocal now, tried
        now, tried = now + answers_after, tried + 1
        raise StoreTrouble("silent")

    def sleep(wait: float) -> None:
        nonlocal now
        now += wait

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(StoreTrouble):
        readers.patiently(silent)
    assert (tried, now) == (tries, seconds)


def wait_until(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_damaged_shard_is_named(
    tmp_path: Path, write_corpus: Callable[..., object], shapes: Callable[..., Pairs]
) -> None:
    write_corpus(tmp_path, shapes(30))
    found = shards(tmp_path)
    path = tmp_path / found.manifest.shards[0].path
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=found.manifest.shards[0].path):
        next(RowReader(found, cache_bytes=1 << 20, ahead=0).read(np.array([3])))


def test_a_shard_that_is_not_the_manifests_is_named(
    tmp_path: Path, write_corpus: Callable[..., object], shapes: Callable[..., Pairs]
) -> None:
    write_corpus(tmp_path, shapes(30))
    found = shards(tmp_path)
    path = tmp_path / found.manifest.shards[0].path
    pq.write_table(pq.read_table(path).slice(3), path)
    with pytest.raises(
        InputError, match="row group 0 has 27 rows, the manifest says 30; run `python -m pipeline verify"
    ):
        next(RowReader(found, cache_bytes=1 << 20, ahead=0).read(np.array([3])))


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop_columns(["image"]), "column 'image' is not there, a corpus has binary"),
        (
            lambda table: with_column(table, "image", pa.array([7] * 30)),
            "column 'image' is int64, a corpus has binary",
        ),
        (
            lambda table: with_column(table, "caption", table["caption"].cast(pa.binary())),
            "column 'caption' is binary, a corpus has string",
        ),
        (
            lambda table: with_column(table, "caption", pa.array([b"\xff\xfe"] * 30).view(pa.string())),
            "row group 0 is not readable .*UTF8",
        ),
        (
            lambda table: pa.concat_tables([table, table]),
            "row group 0 has 60 rows, the manifest says 30; run `python -m pipeline verify",
        ),
    ],
)
def test_a_shard_with_other_columns_is_named(
    tmp_path: Path,
    write_corpus: Callable[..., object],
    shapes: Callable[..., Pairs],
    change: Callable[[pa.Table], pa.Table],
    said: str,
) -> None:
    write_corpus(tmp_path, shapes(30))
    found = shards(tmp_path)
    path = tmp_path / found.manifest.shards[0].path
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(InputError, match=f"{path}: {said}"):
        next(RowReader(found, cache_bytes=1 << 20, ahead=0).read(np.array([3])))


def test_a_damaged_index_is_named_when_captions_are_read(
    tmp_path: Path, write_corpus: Callable[..., object], shapes: Callable[..., Pairs]
) -> None:
    write_corpus(tmp_path, shapes(30))
    found = shards(tmp_path)
    manifest = found.manifest
    path = tmp_path / manifest.shards[0].index_path
    footer = pq.read_metadata(path)
    first = footer.row_group(0).column(footer.schema.to_arrow_schema().names.index("caption"))
    start = first.dictionary_page_offset or first.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + first.total_compressed_size] = bytes(first.total_compressed_size)  # the footer stays whole
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{manifest.shards[0].index_path}: row group 0 is not readable"):
        list(found.captions())


# ---- pixels


def picture(width: int, height: int, seed: int = 0) -> transforms.UInt8s:
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))


def augmented(
    rgb: transforms.UInt8s, size: int, how: AugmentationConfig, *, seed: int, sample: int
) -> transforms.UInt8s:
    pixels = np.empty((3, size, size), np.uint8)
    transforms.training_pixels(rgb, how, seed=seed, sample=sample, into=pixels)
    return pixels


@pytest.mark.parametrize(("width", "height"), [(80, 50), (50, 80), (32, 32), (20, 61), (301, 77)])
def test_evaluation_is_resize_and_centre_crop(width: int, height: int) -> None:
    """The twin is the recipe of openai/CLIP, clip/clip.py `_transform`, written out on Pillow alone."""
    rgb, size = picture(width, height), 32
    scale = size / min(width, height)
    resized = Image.fromarray(rgb).resize(
        (size, int(height * scale + 1e-9)) if width < height else (int(width * scale + 1e-9), size),
        Image.Resampling.BICUBIC,
    )
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    expected = np.asarray(resized)[top : top + size, left : left + size].transpose(2, 0, 1)
    assert np.array_equal(transforms.evaluation_pixels(rgb, size), expected)


def test_the_training_crop_is_a_square_of_the_resized_picture() -> None:
    rgb = picture(90, 32)
    places = set()
    for sample in range(60):
        pixels = augmented(rgb, 32, AugmentationConfig(), seed=1, sample=sample)
        found = [x for x in range(59) if np.array_equal(rgb[:, x : x + 32].transpose(2, 0, 1), pixels)]
        assert found, "not a crop"
        places.add(found[0])
    assert len(places) > 25
    assert min(places) < 10
    assert max(places) > 48


@pytest.mark.parametrize("crop", ["random_square", "random_resized", "center"])
def test_draws_belong_to_the_sample(crop: str) -> None:
    rgb = picture(70, 50)
    how = AugmentationConfig.model_validate({"crop": crop, "scale": (0.3, 1.0), "flip": 0.5, "color_jitter": 0.4})

    def pixels(seed: int, sample: int) -> transforms.UInt8s:
        return augmented(rgb, 32, how, seed=seed, sample=sample)

    assert np.array_equal(pixels(5, 9), pixels(5, 9))
    assert not np.array_equal(pixels(5, 9), pixels(5, 10))
    assert not np.array_equal(pixels(5, 9), pixels(6, 9))
    assert pixels(2**63 - 1, 2**40).shape == (3, 32, 32)


def test_colour_jitter_is_pillows_three_enhancers_in_the_drawn_order() -> None:
    rgb = (picture(40, 40) // 2 + 60).astype(
        np.uint8
    )  # away from black and white, where Pillow clips after each of the three
    how = AugmentationConfig(crop="center", color_jitter=0.2)
    orders = set()
    for sample in range(30):
        draws = np.random.Generator(np.random.Philox(key=(sample << 64) | 3))
        factors = draws.uniform(0.8, 1.2, size=3)
        order = tuple(draws.permutation(3).tolist())
        orders.add(order)
        expected = Image.fromarray(rgb)
        for place in order:
            enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[place]
            expected = enhancer(expected).enhance(factors[place])
        pixels = augmented(rgb, 40, how, seed=3, sample=sample).transpose(1, 2, 0)
        off = np.abs(pixels.astype(int) - np.asarray(expected).astype(int))
        assert off.max() <= 3, (order, factors)  # Pillow rounds three times
        assert np.abs(rgb.astype(int) - pixels).mean() > 1
    assert len(orders) == 6


@pytest.mark.parametrize(("width", "height"), [(341, 256), (256, 341), (100, 500), (60, 50)])
def test_a_resized_crop_is_pillows_of_a_box_that_keeps_share_and_aspect(width: int, height: int) -> None:
    """The box is found again among all that could have been drawn: the one whose pixels, by Pillow, are ours."""
    rgb = picture(width, height, seed=1)
    how = AugmentationConfig(crop="random_resized", scale=(0.9, 1.0))
    for sample in range(5):
        pixels = augmented(rgb, 224, how, seed=3, sample=sample)
        draws = np.random.Generator(np.random.Philox(key=(sample << 64) | 3))
        box = transforms._random_resized_box(width, height, how.scale, draws)
        box_width, box_height = box[2] - box[0], box[3] - box[1]
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height
        assert 3 / 4 - 0.02 <= box_width / box_height <= 4 / 3 + 0.02
        if max(width, height) < 2 * min(width, height):
            assert 0.88 <= box_width * box_height / (width * height) <= 1
        expected = Image.fromarray(rgb).resize((224, 224), Image.Resampling.BICUBIC, box=box)
        assert np.array_equal(pixels, np.asarray(expected).transpose(2, 0, 1))


def test_flip_mirrors() -> None:
    rgb = picture(32, 32)
    flipped = augmented(rgb, 32, AugmentationConfig(crop="center", flip=1.0), seed=0, sample=0)
    assert np.array_equal(flipped, transforms.evaluation_pixels(rgb, 32)[:, :, ::-1])


def test_normalise() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    expected = np.empty((2, 3, 4, 4), np.float64)
    for arguments, mean, std in (
        ((), CLIP_MEAN, CLIP_STD),
        (((0.7, 0.6, 0.5), (0.3, 0.2, 0.1)), (0.7, 0.6, 0.5), (0.3, 0.2, 0.1)),
    ):
        for channel in range(3):
            expected[:, channel] = (pixels[:, channel].numpy() / 255 - mean[channel]) / std[channel]
        assert np.allclose(transforms.normalise(pixels, *arguments).numpy(), expected, atol=1e-5)


# ---- batches


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> str:
    path = str(tmp_path_factory.mktemp("vocabulary") / "vocabulary")
    tokenizer.train_vocabulary(shards(corpus).captions(), 600, path)
    return path


@pytest.fixture
def plan(corpus: Path, vocabulary: str) -> loader.LoaderPlan:
    return small_plan(shards(corpus), vocabulary, window_row_groups=3)


def whole(plan: loader.LoaderPlan, world: int, workers: int, first: int, last: int) -> list[loader.Batch]:
    """The batches of all ranks, joined."""
    ranks = [
        list(loader.batches(dataclasses.replace(plan, rank=rank, world_size=world, workers=workers), first, last))
        for rank in range(world)
    ]
    return [joined(parts) for parts in zip(*ranks, strict=True)]


def joined(parts: Sequence[loader.Batch]) -> loader.Batch:
    tensors = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in ("pixels", "ids", "samples", "rows")
    }
    return loader.Batch(**tensors, replaced=[swap for part in parts for swap in part.replaced])


def same(left: list[loader.Batch], right: list[loader.Batch]) -> bool:
    return len(left) == len(right) and all(
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("pixels", "ids", "samples", "rows"))
        and a.replaced == b.replaced
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # torch's word on machines of fewer cores than workers
@pytest.mark.parametrize(("world", "workers"), [(2, 0), (4, 0), (1, 1), (1, 2), (1, 4), (2, 2)])
def test_ranks_and_workers_change_nothing(plan: loader.LoaderPlan, world: int, workers: int) -> None:
    assert same(whole(plan, world, workers, 0, 15), whole(plan, 1, 0, 0, 15))


def test_batches_that_are_held_stay_as_they_are_and_memory_goes_back(plan: loader.LoaderPlan) -> None:
    """More batches than there is shared memory for are held; then none, and the memory is that of the ones before."""
    two = dataclasses.replace(plan, workers=2, prefetch=1)
    found = loader.batches(two, 0, 30)
    held = [next(found) for _ in range(8)]
    assert same(held, list(loader.batches(plan, 0, 8)))
    del held
    places = set()
    expected = loader.batches(plan, 8, 30)
    for batch in found:
        places.add(batch.pixels.data_ptr())
        assert same([batch], [next(expected)])
    assert len(places) <= 8
    assert len(places) < 22


def test_a_worker_that_is_gone_is_one_sentence(plan: loader.LoaderPlan) -> None:
    """Two of them, of which the first is ended from outside, as the kernel does when memory runs out."""
    found = loader.batches(dataclasses.replace(plan, workers=2), 0, 10_000)
    next(found)
    mine = psutil.Process().children(recursive=True)
    workers = [
        child for child in mine if child.parent() != psutil.Process() and "forkserver" in " ".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[0].kill()
    with pytest.raises(RunError, match=r"data.workers: a process that prepares batches is gone .*lower data.workers"):
        for _ in found:
            pass


def test_memory_that_is_not_there_is_refused_before_it_is_needed(plan: loader.LoaderPlan) -> None:
    huge = dataclasses.replace(plan, workers=1, image_size=1 << 20)
    with pytest.raises(InputError, match=r"data.prefetch: 4 batches of pixels take 301,989,888 MiB and"):
        next(loader.batches(huge, 0, 1))


def test_a_cache_that_is_too_small_for_the_window_is_said(
    plan: loader.LoaderPlan, caplog: pytest.LogCaptureFixture
) -> None:
    next(loader.batches(plan, 0, 1))
    assert caplog.records == []
    next(loader.batches(dataclasses.replace(plan, cache_bytes=1000), 0, 1))
    assert "raise it or lower data.window_row_groups" in caplog.text


def test_a_seek_gives_what_a_walk_gives(plan: loader.LoaderPlan) -> None:
    assert same(whole(plan, 1, 0, 12, 15), whole(plan, 1, 0, 0, 15)[12:])


def test_batches_hold_the_samples_of_the_order(plan: loader.LoaderPlan) -> None:
    batches = list(loader.batches(plan, 0, 15))
    order = SampleOrder(plan.corpus.group_rows, seed=11, window_row_groups=3)
    read_ids = tokenizer.load("bpe", vocab=plan.vocabulary, context_length=16)
    all_captions = list(plan.corpus.captions())
    for step, batch in enumerate(batches):
        assert sorted(batch.samples.tolist()) == list(range(24 * step, 24 * step + 24))
        assert batch.rows.tolist() == order.rows(batch.samples.numpy()).tolist()
        usable = [row not in {swap.row for swap in batch.replaced} for row in batch.rows.tolist()]
        expected = read_ids([all_captions[row] for row in batch.rows.tolist()])
        assert torch.equal(batch.ids[usable], expected[usable])
    seen = Counter(row for batch in batches for row in batch.rows.tolist())
    assert sum(seen.values()) == 360
    assert set(seen) == set(range(330)), "360 samples are an epoch and a bit"


def test_a_broken_picture_is_replaced_and_noted(plan: loader.LoaderPlan) -> None:
    swaps = [swap for batch in loader.batches(plan, 0, 13) for swap in batch.replaced]
    assert len(swaps) == 1, "one epoch holds the one broken row once"
    shard = swaps[0].row // 100 * 100
    group = (shard, min(shard + 100, 330))
    assert swaps[0].by == replacement_row(swaps[0].row, 1, seed=11, rows=330, group=group)
    assert swaps[0].reason.startswith("not_an_image")


def test_rows_that_cannot_be_used_cost_few_reads_and_are_replaced_alike_by_all(
    plan: loader.LoaderPlan, tmp_path: Path, write_corpus: Callable[..., object], shapes: Callable[..., Pairs]
) -> None:
    """Three of ten pictures are broken: an epoch of 40 row groups of ten rows."""
    reads = []
    for name, broken in (("whole", 0), ("broken", 120)):
        pairs = shapes(400)
        pairs[:broken] = [(caption, b"broken") for caption, _ in pairs[:broken]]
        write_corpus(tmp_path / name, pairs, rows_per_shard=10)
        watched = Watched(shards(tmp_path / name))
        small = dataclasses.replace(plan, corpus=watched, window_row_groups=4, global_size=20, read_ahead=0)
        replaced = [swap for batch in loader.batches(small, 0, 20) for swap in batch.replaced]
        assert len(replaced) == broken
        reads.append(len(watched.read_groups))
    assert reads[0] >= 40
    assert reads[1] <= reads[0] + 4
    small = dataclasses.replace(small, corpus=shards(tmp_path / "broken"))
    assert same(whole(small, 1, 0, 0, 4), whole(small, 2, 0, 0, 4))
    assert same(whole(small, 1, 0, 0, 4), whole(small, 1, 2, 0, 4))


def test_a_corpus_without_pictures_is_refused(
    tmp_path: Path, plan: loader.LoaderPlan, write_corpus: Callable[..., object]
) -> None:
    write_corpus(tmp_path, [(f"caption {number}", None) for number in range(40)])
    bare = dataclasses.replace(plan, corpus=shards(tmp_path))
    with pytest.raises(InputError, match=r"no picture.*unusable; train on a corpus with pictures"):
        next(loader.batches(bare, 0, 1))


def test_an_error_in_a_worker_is_the_same_sentence(tmp_path: Path, plan: loader.LoaderPlan, corpus: Path) -> None:
    elsewhere = ShardCorpus(str(tmp_path), manifests.load(str(corpus)))
    broken = dataclasses.replace(plan, workers=1, corpus=elsewhere)
    with pytest.raises(InputError) as raised:
        next(loader.batches(broken, 0, 1))
    assert str(raised.value).startswith(str(tmp_path)), raised.value
    assert "Traceback" not in str(raised.value)


def test_transparency_lies_on_white(
    tmp_path: Path, plan: loader.LoaderPlan, write_corpus: Callable[..., object]
) -> None:
    out = io.BytesIO()
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(out, "PNG")
    write_corpus(tmp_path, [(f"nothing {number}", out.getvalue()) for number in range(24)])
    clear = dataclasses.replace(plan, corpus=shards(tmp_path))
    assert int(next(loader.batches(clear, 0, 1)).pixels.min()) == 255


@pytest.mark.usefixtures("s3_endpoint")
def test_s3_gives_the_same_batches(plan: loader.LoaderPlan, corpus: Path) -> None:
    boto3.client("s3").create_bucket(Bucket="trainer-data")
    for path in sorted(corpus.iterdir()):
        storage.write_atomic(f"s3://trainer-data/corpus/{path.name}", path.read_bytes())
    remote = dataclasses.replace(plan, corpus=shards("s3://trainer-data/corpus"))
    assert same(list(loader.batches(remote, 3, 5)), list(loader.batches(plan, 3, 5)))

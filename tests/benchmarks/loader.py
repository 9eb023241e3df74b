"""Batches for training on one core: webdataset with Pillow, torchvision and open_clip's transform and tokenizer, beside our loader.

    python -m tests.benchmarks.loader [SAMPLES] [PEERS]

3,000 JPEGs of quality 95 whose shorter side is 256 (cuts of photographs, drawn ones without the real data; 44 kB each), with real
captions, are written as tars and as a corpus of ours. Each loader makes batches of 64 at 224 pixels, whole: read, decoded, cropped,
tokenised, batched, handed to the training process. Both crops that open_clip knows: RandomResizedCrop(0.9, 1), and the shorter side to 224
and a random square. One core for the loader, its workers and the process that takes the batches; the numbers of workers that a user would
try (0, 1, 2), of which the best counts; three rounds in turn, medians.

The peer's batches are normalised float32. Ours are uint8, which the trainer normalises on the device; "normalised here" does it on the same
core, for those who would compare like with like. At the end the evaluation pixels of both are compared.

PEERS is a folder for the peers' environment (made once; by default in the folder for temporary files). The decisions that it supports:
libjpeg-turbo without Pillow, resizing by a kernel of our own, pixels in shared memory, uint8 until the device.
"""

import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipeline.content import image as images
from pipeline.contracts import manifest as manifests
from tests.benchmarks.data import peers
from tests.benchmarks.data.photographs import pairs, shard_rows
from trainer.config import AugmentationConfig, DataConfig
from trainer.data import loader, tars, transforms
from trainer.data.reader import Corpus
from trainer.data.shards import ShardCorpus

PEER = Path(__file__).parent / "data" / "loader_peer.py"
PACKAGES = (peers.TORCHVISION, "webdataset", "open_clip_torch", "timm")
CROPS = ("random_resized", "random_square")
BATCH = 64
SIZE = 224


def write(folder: Path, samples: int) -> None:
    """The pairs as tars, as a corpus, and some of the pictures as files."""
    found = pairs(samples)
    (folder / "tars").mkdir()
    (folder / "files").mkdir()
    for number in range(0, samples, 1000):
        with tarfile.open(folder / "tars" / f"{number // 1000:05d}.tar", "w") as tar:
            for place, (caption, picture) in enumerate(found[number : number + 1000], start=number):
                for name, data in ((f"{place:08d}.jpg", picture), (f"{place:08d}.txt", caption.encode())):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    for place, (_, picture) in enumerate(found[:200]):
        (folder / "files" / f"{place:05d}.jpg").write_bytes(picture)
    manifests.write_corpus(str(folder / "corpus"), [shard_rows(found)], rows_per_shard=2000)


def ours(folder: Path, source: str, crop: str, workers: int, samples: int, vocabulary: str, here: bool) -> float:
    """Samples/s of our loader, in this process."""
    corpus: Corpus = ShardCorpus(str(folder / "corpus"), manifests.load(str(folder / "corpus")))
    if source == "tars":
        corpus = tars.known_tars(tars.find(str(folder / "tars")), str(folder / tars.INDEX))
    defaults = DataConfig()
    plan = loader.LoaderPlan(
        corpus=corpus,
        tokenizer_kind="openai",
        vocabulary=vocabulary,
        context_length=77,
        image_size=SIZE,
        augmentation=AugmentationConfig.model_validate({"crop": crop}),
        seed=0,
        window_row_groups=defaults.window_row_groups,
        global_size=BATCH,
        rank=0,
        world_size=1,
        workers=workers,
        prefetch=defaults.prefetch,
        cache_bytes=defaults.cache_mib << 20,
        read_ahead=defaults.read_ahead,
    )
    batches = loader.batches(plan, 0, samples // BATCH)
    for _ in range(4):
        next(batches)
    started, count = time.perf_counter(), 0
    for batch in batches:
        pixels = transforms.normalise(batch.pixels) if here else batch.pixels
        count += len(pixels)
    return count / (time.perf_counter() - started)


def child(command: list[str]) -> float:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout.split()[-1])


def same_pixels(folder: Path, python: str) -> str:
    """How far our evaluation pixels are from torchvision's."""
    out = folder / "evaluation.npy"
    subprocess.run(
        [python, str(PEER), str(folder / "files"), "evaluation", str(SIZE), str(out)], check=True, capture_output=True
    )
    theirs = np.load(out)
    paths = sorted((folder / "files").iterdir())
    mine = np.stack([transforms.evaluation_pixels(images.decode(path.read_bytes()).rgb, SIZE) for path in paths])
    off = np.abs(mine.astype(int) - theirs)
    return f"evaluation pixels of {len(paths)} pictures: at most {off.max()} levels from torchvision's, {np.mean(off > 0):.2%} differ"


def main() -> None:
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 3_000
    default = Path(tempfile.gettempdir()) / "corpus-and-clip-loader-peers"
    python = peers.python_with(Path(sys.argv[2]) if len(sys.argv) > 2 else default, PACKAGES, ours=True)
    find = "import importlib.util; print(importlib.util.find_spec('open_clip').submodule_search_locations[0])"
    package = subprocess.run([python, "-c", find], capture_output=True, text=True, check=True).stdout.strip()
    vocabulary = f"{package}/bpe_simple_vocab_16e6.txt.gz"
    cpu = str(max(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, samples)
        tars.open_tars(tars.find(str(folder / "tars")), name, rank=0, world_size=1, wait=lambda: None)
        mine = [sys.executable, "-m", "tests.benchmarks.loader", "--one", name, cpu, str(samples), vocabulary]
        for crop in CROPS:
            rates: dict[tuple[str, int], list[float]] = {}
            for _ in range(3):
                for workers in (0, 1, 2):
                    peer = [python, "-W", "ignore", str(PEER), f"{name}/tars", crop, str(workers), str(BATCH), cpu]
                    rates.setdefault(("webdataset", workers), []).append(child(peer))
                    for kind in ("ours, Parquet", "ours, tars", "ours, Parquet, normalised here"):
                        rate = child([*mine, kind.split(", ")[1].lower(), crop, str(workers), str(kind.count("here"))])
                        rates.setdefault((kind, workers), []).append(rate)
            told(crop, {key: statistics.median(values) for key, values in rates.items()})
        print(same_pixels(folder, python))


def told(crop: str, rates: dict[tuple[str, int], float]) -> None:
    print(f"{crop}: samples/s on one core, with 0, 1 and 2 workers")
    peer = max(rate for (kind, _), rate in rates.items() if kind == "webdataset")
    for kind in dict.fromkeys(kind for kind, _ in rates):
        each = [rates[kind, workers] for workers in (0, 1, 2)]
        print(f"  {kind:<32}" + "".join(f"{rate:>8,.0f}" for rate in each) + f"{max(each) / peer:>8.2f}x")


def one(arguments: list[str]) -> None:
    """The side of a measurement that is ours, in a process of its own."""
    folder, cpu, samples, vocabulary, source, crop, workers, here = arguments
    os.sched_setaffinity(0, {int(cpu)})
    torch.set_num_threads(1)
    print(ours(Path(folder), source, crop, int(workers), int(samples), vocabulary, here == "1"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2:])
    else:
        main()

"""Training on one GPU: samples a second, MFU, memory and phases of four models, beside open_clip's own step in the same call.

    python -m tests.benchmarks.gpu_train                          # everything; about an hour on an H200
    python -m tests.benchmarks.gpu_train speed --models ViT-B/32  # one part, one model
    python -m tests.benchmarks.gpu_train speed --models tiny-vit --pairs 64 --compute fp32 --no-compile   # the arithmetic, on a CPU

speed: for each model the largest batch of those tried that both trainers hold; ours in bf16 weights, autocast and fp16, with and without
  compiled blocks, with and without activation checkpointing; open_clip's with its best flags. Drawn numbers, texts of full length, the
  median of ten steps after five. MFU counts forward and backward of the model's own operations against the dense peak of the data sheet.
shards: for each ViT the fastest of these from Parquet shards of JPEGs whose shorter side is 256, with captions of full length (so that
  the text tower's work is that of the drawn numbers), all cores but one decoding; what a core decodes, how many the model needs.
large: 32,768 pairs by gradient caching, for each ViT, and what it costs beside a step of one piece.

Each case runs in a process of its own. open_clip is looked for in the interpreter that --peer names (by default this one). Results are
printed as tables and written as JSON lines to --out.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pipeline.contracts import manifest as manifests
from tests.benchmarks.data.gpu_case import FULL_LENGTH, PHASES, Case, Measured
from tests.benchmarks.data.photographs import pairs, shard_rows
from trainer import tokenizer
from trainer.config import AugmentationConfig, DataConfig
from trainer.data import loader
from trainer.data.shards import ShardCorpus
from trainer.flops import known_peak

MODELS = ("ViT-B/32", "ViT-B/16", "ViT-L/14", "RN50")
WANTED_MFU = {"ViT-B/32": 0.40, "ViT-B/16": 0.45, "ViT-L/14": 0.50}
BATCHES = {
    "ViT-B/32": (4096, 2048, 1024),
    "ViT-B/16": (1536, 1024, 512),
    "ViT-L/14": (512, 256, 128),
    "RN50": (1024, 512, 256),
}
"""Tried in turn, without checkpointing; with it, four times as many pairs."""
THEIRS = {"autocast_bf16": "amp_bf16", "bf16": "pure_bf16", "fp16": "amp"}
"""What open_clip calls the precision. Its amp in fp16 keeps fp32 weights; ours keeps fp16 ones beside fp32 masters."""
LARGE = 32_768
SHARDS = 16_384
"""Pairs in the shards; read again and again, from the page cache: this asks what decoding costs, not disks."""
OUT_OF_MEMORY = "OutOfMemoryError"


@dataclasses.dataclass(frozen=True)
class Row:
    """What a table says of one case."""

    who: str
    case: Case
    found: Measured | None
    """None: it did not fit."""


def run(python: str, module: str, case: Case) -> Measured | None:
    """A case in a process of its own; None where the device's memory does not do. Raises SystemExit for any other failure."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.json"
        path.write_text(json.dumps(dataclasses.asdict(case)))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
        environment.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        done = subprocess.run(
            [python, "-m", f"tests.benchmarks.data.{module}", str(path)],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    if done.returncode:
        if OUT_OF_MEMORY in done.stderr or "out of memory" in done.stderr:
            return None
        raise SystemExit(f"{case}\n{done.stderr[-4000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def mfu(found: Measured, operations: int) -> float | None:
    """Of the device's dense peak in half precision; None where that is not known."""
    peak = known_peak(found.device)
    return None if peak is None else operations * found.rate / peak


def line_of(row: Row, operations: int) -> str:
    """One line of a table."""
    case, found = row.case, row.found
    how = f"{case.compute}{', compiled' if case.compile else ''}{', checkpointed' if case.checkpoint else ''}"
    start = f"{row.who:<10}{case.preset:<10}{how:<38}{case.pairs:>7,}"
    if found is None:
        return f"{start}   does not fit"
    share = mfu(found, operations)
    phases = (
        " ".join(f"{found.phases[name] / sum(found.phases.values()):>5.0%}" for name in PHASES) if found.phases else ""
    )
    utilisation = "      -" if share is None else f"{share:>7.1%}"
    return f"{start}{found.rate:>10,.0f}{utilisation}{found.peak_bytes / 1e9:>9.1f}{found.first_step:>8.0f}   {phases}"


_SHORT = " ".join(f"{name[:5]:>5}" for name in PHASES)
HEAD = f"{'':<58}{'pairs':>7}{'pairs/s':>10}{'MFU':>7}{'GB':>9}{'first s':>8}   {_SHORT}"


# ---- parts


def speed(settings: argparse.Namespace) -> Iterator[Row]:
    """Ours and open_clip's in the same batch, the largest that fits both."""
    for preset in settings.models:
        largest: int | None = None
        operations = 0
        for size in settings.pairs or BATCHES[preset]:
            ours = [
                Case(preset, size, compute, compile=compiles)
                for compute in settings.compute
                for compiles in settings.compile
            ]
            rows = [Row("ours", case, run(sys.executable, "gpu_ours", case)) for case in ours]
            theirs = [
                Case(preset, size, THEIRS[compute], compile=compiles)
                for compute in settings.compute
                if compute in THEIRS
                for compiles in settings.compile
            ]
            rows += [Row("open_clip", case, run(settings.peer, "gpu_peer", case)) for case in theirs if settings.peer]
            operations = next(
                (row.found.operations for row in rows if row.found is not None and row.found.operations), 0
            )
            told(rows, operations)
            yield from rows
            if all(row.found is not None for row in rows):
                largest = size
                break
        if largest is None or settings.pairs:
            continue
        checkpointed = [
            Row("ours", case, run(sys.executable, "gpu_ours", case))
            for case in [Case(preset, 4 * largest, settings.compute[0], compile=True, checkpoint=True)]
        ]
        told(checkpointed, operations)
        yield from checkpointed
        judge(preset, rows)


def judge(preset: str, rows: Sequence[Row]) -> None:
    """The issue's figures: MFU against what is asked, and ours against open_clip in samples/s and memory."""
    ours = [row for row in rows if row.who == "ours" and row.found is not None and row.found.operations]
    theirs = [row for row in rows if row.who == "open_clip" and row.found is not None]
    best = max(ours, key=lambda row: row.found.rate if row.found else 0.0, default=None)
    if best is None or best.found is None:
        return
    share = mfu(best.found, best.found.operations)
    if share is not None and preset in WANTED_MFU:
        print(
            f"{preset}: MFU {share:.1%}, {WANTED_MFU[preset]:.0%} is asked: {'met' if share >= WANTED_MFU[preset] else 'SHORT'}"
        )
    for peer in theirs:
        same = [
            row
            for row in ours
            if THEIRS.get(row.case.compute) == peer.case.compute and row.case.compile == peer.case.compile
        ]
        for row in same:
            if row.found is None or peer.found is None:
                continue
            faster, memory = row.found.rate / peer.found.rate, row.found.peak_bytes / max(1, peer.found.peak_bytes)
            how = f"{row.case.compute}{', compiled' if row.case.compile else ''}"
            print(
                f"{preset}, {how}: {faster:.2f} times open_clip's rate (1.3 is asked), {memory:.2f} of its memory (0.8 is asked)"
            )


def told(rows: Sequence[Row], operations: int) -> None:
    for row in rows:
        print(line_of(row, row.found.operations or operations if row.found else operations), flush=True)


def fastest(rows: Sequence[Row], preset: str) -> Case | None:
    """How ours was fastest without checkpointing."""
    ours = [
        row for row in rows if row.who == "ours" and row.case.preset == preset and row.found and not row.case.checkpoint
    ]
    return max(ours, key=lambda row: row.found.rate if row.found else 0.0).case if ours else None


def shards(settings: argparse.Namespace, rows: Sequence[Row]) -> Iterator[Row]:
    """From Parquet shards, beside drawn numbers."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        manifest, vocabulary = write_shards(Path(name), settings.shards)
        for preset in settings.models:
            best = fastest(rows, preset)
            if best is None or (preset not in WANTED_MFU and not settings.pairs):
                continue
            case = dataclasses.replace(best, manifest=manifest, vocabulary=vocabulary, workers=max(1, cores - 1))
            drawn, read = run(sys.executable, "gpu_ours", best), run(sys.executable, "gpu_ours", case)
            if drawn is None or read is None:
                continue
            told([Row("drawn", best, drawn), Row("shards", case, read)], drawn.operations)
            core = decode_rate(Path(name))
            print(
                f"{preset}: from shards {read.rate / drawn.rate:.1%} of the drawn numbers' rate (95 % is asked), waiting {read.waited:.1%};"
                f" a core makes {core:,.0f} pairs a second, the model needs {drawn.rate / core:.1f} cores of {cores}"
            )
            yield Row("shards", case, read)


def write_shards(folder: Path, samples: int) -> tuple[str, str]:
    """A corpus with captions that fill a text, and a vocabulary trained on them."""
    found = [(" ".join([caption] * 40), picture) for caption, picture in pairs(min(samples, 4096))]
    found = [found[number % len(found)] for number in range(samples)]
    manifests.write_corpus(str(folder / "corpus"), [shard_rows(found)], rows_per_shard=2048)
    vocabulary = str(folder / "vocabulary")
    tokenizer.train_vocabulary((caption for caption, _ in found[:512]), 2048, vocabulary)
    return str(folder / "corpus"), vocabulary


def decode_rate(folder: Path) -> float:
    """Pairs a second of one core: read, decoded, cropped, tokenised."""
    corpus = ShardCorpus(str(folder / "corpus"), manifests.load(str(folder / "corpus")))
    defaults = DataConfig()
    plan = loader.LoaderPlan(
        corpus=corpus,
        tokenizer_kind="bpe",
        vocabulary=str(folder / "vocabulary"),
        context_length=FULL_LENGTH,
        image_size=224,
        augmentation=AugmentationConfig(),
        seed=0,
        window_row_groups=defaults.window_row_groups,
        global_size=256,
        rank=0,
        world_size=1,
        workers=0,
        prefetch=defaults.prefetch,
        cache_bytes=defaults.cache_mib << 20,
        read_ahead=defaults.read_ahead,
    )
    batches = loader.batches(plan, 0, 9)
    next(batches)
    began = time.perf_counter()
    count = sum(len(batch.pixels) for batch in batches)
    return count / (time.perf_counter() - began)


def large(settings: argparse.Namespace, rows: Sequence[Row]) -> Iterator[Row]:
    """The paper's batch on one GPU, by gradient caching."""
    for preset in settings.models:
        best = fastest(rows, preset)
        if best is None or preset not in WANTED_MFU:
            continue
        plain = next(row.found for row in rows if row.case == best)
        case = dataclasses.replace(best, pairs=LARGE, micro=best.pairs, warmup=1, steps=2)
        found = run(sys.executable, "gpu_ours", case)
        told([Row("ours", case, found)], 0)
        if found is not None and plain is not None:
            print(
                f"{preset}: {LARGE:,} pairs in pieces of {best.pairs:,}: {found.seconds:.2f} s a step, {found.peak_bytes / 1e9:.1f} GB,"
                f" {plain.rate / found.rate:.2f} times the work of pieces alone"
            )
        yield Row("ours", case, found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], "speed", "shards", "large"], default=[])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument(
        "--pairs", nargs="+", type=int, help="batches to try, of every model; the issue's figures are not judged then"
    )
    parser.add_argument("--compute", nargs="+", default=["bf16", "autocast_bf16", "fp16"])
    parser.add_argument("--no-compile", dest="compile", action="store_const", const=[False], default=[True, False])
    parser.add_argument("--peer", default=sys.executable, help="a Python that has open_clip; '' for none")
    parser.add_argument("--shards", type=int, default=SHARDS, help="pairs in the shards")
    parser.add_argument("--out", type=Path, help="a file for the results, a line of JSON each")
    settings = parser.parse_args()
    if not torch.cuda.is_available() and not settings.pairs:
        print("no GPU here: nothing was measured (on a CPU name --models, --pairs and --compute)")
        return 0
    print(HEAD)
    parts = settings.parts or ["speed", "shards", "large"]
    rows = list(speed(settings))
    if "shards" in parts:
        rows += shards(settings, rows)
    if "large" in parts and not settings.pairs:
        rows += large(settings, rows)
    if settings.out is not None:
        settings.out.write_text("".join(f"{json.dumps(dataclasses.asdict(row))}\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

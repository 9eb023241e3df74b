"""Training on one GPU: samples a second, MFU, memory and phases of four models, beside open_clip's own step in the same call.

    python -m tests.benchmarks.gpu_train --out rows.jsonl               # everything; an hour or two on an H200
    python -m tests.benchmarks.gpu_train --out rows.jsonl --minutes 9   # what fits; the same command again goes on from there
    python -m tests.benchmarks.gpu_train speed --models tiny-vit --pairs 64 --compute fp32 --no-compile   # the arithmetic, on a CPU

The parts in their order, each for all models before the next begins, so that what is asked for first is known first:

speed: bf16 weights, compiled, in the largest batch of those tried that ours and open_clip's step with its best flags both hold; ours also
  with what is elementwise computed again, and the faster of these with short attention.
shards: the fastest of these from Parquet shards of JPEGs whose shorter side is 256, with captions of full length (so that the text tower's
  work is that of the drawn numbers), all cores but one decoding; what a core decodes, how many the model needs.
large: 32,768 pairs by gradient caching, for each ViT, and what it costs beside a step of one piece.
captions: the fastest with texts as long as captions of the web, both; ours also with and without what is elementwise computed again.
precisions: bf16 weights, autocast and fp16, with and without compiled blocks, both, and ours with what is elementwise computed again.
checkpointing: the fastest with whole blocks computed again, in a larger batch, both.

Drawn numbers, texts of full length unless "captions" is said, the median of ten steps after five. MFU counts forward and backward of the
model's own operations, of texts as long as they are computed, against the dense peak of the data sheet. What took the device longest is
listed for the fastest.

Each case runs in a process of its own: one that fails, or takes longer than --seconds, is said to have done so, and the others go on, with
a smaller batch first. What a case warned of stands below its row: figures of a slower way than was asked for are none. Results are printed
as they come, and added to the file of --out, a line of JSON each. What stands there is not measured again (`data/gpu_bench.py`), so a file
is of one machine. open_clip is looked for in the interpreter that --peer names (by default this one); without it there is nothing to
compare with and the exit code is 1, unless --peer '' says that this is meant; it is 1 too where a case failed or --minutes were too few.
MFU of open_clip's is of our operations, of which it does a few more. Its RN50 computes nothing again where it is asked to
(`modified_resnet.py` passes over it): the memory of its checkpointed row is not less.
"""

import argparse
import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pipeline.contracts import manifest as manifests
from tests.benchmarks.data.gpu_bench import (
    HEAD,
    NO_ROOM,
    SECONDS,
    Bench,
    OutOfTimeError,
    Row,
    how,
    mfu,
    of_theirs,
)
from tests.benchmarks.data.gpu_case import FULL_LENGTH, Case
from tests.benchmarks.data.photographs import pairs, shard_rows
from trainer import tokenizer

MODELS = ("ViT-B/32", "ViT-B/16", "ViT-L/14", "RN50")
WANTED_MFU = {"ViT-B/32": 0.40, "ViT-B/16": 0.45, "ViT-L/14": 0.50}
BATCHES = {
    "ViT-B/32": (4096, 3072, 2048, 1024),
    "ViT-B/16": (1536, 1280, 1024, 512),
    "ViT-L/14": (512, 384, 256, 128),
    "RN50": (1024, 512, 256),
}
"""Tried in turn, without checkpointing; with it, four times as many pairs, then twice."""
LARGE = 32_768
SHARDS = 16_384
"""Pairs in the shards; read again and again, from the page cache: this asks what decoding costs, not disks."""
IN_BF16 = ("bf16", "autocast_bf16")


# ---- parts


def speed(bench: Bench, settings: argparse.Namespace) -> None:
    """Ours and open_clip's in the same batch, and what makes ours faster or smaller."""
    found = {preset: first(bench, settings, preset) for preset in settings.models}
    for case in found.values():
        if case is not None:
            bench.run("ours", dataclasses.replace(case, checkpoint="elementwise"))
    for preset, case in found.items():
        if case is not None and case.compute != "fp32" and torch.cuda.is_available():
            best = fastest([row for row in bench.rows if not row.case.short_attention], preset) or case
            bench.run("ours", dataclasses.replace(best, short_attention=True))


def shards(bench: Bench, settings: argparse.Namespace) -> None:
    """From Parquet shards, beside drawn numbers."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:

        @functools.cache
        def written() -> tuple[str, str]:
            return write_shards(Path(folder), settings.shards)

        for preset, best in each_best(bench, settings):
            read = dataclasses.replace(best, manifest="shards", workers=max(1, cores - 1))
            rows = bench.known(("ours", best), ("shards", read))
            if not rows:
                manifest, vocabulary = written()
                read = dataclasses.replace(read, manifest=manifest, vocabulary=vocabulary)
            rows = bench.together(("ours", best), ("shards", read))
            drawn, found = rows[0].found, rows[-1].found
            if len(rows) < 2 or drawn is None or found is None:
                continue
            print(
                f"{preset}: from shards {found.rate / drawn.rate:.1%} of the drawn numbers' rate (95 % is asked), waiting"
                f" {found.waited:.1%}; a core makes {found.of_a_core:,.0f} pairs a second, the model needs"
                f" {drawn.rate / found.of_a_core:.1f} cores of {cores}"
            )


def large(bench: Bench, settings: argparse.Namespace) -> None:
    """The paper's batch on one GPU, by gradient caching."""
    for preset, best in each_best(bench, settings):
        if preset not in WANTED_MFU or settings.pairs:
            continue
        plain = bench.run("ours", best).found
        # Features of all pairs and chunks of their matrix come on top of a piece: one that just fitted alone may not.
        pieces = (best.pairs, best.pairs // 2)
        row = bench.ours(dataclasses.replace(best, pairs=LARGE, micro=piece, warmup=0, steps=2) for piece in pieces)
        if row is not None and row.found is not None and plain is not None:
            print(
                f"{preset}: {LARGE:,} pairs in pieces of {row.case.micro:,}: {row.found.seconds:.2f} s a step,"
                f" {row.found.peak_bytes / 1e9:.1f} GB, {plain.rate / row.found.rate:.2f} times the work of pieces alone"
            )


def captions(bench: Bench, settings: argparse.Namespace) -> None:
    """Texts as long as captions of the web, which ours computes as long as they are."""
    for _, best in each_best(bench, settings):
        found = bench.both(dataclasses.replace(best, captions=True, pairs=size) for size in sizes(settings, best))
        if found is not None:
            other = "none" if best.checkpoint == "elementwise" else "elementwise"
            bench.run("ours", dataclasses.replace(found.case, checkpoint=other))


def precisions(bench: Bench, settings: argparse.Namespace) -> None:
    """Each way to compute, in the batch that bf16 had or the next that fits."""
    for preset in settings.models:
        case = first(bench, settings, preset)
        if case is None:
            continue
        for compute in settings.compute:
            for compiles in settings.compile:
                way = dataclasses.replace(case, compute=compute, compile=compiles)
                found = bench.both(dataclasses.replace(way, pairs=size) for size in sizes(settings, case))
                if found is not None:
                    bench.run("ours", dataclasses.replace(found.case, checkpoint="elementwise"))


def checkpointing(bench: Bench, settings: argparse.Namespace) -> None:
    """Whole blocks computed again, in the largest batch that this makes possible."""
    for _, best in each_best(bench, settings):
        if not settings.pairs:
            bench.both(dataclasses.replace(best, pairs=times * best.pairs, checkpoint="blocks") for times in (4, 2, 1))


PARTS = {
    "speed": speed,
    "shards": shards,
    "large": large,
    "captions": captions,
    "precisions": precisions,
    "checkpointing": checkpointing,
}


# ---- what they share


def first(bench: Bench, settings: argparse.Namespace, preset: str) -> Case | None:
    """Ours in the largest batch that both hold, in the first of the ways that are asked for, which takes the least memory."""
    compute, compiles = settings.compute[0], settings.compile[0]
    found = bench.both(Case(preset, size, compute, compile=compiles) for size in settings.pairs or BATCHES[preset])
    return None if found is None else found.case


def each_best(bench: Bench, settings: argparse.Namespace) -> Iterator[tuple[str, Case]]:
    """Each model and how it was fastest so far."""
    for preset in settings.models:
        first(bench, settings, preset)
        best = fastest(bench.rows, preset)
        if best is not None:
            yield preset, best


def sizes(settings: argparse.Namespace, case: Case) -> list[int]:
    """Batches to try, from that of `case` down."""
    return [size for size in settings.pairs or BATCHES[case.preset] if size <= case.pairs]


def fastest(rows: Sequence[Row], preset: str) -> Case | None:
    """How ours was fastest with full texts and no product computed twice."""
    ours = [
        row
        for row in rows
        if row.who == "ours"
        and row.case.preset == preset
        and row.found
        and row.case.checkpoint != "blocks"
        and not row.case.captions
        and row.case.micro is None
    ]
    best = in_bf16_if_any(ours)
    return None if best is None else best.case


def in_bf16_if_any(rows: Sequence[Row]) -> Row | None:
    """The fastest in bf16, which the issue's figures are about; of another precision only where bf16 was not measured."""
    rows = [row for row in rows if row.case.compute in IN_BF16] or rows
    return max(rows, key=lambda row: row.found.rate if row.found else 0.0, default=None)


def judge(preset: str, rows: Sequence[Row]) -> None:
    """The issue's figures: MFU against what is asked, and ours against open_clip in samples/s and memory."""
    ours = [row for row in rows if row.who == "ours" and row.found is not None]
    best = in_bf16_if_any([row for row in ours if not row.case.captions])
    if best is None or best.found is None:
        return
    share = mfu(best.found, best.found.operations)
    if share is not None and preset in WANTED_MFU and best.case.compute in IN_BF16:
        print(
            f"{preset}, {how(best.case)}: MFU {share:.1%}, {WANTED_MFU[preset]:.0%} is asked:"
            f" {'met' if share >= WANTED_MFU[preset] else 'SHORT'}"
        )
    for name, part in best.found.kernels[:8]:
        print(f"  {part:>6.1%} {name[:100]}")
    for peer in rows:
        same = [row for row in ours if of_theirs(row.case) == peer.case]
        for row in same:
            if row.found is None or peer.found is None or peer.who != "open_clip":
                continue
            faster, memory = row.found.rate / peer.found.rate, row.found.peak_bytes / max(1, peer.found.peak_bytes)
            print(
                f"{preset}, {how(row.case)}: {faster:.2f} times open_clip's rate (1.3 is asked), {memory:.2f} of its memory (0.8 is asked)"
                f"{'' if row.call == peer.call else ', NOT of the same call'}"
            )


def write_shards(folder: Path, samples: int) -> tuple[str, str]:
    """A corpus with captions of as many words as a text has places, and a vocabulary trained on them."""
    found = [
        (" ".join((caption.split() * FULL_LENGTH)[:FULL_LENGTH]), picture)
        for caption, picture in pairs(min(samples, 4096))
    ]
    found = [found[number % len(found)] for number in range(samples)]
    manifests.write_corpus(str(folder / "corpus"), [shard_rows(found)], rows_per_shard=2048)
    vocabulary = str(folder / "vocabulary")
    tokenizer.train_vocabulary((caption for caption, _ in found[:512]), 2048, vocabulary)
    return str(folder / "corpus"), vocabulary


def has_peer(python: str) -> bool:
    return not subprocess.run(
        [python, "-c", "import open_clip, open_clip_train.precision"], check=False, capture_output=True
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument(
        "--pairs", nargs="+", type=int, help="batches to try, of every model; nothing is checkpointed or large then"
    )
    parser.add_argument("--compute", nargs="+", default=["bf16", "autocast_bf16", "fp16"])
    parser.add_argument("--no-compile", dest="compile", action="store_const", const=[False], default=[True, False])
    parser.add_argument("--only-compiled", dest="compile", action="store_const", const=[True])
    parser.add_argument("--peer", default=sys.executable, help="a Python that has open_clip; '' for none")
    parser.add_argument("--shards", type=int, default=SHARDS, help="pairs in the shards")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the longest that a case may take")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="the longest that this call may take")
    parser.add_argument("--out", type=Path, help="a file of results, read and added to: a line of JSON each")
    settings = parser.parse_args()
    if not torch.cuda.is_available() and not settings.pairs:
        print("no GPU here: nothing was measured (on a CPU name --models, --pairs and --compute)")
        return 0
    missed = settings.peer and not has_peer(settings.peer)
    if missed:
        print(f"no open_clip in {settings.peer}: NOT COMPARED with it (--peer names a Python that has it)", flush=True)
        settings.peer = ""
    print(f"torch {torch.__version__}\n{HEAD}", flush=True)
    bench = Bench(settings.peer, settings.seconds, minutes=settings.minutes, path=settings.out)
    done = False
    try:
        for part in settings.parts or PARTS:
            PARTS[part](bench, settings)
        done = True
    except OutOfTimeError:
        print(f"NOT ALL WAS MEASURED in {settings.minutes:g} minutes; the same command with --out goes on", flush=True)
    for preset in settings.models:
        judge(preset, [row for row in bench.rows if row.case.preset == preset])
    return 0 if done and not missed and all(row.why in ("", NO_ROOM) for row in bench.rows) else 1


if __name__ == "__main__":
    sys.exit(main())

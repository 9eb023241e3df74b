"""Training on one GPU: samples a second, MFU, memory and phases of four models, beside open_clip's own step in the same call.

    python -m tests.benchmarks.gpu_train --out rows.jsonl               # everything; an hour or two on an H200
    python -m tests.benchmarks.gpu_train --out rows.jsonl --minutes 9   # what fits; the same command again goes on from there
    python -m tests.benchmarks.gpu_train speed --models tiny-vit --pairs 64 --compute fp32 --no-compile   # the arithmetic, on a CPU

The parts in their order, each for all models before the next begins, so that what is asked for first is known first:

speed: bf16 weights, compiled, in the largest batch of those tried that ours and open_clip's step with its best flags both hold; ours also
  with activations, and with all that is elementwise, computed again, and the fastest of these with short attention.
shards: the fastest of these from Parquet shards of JPEGs whose shorter side is 256, with captions of full length (so that the text tower's
  work is that of the drawn numbers), all cores but one decoding; what a core decodes, how many the model needs.
large: 32,768 pairs by gradient caching, for each ViT, and what it costs beside a step of one piece.
captions: the fastest with texts as long as captions of the web, both; ours also with less and with more computed again.
precisions: bf16 weights, autocast and fp16, with and without compiled blocks, both, and ours with activations, then all that is elementwise
  computed again.
checkpointing: the fastest with whole blocks computed again, in a larger batch, both.

Drawn numbers, texts of full length unless "captions" is said, the median of ten steps after five. MFU counts forward and backward of the
model's own operations, of texts as long as they are computed, against the dense peak of the data sheet. What took the device longest is
listed for the fastest.

Each case runs in a process of its own: one that fails, or takes longer than --seconds, is said to have done so, and the others go on, with
a smaller batch first. What a case warned of stands below its row: figures of a slower way than was asked for are none. Results are printed
as they come, and added to the file of --out, a line of JSON each. What stands there is not tried again (`data/gpu_bench.py`), unless code,
versions or the device are others. open_clip is looked for in the interpreter that --peer names (by default this one); without it there is
nothing to compare with and the exit code is 1, unless --peer '' says that this is meant; it is 1 too where a case failed, a model has no
figure or --minutes were too few. MFU of open_clip's is of our operations, of which it does a few more. Its RN50 computes nothing again
where it is asked to (`modified_resnet.py` passes over it): the memory of its checkpointed row is not less.
"""

import argparse
import dataclasses
import functools
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tests.benchmarks.data.gpu_bench import (
    HEAD,
    NO_ROOM,
    SECONDS,
    Bench,
    OutOfTimeError,
    Row,
    apart,
    how,
    mfu,
    of_theirs,
    versions_of_ours,
    versions_of_peer,
)
from tests.benchmarks.data.gpu_case import AGAIN, FULL_LENGTH, Case
from tests.benchmarks.data.photographs import write_corpus
from tests.hollow_gpu import launched

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
WRITING = 60
"""Seconds; with less time left no shards are written, which takes half as long."""
STARTING = 60
"""Seconds until a batch of LARGE pairs is on its way through compiled towers."""
IN_BF16 = ("bf16", "autocast_bf16")


# ---- parts


def speed(bench: Bench, settings: argparse.Namespace) -> None:
    """Ours and open_clip's in the same batch, and what makes ours faster or smaller."""
    for preset in settings.models:
        case = first(bench, settings, preset)
        if case is None:
            continue
        for again in AGAIN:
            bench.run("ours", dataclasses.replace(case, checkpoint=again))
        if case.compute != "fp32" and torch.cuda.is_available():
            plain = fastest([row for row in bench.rows if not row.case.short_attention], case)
            bench.run("ours", dataclasses.replace(plain, short_attention=True))
        bench.both([fastest(bench.rows, case)])  # of one call, also where the rows before are of several


def shards(bench: Bench, settings: argparse.Namespace) -> None:
    """From Parquet shards, beside drawn numbers."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        name = f"{settings.shards}-pairs"

        @functools.cache
        def written() -> tuple[str, str]:
            bench.check_time(WRITING)
            return write_corpus(Path(folder), name, settings.shards, FULL_LENGTH)

        for preset, best in each_best(bench, settings):
            case = dataclasses.replace(best, manifest=name, workers=max(1, cores - 1))
            if not bench.known(("ours", best), ("shards", case)):
                manifest, vocabulary = written()
                case = dataclasses.replace(case, manifest=manifest, vocabulary=vocabulary)
            rows = bench.together(("ours", best), ("shards", case))
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
        # Features of all pairs and chunks of their matrix come on top of a piece: one that just fitted alone may not.
        pieces = (best.pairs, best.pairs // 2)
        cases = [dataclasses.replace(best, pairs=LARGE, micro=piece, warmup=0, steps=2) for piece in pieces]
        alone = bench.run("ours", best).found
        if alone is not None and not bench.known(("ours", cases[0])):
            # Three steps, each of which goes through the towers once more.
            bench.check_time(STARTING + 3 * 4 / 3 * LARGE / alone.rate)
        row = bench.ours(cases)
        beside = None if row is None else bench.beside(("ours", row.case), ("ours", best))
        if beside is None:
            print(f"{preset}: {LARGE:,} pairs could not be measured")
            continue
        found, plain = (one.found for one in beside)
        assert found is not None
        assert plain is not None
        print(
            f"{preset}: {LARGE:,} pairs in pieces of {beside[0].case.micro:,}: {found.seconds:.2f} s a step,"
            f" {found.peak_bytes / 1e9:.1f} GB, {plain.rate / found.rate:.2f} times the work of pieces alone{apart(*beside)}"
        )


def captions(bench: Bench, settings: argparse.Namespace) -> None:
    """Texts as long as captions of the web, which ours computes as long as they are."""
    for _, best in each_best(bench, settings):
        found = bench.both(dataclasses.replace(best, captions=True, pairs=size) for size in sizes(settings, best))
        if found is not None:
            for other in ("none", *AGAIN):
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
                    for again in AGAIN:
                        bench.run("ours", dataclasses.replace(found.case, checkpoint=again))


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
        case = first(bench, settings, preset)
        if case is not None:
            yield preset, fastest(bench.rows, case)


def sizes(settings: argparse.Namespace, case: Case) -> list[int]:
    """Batches to try, from that of `case` down."""
    return [size for size in settings.pairs or BATCHES[case.preset] if size <= case.pairs]


def fastest(rows: Sequence[Row], case: Case) -> Case:
    """How ours was fastest, in the same batch and precision as `case`, which has been measured, and with no product computed twice."""
    same = [
        row
        for row in rows
        if row.who == "ours"
        and row.found is not None
        and row.case.checkpoint != "blocks"
        and dataclasses.replace(row.case, checkpoint=case.checkpoint, short_attention=case.short_attention) == case
    ]
    return max(same, key=lambda row: row.found.rate if row.found else 0.0).case


def in_bf16_if_any(rows: Sequence[Row]) -> Row | None:
    """The fastest in bf16, which the issue's figures are about; of another precision only where bf16 was not measured."""
    rows = [row for row in rows if row.case.compute in IN_BF16] or rows
    return max(rows, key=lambda row: row.found.rate if row.found else 0.0, default=None)


def judge(bench: Bench, preset: str) -> bool:
    """Print the issue's figures: MFU against what is asked, and ours against open_clip in samples/s and memory. Whether there are any."""
    ours = [row for row in bench.rows if row.who == "ours" and row.case.preset == preset and row.found is not None]
    best = in_bf16_if_any([row for row in ours if not row.case.captions])
    if best is None or best.found is None:
        return False
    share = mfu(best.found, best.found.operations)
    if share is not None and preset in WANTED_MFU and best.case.compute in IN_BF16:
        print(
            f"{preset}, {how(best.case)}: MFU {share:.1%}, {WANTED_MFU[preset]:.0%} is asked:"
            f" {'met' if share >= WANTED_MFU[preset] else 'SHORT'}"
        )
    for name, part in best.found.kernels[:8]:
        print(f"  {part:>6.1%} {name[:100]}")
    compared = False
    for case in dict.fromkeys(row.case for row in ours):
        beside = bench.beside(("ours", case), ("open_clip", of_theirs(case)))
        if beside is None:
            continue
        found, theirs = (row.found for row in beside)
        assert found is not None
        assert theirs is not None
        faster, memory = found.rate / theirs.rate, found.peak_bytes / max(1, theirs.peak_bytes)
        print(
            f"{preset}, {how(case)}: {faster:.2f} times open_clip's rate (1.3 is asked), {memory:.2f} of its memory (0.8 is asked)"
            f"{apart(*beside)}"
        )
        compared = True
    return compared or not bench.compares(best.case)


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
    end = time.monotonic() + 60 * settings.minutes
    if not torch.cuda.is_available() and not settings.pairs:
        print("no GPU here: nothing was measured (on a CPU name --models, --pairs and --compute)")
        return 0
    versions = {"ours": versions_of_ours(), "open_clip": settings.peer and versions_of_peer(settings.peer)}
    missed = settings.peer and not versions["open_clip"]
    if missed:
        print(f"no open_clip in {settings.peer}: NOT COMPARED with it (--peer names a Python that has it)", flush=True)
        settings.peer = ""
    print(f"ours with torch {versions['ours']}; open_clip {versions['open_clip'] or 'none'}\n{HEAD}", flush=True)
    hollow = launched.tell_if_hollow()
    bench = Bench(settings.peer, settings.seconds, end=end, path=settings.out, versions=versions)
    done = False
    try:
        for part in settings.parts or PARTS:
            PARTS[part](bench, settings)
        done = True
    except OutOfTimeError:
        print(f"NOT ALL WAS MEASURED in {settings.minutes:g} minutes; the same command with --out goes on", flush=True)
    judged = [hollow or judge(bench, preset) for preset in settings.models]
    ran = all(row.why in ("", NO_ROOM) for row in bench.rows if row.case.preset in settings.models)
    return 0 if done and not missed and ran and all(judged) else 1


if __name__ == "__main__":
    sys.exit(main())

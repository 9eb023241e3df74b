"""Training on one GPU: samples a second, MFU, memory and phases of four models, beside open_clip's own step in the same call.

    python -m tests.benchmarks.gpu_train                          # everything; an hour or two on an H200
    python -m tests.benchmarks.gpu_train speed --models ViT-B/32 --compute bf16 --only-compiled --out rows.jsonl   # some minutes of it
    python -m tests.benchmarks.gpu_train speed --models tiny-vit --pairs 64 --compute fp32 --no-compile   # the arithmetic, on a CPU

speed: each model in bf16 weights, autocast and fp16, with and without compiled blocks, in the largest batch of those tried that ours and
  open_clip's step with its best flags both hold; ours also with what is elementwise computed again, and the fastest of these with short
  attention; then the fastest of all with texts as long as captions of the web, and with whole blocks computed again in a larger batch, both
  again. Drawn numbers, texts of full length unless "captions" is said, the median of ten steps after five. MFU counts forward and backward
  of the model's own operations, of texts as long as they are computed, against the dense peak of the data sheet. What took the device
  longest is listed for the fastest.
shards: the fastest of these from Parquet shards of JPEGs whose shorter side is 256, with captions of full length (so that the text tower's
  work is that of the drawn numbers), all cores but one decoding; what a core decodes, how many the model needs.
large: 32,768 pairs by gradient caching, for each ViT, and what it costs beside a step of one piece.

Each case runs in a process of its own: one that fails, or takes longer than --seconds, is said to have done so, and the others go on, with
a smaller batch first. What a case warned of stands below its row: figures of a slower way than was asked for are none.
Without "speed" only bf16 compiled is tried first, for the batch. open_clip is looked for in the interpreter that --peer names (by default
this one); without it there is nothing to compare with and the exit code is 1, unless --peer '' says that this is meant. Results are printed
as they come, and written to --out with them, a line of JSON each; MFU of open_clip's is of our operations, of which it does a few more. Its
RN50 computes nothing again where it is asked to (`modified_resnet.py` passes over it): the memory of its checkpointed row is not less.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

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
    "ViT-B/32": (4096, 3072, 2048, 1024),
    "ViT-B/16": (1536, 1280, 1024, 512),
    "ViT-L/14": (512, 384, 256, 128),
    "RN50": (1024, 512, 256),
}
"""Tried in turn, without checkpointing; with it, four times as many pairs, then twice."""
THEIRS = {"autocast_bf16": "amp_bf16", "bf16": "pure_bf16", "fp16": "amp", "fp32": "fp32"}
"""What open_clip calls the precision. Its amp in fp16 keeps fp32 weights; ours keeps fp16 ones beside fp32 masters."""
LARGE = 32_768
SHARDS = 16_384
"""Pairs in the shards; read again and again, from the page cache: this asks what decoding costs, not disks."""
SECONDS = 900
NO_ROOM = "does not fit"
_NO_ROOM = re.compile(r"OutOfMemoryError|out of memory|STATUS_ALLOC_FAILED|unable to find an engine", re.IGNORECASE)
"""What PyTorch, cuBLAS and cuDNN say of a batch that is too large."""
_WARNING = re.compile(r"^W\d{4} |^WARNING|\[WARNING\]|\w+Warning: ")
"""As torch, the standard library, DeepSpeed and `warnings` begin them."""
IN_BF16 = ("bf16", "autocast_bf16")


@dataclasses.dataclass(frozen=True)
class Row:
    """What a table says of one case."""

    who: str
    case: Case
    found: Measured | None
    why: str = ""
    """Where nothing was found: NO_ROOM, or what went wrong."""
    warnings: Sequence[str] = ()


class Bench:
    """Runs cases one after the other, and tells and keeps what it finds."""

    def __init__(self, peer: str, seconds: float, out: IO[str] | None = None) -> None:
        self.peer = peer
        self.rows: list[Row] = []
        self._seconds, self._out = seconds, out
        self._operations: dict[tuple[str, bool], int] = {}

    def run(self, who: str, case: Case) -> Row:
        """`who`: whose step; "open_clip", or else a name for ours."""
        theirs = who == "open_clip"
        python, module = (self.peer, "gpu_peer") if theirs else (sys.executable, "gpu_ours")
        row = Row(who, case, *run(python, module, case, self._seconds))
        if row.found is not None and row.found.operations:
            self._operations[case.preset, case.captions] = row.found.operations
        print(line_of(row, self._operations.get((case.preset, case.captions))), *row.warnings, sep="\n    ", flush=True)
        if self._out is not None:
            print(json.dumps(dataclasses.asdict(row)), file=self._out, flush=True)
        self.rows.append(row)
        return row

    def ours(self, cases: Iterable[Case]) -> Row | None:
        """Ours of the first of `cases` that can be measured; the next one is smaller."""
        return next((row for row in (self.run("ours", case) for case in cases) if row.found is not None), None)

    def both(self, cases: Iterable[Case]) -> Row | None:
        """The first of `cases` that can be measured, also the peer's of the same if it fits; ours of it. The next one is smaller."""
        for case in cases:
            ours = self.run("ours", case)
            if ours.found is None:
                continue
            if not self.peer or case.compute not in THEIRS:
                return ours
            theirs = self.run("open_clip", of_theirs(case))
            if theirs.why != NO_ROOM:
                return ours
        return None


def of_theirs(case: Case) -> Case:
    """The same of open_clip, which knows two of our three ways of checkpointing."""
    checkpoint = "none" if case.checkpoint == "elementwise" else case.checkpoint
    return dataclasses.replace(case, compute=THEIRS.get(case.compute, ""), checkpoint=checkpoint, short_attention=False)


def run(python: str, module: str, case: Case, seconds: float = SECONDS) -> tuple[Measured | None, str, list[str]]:
    """A case in a process of its own: what it found, or why it found nothing, and what it warned of."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.json"
        path.write_text(json.dumps(dataclasses.asdict(case)))
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
        environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        command = [python, "-m", f"tests.benchmarks.data.{module}", str(path)]
        # No pipes: a compiler's or loader's process that outlives the case would hold them open.
        with open(path.with_name("out"), "w+") as out, open(path.with_name("errors"), "w+") as errors:
            try:
                code = subprocess.run(
                    command, stdout=out, stderr=errors, check=False, env=environment, timeout=seconds
                ).returncode
            except subprocess.TimeoutExpired:
                return None, f"took more than {seconds:,.0f} s", []
        said, complaint = path.with_name("out").read_text(), path.with_name("errors").read_text()
    # Libraries in C may have said something after it.
    found = next((line for line in reversed(said.splitlines()) if line.startswith("{")), "")
    if code or not found:
        return None, NO_ROOM if _NO_ROOM.search(complaint) else f"FAILED ({code}): {complaint[-3000:]}", []
    warned = dict.fromkeys(line[:300] for line in complaint.splitlines() if _WARNING.search(line))
    return Measured(**json.loads(found)), "", list(warned)[:10]


def mfu(found: Measured, operations: int) -> float | None:
    """Of the device's dense peak in half precision; None where that is not known."""
    peak = known_peak(found.device)
    return None if peak is None else operations * found.rate / peak


def how(case: Case) -> str:
    said = {
        "compiled": case.compile,
        f"{case.checkpoint} again": case.checkpoint != "none",
        "short attention": case.short_attention,
        "captions": case.captions,
    }
    return ", ".join([case.compute, *(name for name, is_so in said.items() if is_so)])


def line_of(row: Row, operations: int | None) -> str:
    """One line of a table. `operations` of a pair, where they are known: for MFU."""
    case, found = row.case, row.found
    start = f"{row.who:<10}{case.preset:<10}{how(case):<70}{case.pairs:>7,}"
    if found is None:
        return f"{start}   {row.why}"
    share = None if operations is None else mfu(found, operations)
    phases = (
        " ".join(f"{found.phases[name] / sum(found.phases.values()):>5.0%}" for name in PHASES) if found.phases else ""
    )
    utilisation = "      -" if share is None else f"{share:>7.1%}"
    return f"{start}{found.rate:>10,.0f}{utilisation}{found.peak_bytes / 1e9:>9.1f}{found.first_step:>8.0f}   {phases}"


_SHORT = " ".join(f"{name[:5]:>5}" for name in PHASES)
HEAD = f"{'':<90}{'pairs':>7}{'pairs/s':>10}{'MFU':>7}{'GB':>9}{'first s':>8}   {_SHORT}"


# ---- parts


def cases_of(preset: str, settings: argparse.Namespace, compute: str, *, compiles: bool) -> list[Case]:
    return [Case(preset, size, compute, compile=compiles) for size in settings.pairs or BATCHES[preset]]


def speed(bench: Bench, settings: argparse.Namespace) -> None:
    """Ours and open_clip's in the same batch, the largest that fits both."""
    for preset in settings.models:
        largest = None
        for compute in settings.compute:
            for compiles in settings.compile:
                cases = cases_of(preset, settings, compute, compiles=compiles)
                # The first one takes the least memory.
                found = bench.both(case for case in cases if largest is None or case.pairs <= largest)
                if found is not None:
                    largest = largest or found.case.pairs
                    bench.run("ours", dataclasses.replace(found.case, checkpoint="elementwise"))
        best = fastest(bench.rows, preset)
        if best is not None and best.compute != "fp32" and torch.cuda.is_available():
            bench.run("ours", dataclasses.replace(best, short_attention=True))
            best = fastest(bench.rows, preset)
        if best is not None:
            bench.both([dataclasses.replace(best, captions=True)])
            other = "none" if best.checkpoint == "elementwise" else "elementwise"
            bench.run("ours", dataclasses.replace(best, captions=True, checkpoint=other))
        if best is not None and not settings.pairs:
            bench.both(dataclasses.replace(best, pairs=times * best.pairs, checkpoint="blocks") for times in (4, 2, 1))
        judge(preset, [row for row in bench.rows if row.case.preset == preset])


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
            )


def in_bf16_if_any(rows: Sequence[Row]) -> Row | None:
    """The fastest in bf16, which the issue's figures are about; of another precision only where bf16 was not measured."""
    rows = [row for row in rows if row.case.compute in IN_BF16] or rows
    return max(rows, key=lambda row: row.found.rate if row.found else 0.0, default=None)


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
    ]
    best = in_bf16_if_any(ours)
    return None if best is None else best.case


def shards(bench: Bench, settings: argparse.Namespace) -> None:
    """From Parquet shards, beside drawn numbers."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        manifest, vocabulary = write_shards(Path(name), settings.shards)
        core = decode_rate(Path(name))
        for preset in settings.models:
            best = fastest(bench.rows, preset)
            if best is None:
                continue
            case = dataclasses.replace(best, manifest=manifest, vocabulary=vocabulary, workers=max(1, cores - 1))
            drawn, read = bench.run("drawn", best).found, bench.run("shards", case).found
            if drawn is None or read is None:
                continue
            print(
                f"{preset}: from shards {read.rate / drawn.rate:.1%} of the drawn numbers' rate (95 % is asked), waiting {read.waited:.1%};"
                f" a core makes {core:,.0f} pairs a second, the model needs {drawn.rate / core:.1f} cores of {cores}"
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


def large(bench: Bench, settings: argparse.Namespace) -> None:
    """The paper's batch on one GPU, by gradient caching."""
    for preset in settings.models:
        best = fastest(bench.rows, preset)
        if best is None or preset not in WANTED_MFU:
            continue
        plain = next(row.found for row in bench.rows if row.who == "ours" and row.case == best)
        # Features of all pairs and chunks of their matrix come on top of a piece: one that just fitted alone may not.
        pieces = (best.pairs, best.pairs // 2)
        cases = (dataclasses.replace(best, pairs=LARGE, micro=piece, warmup=0, steps=2) for piece in pieces)
        row = bench.ours(cases)
        found = None if row is None else row.found
        if row is not None and found is not None and plain is not None:
            print(
                f"{preset}: {LARGE:,} pairs in pieces of {row.case.micro:,}: {found.seconds:.2f} s a step, {found.peak_bytes / 1e9:.1f} GB,"
                f" {plain.rate / found.rate:.2f} times the work of pieces alone"
            )


def has_peer(python: str) -> bool:
    return not subprocess.run(
        [python, "-c", "import open_clip, open_clip_train.precision"], check=False, capture_output=True
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], "speed", "shards", "large"], default=[])
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
    parser.add_argument("--out", type=Path, help="a file that the results are added to, a line of JSON each")
    settings = parser.parse_args()
    if not torch.cuda.is_available() and not settings.pairs:
        print("no GPU here: nothing was measured (on a CPU name --models, --pairs and --compute)")
        return 0
    missed = settings.peer and not has_peer(settings.peer)
    if missed:
        print(f"no open_clip in {settings.peer}: NOT COMPARED with it (--peer names a Python that has it)", flush=True)
        settings.peer = ""
    parts = settings.parts or ["speed", "shards", "large"]
    print(f"torch {torch.__version__}\n{HEAD}", flush=True)
    with open(settings.out or os.devnull, "a", encoding="utf-8") as out:
        bench = Bench(settings.peer, settings.seconds, out)
        if "speed" in parts:
            speed(bench, settings)
        else:
            for preset in settings.models:
                bench.ours(cases_of(preset, settings, settings.compute[0], compiles=settings.compile[0]))
        if "shards" in parts:
            shards(bench, settings)
        if "large" in parts and not settings.pairs:
            large(bench, settings)
    return 0 if not missed and all(row.why in ("", NO_ROOM) for row in bench.rows) else 1


if __name__ == "__main__":
    sys.exit(main())

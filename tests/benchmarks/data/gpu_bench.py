"""The table of the benchmark `gpu_train`: runs its cases one after the other, and keeps, reads again and prints what was found.

A case that was measured is not measured again, in the same call or in a later one with the same file, unless the code of its side has
changed since or it had failed. What is compared is of one call where `together` took it; a line says where it is not.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from tests.benchmarks.data.gpu_case import PHASES, Case, Measured
from trainer.flops import known_peak

THEIRS = {"autocast_bf16": "amp_bf16", "bf16": "pure_bf16", "fp16": "amp", "fp32": "fp32"}
"""What open_clip calls the precision. Its amp in fp16 keeps fp32 weights; ours keeps fp16 ones beside fp32 masters."""
SECONDS = 900
NO_ROOM = "does not fit"
_NO_ROOM = re.compile(r"OutOfMemoryError|out of memory|STATUS_ALLOC_FAILED|unable to find an engine", re.IGNORECASE)
"""What PyTorch, cuBLAS and cuDNN say of a batch that is too large."""
_WARNING = re.compile(r"^W\d{4} |^WARNING|\[WARNING\]|\w+Warning: ")
"""As torch, the standard library, DeepSpeed and `warnings` begin them."""
_CASES = "tests/benchmarks/data"
_MADE_OF = {"ours": ("trainer", "pipeline/contracts", f"{_CASES}/gpu_ours.py"), "open_clip": (f"{_CASES}/gpu_peer.py",)}


class OutOfTimeError(Exception):
    """The minutes of this call are over; what was found until then is kept."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What a table says of one case."""

    who: str
    case: Case
    found: Measured | None
    why: str = ""
    """Where nothing was found: NO_ROOM, or what went wrong."""
    warnings: Sequence[str] = ()
    call: str = ""
    """When the call began that measured it."""
    code: str = ""
    """Digest of the code that did."""


class Bench:
    """What was measured in this call, and in earlier ones with the same `path`.

    peer: a Python that has open_clip, "" for none. seconds: the longest that a case may take. minutes: of this call, after which
    OutOfTimeError ends it.
    """

    def __init__(
        self, peer: str, seconds: float = SECONDS, *, minutes: float = float("inf"), path: Path | None = None
    ) -> None:
        self.peer = peer
        self._seconds, self._end, self._path = seconds, time.monotonic() + 60 * minutes, path
        self._call = datetime.now(UTC).isoformat()
        self._found: dict[tuple[str, Case], Row] = {}
        self._told: set[tuple[str, Case]] = set()
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                self._take_up(line)

    @property
    def rows(self) -> list[Row]:
        return list(self._found.values())

    def run(self, who: str, case: Case, *, again: bool = False) -> Row:
        """A case, measured unless it is known. `who`: whose step; "open_clip", or else a name for ours."""
        key = _key(who, case)
        row = None if again else self._found.get(key)
        if row is None:
            row = self._measure(who, case)
            self._found[key] = row
            if self._path is not None:
                with open(self._path, "a", encoding="utf-8") as out:
                    print(json.dumps(dataclasses.asdict(row)), file=out)
        if again or key not in self._told:
            self._told.add(key)
            before = [] if row.call == self._call else [f"measured at {row.call[:16]}"]
            print(line_of(row, self._operations(case)), *before, *row.warnings, sep="\n    ", flush=True)
        return row

    def known(self, *wanted: tuple[str, Case]) -> list[Row]:
        """Those of `wanted` in their order up to the first that found nothing, if all of these are of one call; else []."""
        rows: list[Row] = []
        for who, case in wanted:
            row = self._found.get(_key(who, case))
            if row is None or row.call != (rows or [row])[0].call:
                return []
            rows.append(row)
            if row.found is None:
                break
        return rows

    def together(self, *wanted: tuple[str, Case]) -> list[Row]:
        """Rows of one call, to be compared: those of `wanted` up to the first that finds nothing."""
        again = not self.known(*wanted)
        rows: list[Row] = []
        for who, case in wanted:
            before = self._found.get(_key(who, case))
            rows.append(self.run(who, case, again=again and before is not None and before.call != self._call))
            if rows[-1].found is None:
                break
        return rows

    def ours(self, cases: Iterable[Case]) -> Row | None:
        """Ours of the first of `cases` that can be measured; the next one is smaller."""
        return next((row for row in (self.run("ours", case) for case in cases) if row.found is not None), None)

    def both(self, cases: Iterable[Case]) -> Row | None:
        """The first of `cases` that can be measured, also the peer's of the same if it fits; ours of it. The next one is smaller."""
        for case in cases:
            compared = self.peer and case.compute in THEIRS
            rows = self.together(("ours", case), *([("open_clip", of_theirs(case))] if compared else []))
            if rows[0].found is not None and rows[-1].why != NO_ROOM:
                return rows[0]
        return None

    def _measure(self, who: str, case: Case) -> Row:
        theirs = who == "open_clip"
        python, module = (self.peer, "gpu_peer") if theirs else (sys.executable, "gpu_ours")
        left = self._end - time.monotonic()
        if left <= 0:
            raise OutOfTimeError
        found, why, warnings = run(python, module, case, min(left, self._seconds))
        if found is None and time.monotonic() >= self._end:
            raise OutOfTimeError  # it was cut off, which says nothing of it
        return Row(who, case, found, why, warnings, self._call, code_of(who))

    def _operations(self, case: Case) -> int | None:
        """Of a pair, as ours counted them; None where none of ours is known."""
        return next(
            (
                row.found.operations
                for row in self._found.values()
                if row.found and row.found.operations and _task(row.case) == _task(case)
            ),
            None,
        )

    def _take_up(self, line: str) -> None:
        """A row of an earlier call, if it is whole, says something of the case, and the code is still the same."""
        try:
            said = json.loads(line)
        except ValueError:
            return  # the call was killed while it wrote
        if said["why"] in ("", NO_ROOM) and said["code"] == code_of(said["who"]):
            found = Measured(**said["found"]) if said["found"] else None
            row = Row(**said | {"case": Case(**said["case"]), "found": found})
            self._found[_key(row.who, row.case)] = row


def _key(who: str, case: Case) -> tuple[str, Case]:
    """What a case is measured for; wherever its shards lie."""
    return who, dataclasses.replace(case, manifest=case.manifest and "shards", vocabulary=None)


def _task(case: Case) -> tuple[str, bool]:
    return case.preset, case.captions


@functools.cache
def code_of(who: str) -> str:
    """A digest of the code that measures this side, and for ours of torch's version; from the checkout's root."""
    digest = hashlib.sha256(b"" if who == "open_clip" else torch.__version__.encode())
    for place in (*_MADE_OF.get(who, _MADE_OF["ours"]), f"{_CASES}/gpu_case.py"):
        found = sorted(Path(place).rglob("*")) if Path(place).is_dir() else [Path(place)]
        for path in found:
            if path.suffix in (".py", ".toml"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


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
        f"pieces of {case.micro}": case.micro is not None,
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

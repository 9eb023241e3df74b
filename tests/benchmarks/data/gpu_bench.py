"""The table of the benchmark `gpu_train`: runs its cases one after the other, and keeps, reads again and prints what was found.

A case that was measured, or failed, is not tried again, in the same call or in a later one with the same file, unless the code of its
side, torch, open_clip or the device are others, or a comparison has need of it: what is compared is of one call, or a line says that it is
not. To have a case tried again take its line out of the file.
"""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.data.gpu_case import AGAIN, PHASES, Case, Measured
from trainer.flops import known_peak

THEIRS = {"autocast_bf16": "amp_bf16", "bf16": "pure_bf16", "fp16": "amp", "fp32": "fp32"}
"""What open_clip calls the precision. Its amp in fp16 keeps fp32 weights; ours keeps fp16 ones beside fp32 masters."""
SECONDS = 450
"""The longest that a case may take: 32,768 pairs of a ViT-L/14 take three steps of some 45 s."""
LEAST = 45
"""Seconds; with less time left no case is begun."""
NO_ROOM = "does not fit"
_NO_ROOM = re.compile(r"OutOfMemoryError|out of memory|STATUS_ALLOC_FAILED|unable to find an engine", re.IGNORECASE)
"""What PyTorch, cuBLAS and cuDNN say of a batch that is too large."""
_WARNING = re.compile(r"^W\d{4} |^WARNING|\[WARNING\]|\w+Warning: ")
"""As torch, the standard library, DeepSpeed and `warnings` begin them."""
_CASES = "tests/benchmarks/data"
_MADE_OF = {
    "ours": ("trainer", "pipeline/contracts", f"{_CASES}/gpu_ours.py", f"{_CASES}/photographs.py"),
    "open_clip": (f"{_CASES}/gpu_peer.py",),
}
_VERSIONS = "import torch; print(torch.__version__); print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU')"
"""Asked of another process: one that asks takes memory of the GPU."""


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
    """Digest of the code that did, and of the versions and the device that it had."""


class Bench:
    """What was measured in this call, and in earlier ones with the same `path`.

    peer: a Python that has open_clip, "" for none. seconds: the longest that a case may take. end: the `time.monotonic()` at which
    OutOfTimeError ends the call. versions: of both sides, "ours" and "open_clip": what else than code their figures are of.
    """

    def __init__(
        self,
        peer: str,
        seconds: float = SECONDS,
        *,
        end: float = float("inf"),
        path: Path | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self.peer = peer
        self.rows: list[Row] = []
        """Of all calls, the newest last."""
        self._seconds, self._end, self._path = seconds, end, path
        self._code = {who: code_of(who, (versions or {}).get(who, "")) for who in _MADE_OF}
        self._call = datetime.now(UTC).isoformat()
        self._told: set[int] = set()
        if path is not None and path.exists():
            self._take_up(path)

    def run(self, who: str, case: Case) -> Row:
        """A case, measured unless it is known. `who`: whose step; "open_clip", or else a name for ours."""
        known = self._of(who, case)
        found = [row for row in known if row.found is not None] or known
        return self._tell(found[-1]) if found else self._measure(who, case)

    def known(self, *wanted: tuple[str, Case]) -> list[Row]:
        """Those of `wanted`, if all of them are of one call, the newest such call; else []."""
        for call in dict.fromkeys(row.call for row in reversed(self.rows)):
            rows = [self._of_call(who, case, call) for who, case in wanted]
            if all(rows):
                return [row for row in rows if row is not None]
        return []

    def together(self, *wanted: tuple[str, Case]) -> list[Row]:
        """Rows of one call, to be compared: those of `wanted` up to the first that finds nothing."""
        rows = [self._tell(row) for row in self.known(*wanted)]
        if not rows:
            for who, case in wanted:
                row = self._of_call(who, case, self._call)
                rows.append(self._measure(who, case) if row is None else self._tell(row))
                if rows[-1].found is None:
                    break
        return rows

    def beside(self, one: tuple[str, Case], other: tuple[str, Case]) -> tuple[Row, Row] | None:
        """What was found of both, the newest; of one call if there is such a one (`apart` says if not)."""
        ours, theirs = ([row for row in self._of(*wanted) if row.found is not None] for wanted in (one, other))
        pairs = [(row, peer) for row in ours for peer in theirs if row.call == peer.call]
        pairs = pairs or [(row, peer) for row in ours for peer in theirs]
        return pairs[-1] if pairs else None

    def ours(self, cases: Iterable[Case]) -> Row | None:
        """Ours of the first of `cases` that can be measured; the next one is smaller."""
        return next((row for row in (self.run("ours", case) for case in cases) if row.found is not None), None)

    def both(self, cases: Iterable[Case]) -> Row | None:
        """The first of `cases` that can be measured, also the peer's of the same if it fits; ours of it. The next one is smaller."""
        for case in cases:
            rows = self.together(("ours", case), *([("open_clip", of_theirs(case))] if self.compares(case) else []))
            if rows[0].found is not None and rows[-1].why != NO_ROOM:
                return rows[0]
        return None

    def compares(self, case: Case) -> bool:
        """Whether the peer is asked for the same."""
        return bool(self.peer) and case.compute in THEIRS

    def check_time(self, needed: float = 0) -> None:
        """Raise OutOfTimeError if fewer seconds are left than are `needed`, or than a case takes at the least."""
        if self._end - time.monotonic() < max(needed, LEAST):
            raise OutOfTimeError

    def _of(self, who: str, case: Case) -> list[Row]:
        key = _key(who, case)
        return [row for row in self.rows if _key(row.who, row.case) == key]

    def _of_call(self, who: str, case: Case, call: str) -> Row | None:
        """What the call knows of the case: what never found anything, in whatever call, is not tried again."""
        known = self._of(who, case)
        if known and all(row.found is None for row in known):
            return known[-1]
        return next((row for row in reversed(known) if row.call == call), None)

    def _measure(self, who: str, case: Case) -> Row:
        self.check_time()
        theirs = who == "open_clip"
        python, module = (self.peer, "gpu_peer") if theirs else (sys.executable, "gpu_ours")
        given = min(self._end - time.monotonic(), self._seconds)
        found, why, warnings = run(python, module, case, given)
        if found is None and given < self._seconds and time.monotonic() >= self._end:
            raise OutOfTimeError  # it was cut off before its time, which says nothing of it
        row = Row(who, case, found, why, warnings, self._call, self._code["open_clip" if theirs else "ours"])
        self.rows.append(row)
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as out:
                print(json.dumps(dataclasses.asdict(row)), file=out)
        return self._tell(row)

    def _tell(self, row: Row) -> Row:
        """Print a row, once."""
        if id(row) not in self._told:
            self._told.add(id(row))
            before = [] if row.call == self._call else [f"measured at {row.call[:16]}"]
            print(line_of(row, self._operations(row.case)), *before, *row.warnings, sep="\n    ", flush=True)
        return row

    def _operations(self, case: Case) -> int | None:
        """Of a pair, as ours counted them; None where none of ours is known."""
        of_task = (row.found for row in self.rows if _task(row.case) == _task(case))
        return next((found.operations for found in of_task if found is not None and found.operations), None)

    def _take_up(self, path: Path) -> None:
        """The rows of earlier calls that are of the same code, versions and device."""
        said = path.read_text()
        if said and not said.endswith("\n"):
            with open(path, "a", encoding="utf-8") as out:
                print(file=out)  # a call was killed while it wrote
        for line in said.splitlines():
            try:
                row = _row_of(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # cut off, or of other code: which has other fields, perhaps
            if row.code == self._code["open_clip" if row.who == "open_clip" else "ours"]:
                self.rows.append(row)


def apart(one: Row, other: Row) -> str:
    """What to say of a comparison."""
    return "" if one.call == other.call else ", NOT of the same call"


def _row_of(said: dict[str, Any]) -> Row:
    found = Measured(**said["found"]) if said["found"] else None
    return Row(**said | {"case": Case(**said["case"]), "found": found})


def _key(who: str, case: Case) -> tuple[str, Case]:
    """What a case is measured for; wherever its shards lie."""
    return who, dataclasses.replace(case, manifest=case.manifest and Path(case.manifest).name, vocabulary=None)


def _task(case: Case) -> tuple[str, bool]:
    return case.preset, case.captions


def code_of(who: str, versions: str = "") -> str:
    """A digest of the code that measures this side, from the checkout's root, and of `versions`."""
    digest = hashlib.sha256(versions.encode())
    for place in (*_MADE_OF[who], f"{_CASES}/gpu_case.py"):
        found = sorted(Path(place).rglob("*")) if Path(place).is_dir() else [Path(place)]
        for path in found:
            if path.suffix in (".py", ".toml"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def versions_of_ours() -> str:
    """What ours is measured with: torch's version and the device."""
    return _said_by(sys.executable, _VERSIONS)


def versions_of_peer(python: str) -> str:
    """The same of open_clip's, with its own version; "" if this Python has none."""
    return _said_by(python, f"import open_clip, open_clip_train.precision; print(open_clip.__version__); {_VERSIONS}")


def _said_by(python: str, code: str) -> str:
    try:
        done = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return ""
    return "" if done.returncode else ", ".join(done.stdout.splitlines())


def of_theirs(case: Case) -> Case:
    """The same of open_clip, which knows two of our four ways of checkpointing."""
    checkpoint = "none" if case.checkpoint in AGAIN else case.checkpoint
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

"""Starting the pipeline as a user does, killing it, and reading what it left: what the end-to-end tests share.

Every launch is a session of its own (setsid), and Ray's processes stay in it although its workers have process groups of their own. So
the session number finds everything that a launch started, also when the driver is gone, and nothing else on the machine.
"""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.contracts import manifest, storage
from tests.web import tables
from tests.web.site import Kind, Web

ROOT = Path(__file__).resolve().parents[2]
MEMBERS_END_S = 150.0

NO_WAITING = {Kind.HANGS: 0.0, Kind.REFUSED: 0.0}
"""Rates for webs whose every answer is the same on a busy machine: nothing depends on a deadline."""


def write_inputs(web: Web, folder: Path, broken_lines: int = 0) -> None:
    """The URL tables and the query list of a web."""
    tables.write_tables(web, folder / "lists", broken_lines)
    tables.write_queries(folder / "queries.txt")


def write_config(
    web: Web, inputs: str, place: Path, *, crawl_units: int = 4, shard_rows: int = 60, timeout_s: float = 30.0
) -> Path:
    """A configuration for that web; `run.out` is left to the command line."""
    place.write_text(
        f"""
[run]
out = "given on the command line"
[sources]
paths = ["{inputs}/lists"]
rows_per_unit = 100
[filter]
queries = "{inputs}/queries.txt"
[precap]
per_query = 100000
[crawl]
units = {crawl_units}
timeout_s = {timeout_s}
retries = 0
max_bytes = 2000000
allow_addresses = ["127.0.0.0/8"]
[balance]
cap = {web.cap}
[shard]
rows = {shard_rows}
"""
    )
    return place


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's sockets and logs; short, because the path of a socket may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="r"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(ray: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without a cluster to join, with Ray's files in `ray`."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    return {**kept, "RAY_TMPDIR": str(ray), "PYTHONPATH": str(ROOT), **(more or {})}


@dataclasses.dataclass
class Launch:
    """A started command, the leader of its session and of its process group."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait(self, seconds: float = 400.0) -> int:
        """Its exit code, after everything it started has ended too (of a killed one: all but Ray's agents)."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            raise
        self.members_end(agents=code >= 0)
        return code

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def members(self, *, agents: bool = True) -> list[int]:
        """Living processes of the session."""
        found = [pid for pid, session in _sessions() if session == self.process.pid]
        return found if agents else [pid for pid in found if not _is_agent(pid)]

    def members_end(self, *, agents: bool = True) -> None:
        """Wait until nothing of the launch is left; fails when something stays behind.

        agents=False does not wait for the two agents of a Ray node: they neither compute nor write, and when their raylet was killed
        they notice after a minute (measured: 62 s).
        """
        until = time.monotonic() + MEMBERS_END_S
        while left := self.members(agents=agents):
            if time.monotonic() > until:
                names = [_title(pid) for pid in left]
                self.end()
                raise AssertionError(f"still running {MEMBERS_END_S:.0f} s after the driver ended: {names}")
            time.sleep(0.1)

    def tell_all(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the session, as Slurm and systemd tell a job."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, *, group: bool) -> None:
        """SIGKILL to the driver alone, or to its process group; then wait until nothing of it is left that could write."""
        if group:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()
        self.members_end(agents=False)

    def end(self) -> None:
        """End what is left, process by process."""
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def start(command: list[str], log: Path, env: Mapping[str, str]) -> Launch:
    """A launch that hears Ctrl-C, also where the tests do not: a shell's & makes what it starts deaf, and that is inherited."""
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with log.open("ab") as sink:
            process = subprocess.Popen(
                command, stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT, env=dict(env), start_new_session=True
            )
    finally:
        signal.signal(signal.SIGINT, ours)
    return Launch(process, log)


def command(config: Path, out: str, *overrides: str, name: str = "run") -> list[str]:
    """`python -m pipeline run --config ... run.out=...`"""
    return [sys.executable, "-m", "pipeline", name, "--config", str(config), f"run.out={out}", *overrides]


def finish(config: Path, out: str, log: Path, env: Mapping[str, str], *overrides: str) -> float:
    """Run the pipeline to its end; returns the seconds it took."""
    started = time.monotonic()
    launch = start(command(config, out, *overrides), log, env)
    code = launch.wait()
    assert code == 0, launch.text()
    return time.monotonic() - started


def corpus(out: str) -> dict[str, str]:
    """SHA-256 of manifest.json and of every file it names, by the name it is known by: what must not differ by a byte."""
    folder = storage.join(out, "shards")
    found = manifest.load(folder)
    names = ["manifest.json", *(name for shard in found.shards for name in (shard.path, shard.index_path))]
    return {name: hashlib.sha256(storage.read_bytes(storage.join(folder, name))).hexdigest() for name in names}


def _sessions() -> Iterator[tuple[int, int]]:
    """(process, session) of every process that is no zombie, from proc(5) stat."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(entry.path, "stat").read_text(errors="replace").rsplit(")", 1)[1].split()
                if fields[0] not in "ZX":
                    yield int(entry.name), int(fields[3])


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    except OSError:
        return str(pid)


def _is_agent(pid: int) -> bool:
    title = _title(pid)
    return (
        (title.startswith("ray::") and "Agent" in title) or "/dashboard/agent.py" in title or "/agent/main.py" in title
    )


def stop_amid_a_unit(processes: Iterable[int]) -> int | None:
    """Stop the first of them that has a unit under way, and still has it then: its number; None where there is none. Ray names a worker
    by the task it runs."""
    for pid in processes:
        if _title(pid).startswith("ray::_run_unit"):
            os.kill(pid, signal.SIGSTOP)
            if _title(pid).startswith("ray::_run_unit"):
                return pid
            os.kill(pid, signal.SIGCONT)
    return None


def titles(launch: Launch) -> dict[int, str]:
    """Process titles of a launch: Ray names a worker by the task it runs, `ray::_run_unit`."""
    return {pid: _title(pid) for pid in launch.members()}

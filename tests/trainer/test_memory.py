"""How much memory is left: the machine's, and what control groups leave of it, in trees as kernels lay them out and in a real group."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.data.memory import available_bytes

MACHINE = 16 << 30


def tree(tmp_path: Path, cgroup: str | None, files: dict[str, int | str]) -> int:
    """What is available where /proc/self/cgroup says `cgroup` and the folder of groups holds `files`."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable: {MACHINE >> 10} kB\n")
    if cgroup is not None:
        (proc / "self" / "cgroup").write_text(cgroup)
    for name, value in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(f"{value}\n")
    return available_bytes(proc, groups)


def version_2(group: str, limit: int | str, used: int, inactive: int = 0) -> dict[str, int | str]:
    return {
        f"{group}memory.max": limit,
        f"{group}memory.current": used,
        f"{group}memory.stat": f"anon {used - inactive}\nfile {inactive}\ninactive_file {inactive}\nactive_file 0",
    }


def version_1(group: str, limit: int, used: int, inactive: int = 0) -> dict[str, int | str]:
    return {
        f"memory/{group}memory.limit_in_bytes": limit,
        f"memory/{group}memory.usage_in_bytes": used,
        f"memory/{group}memory.stat": f"rss {used - inactive}\ninactive_file 1\ntotal_inactive_file {inactive}",
    }


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        pytest.param(None, {}, MACHINE, id="no control groups"),
        pytest.param("0::/\n", {}, MACHINE, id="the top, which has no limit"),
        pytest.param("0::/\n", version_2("", 1000, 700, 50), 350, id="a container that sees itself as the top"),
        pytest.param(
            "0::/a/b\n", version_2("a/b/", "max", 700) | version_2("a/", 900, 800), 100, id="a limit around the group"
        ),
        pytest.param(
            "0::/a/b\n", version_2("a/b/", 500, 300) | version_2("a/", 900, 800), 100, id="the smallest of two"
        ),
        pytest.param("0::/a\n", version_2("a/", 500, 600), 0, id="more is used than was allowed later"),
        pytest.param("0::/a\n", version_2("b/", 5, 0), MACHINE, id="another's group"),
        pytest.param("5:cpu:/\n4:memory:/job\n0::/\n", version_1("job/", 4096, 1024, 24), 3096, id="version 1"),
        pytest.param(
            "4:memory:/docker/0f\n", version_1("", 4096, 1024), 3072, id="version 1, the path that the host knows"
        ),
        pytest.param(
            "4:cpu,memory:/a\n", version_1("a/", 9223372036854771712, 1), MACHINE, id="version 1 without a limit"
        ),
    ],
)
def test_the_smallest_of_all_limits(
    tmp_path: Path, cgroup: str | None, files: dict[str, int | str], expected: int
) -> None:
    assert tree(tmp_path, cgroup, files) == expected


@contextlib.contextmanager
def real_group(limit: int) -> Iterator[Path]:
    """A group with that limit, where this user may make one; the file to which a process writes its number to be in it."""
    for parent, file in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = parent / f"corpus-and-clip-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / file).exists():
                (group / file).write_text(str(limit))
                yield group / "cgroup.procs"
                return
        finally:
            for _ in range(100):
                with contextlib.suppress(
                    OSError
                ):  # busy, where a kernel takes a process that has ended out of it a little later
                    group.rmdir()
                    break
                time.sleep(0.1)
    pytest.skip("no control groups of memory, or no right to make one")


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
def test_batches_larger_than_a_group_allows_are_refused() -> None:
    """And not begun with until the kernel kills the run."""
    told = (
        "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from pipeline.contracts.errors import InputError\n"
        "from trainer.data.shared import SharedArrays\n"
        "SharedArrays(2, (1 << 20,))\n"
        "try: SharedArrays(300, (1 << 20,))\n"
        "except InputError as error: print(error)\n"
    )
    with real_group(256 << 20) as procs:
        done = subprocess.run([sys.executable, "-c", told, str(procs)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "300 batches of pixels take 300 MiB" in done.stdout

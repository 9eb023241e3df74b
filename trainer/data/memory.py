"""How much memory a process may still take: the machine's, and what a container or a batch system leaves of it."""

from collections.abc import Iterator
from pathlib import Path

# Of each version of control groups, relative to a group's folder: the limit, what is used, and the key of memory.stat for what is only
# a copy of files and goes first when memory is short. Linux's admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst.
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_bytes(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process can have without a program losing its own, or the kernel ending one.

    The smallest of the machine's MemAvailable (proc(5)) and, of each control group that this process is in, the limit less what is used
    there. Docker, Kubernetes and Slurm set such limits, and /proc/meminfo shows nothing of them.
    """
    return max(0, min([_of_the_machine(proc), *_of_groups(proc, groups)]))


def _of_the_machine(proc: Path) -> int:
    with open(proc / "meminfo", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def _of_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What the groups of this process, and those around them, leave; nothing of those without a limit."""
    try:
        entries = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:  # a kernel without control groups
        return
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if not controllers:  # version 2, which some systems mount beside version 1
            top, names = groups, _VERSION_2
        elif "memory" in controllers.split(","):
            top, names = groups / "memory", _VERSION_1
        else:
            continue
        # A container may see its own group as the top, while the path is the one that it has outside.
        inside = top / path.lstrip("/")
        for group in [folder for folder in (inside, *inside.parents) if folder.is_relative_to(top)]:
            yield from _of_group(group, *names)


def _of_group(group: Path, limit: str, used: str, droppable: str) -> Iterator[int]:
    try:
        most = (group / limit).read_text().strip()
        if most == "max":
            return
        taken = int((group / used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:  # no such group here, or no such controller
        return
    yield int(most) - taken + int(stat.get(droppable, "0"))

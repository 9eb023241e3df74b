"""What this process has started on its hollow GPU. Nothing but the standard library: a peer's environment reads it too."""

import ctypes
from collections import Counter


def is_hollow() -> bool:
    """Whether this process has a hollow GPU."""
    return hasattr(ctypes.CDLL(None), "hollow_times")


def tell_if_hollow() -> bool:
    """Whether this process has a hollow GPU; if so a benchmark's reader is told what its figures are."""
    if is_hollow():
        print(
            "A hollow GPU: what runs, and its GB, are true of a real one; every time, rate and share is the host's.",
            flush=True,
        )
    return is_hollow()


def times() -> int:
    """Kernels, library calls and copies until now; 0 on anything else."""
    if not is_hollow():
        return 0
    counted = ctypes.CDLL(None).hollow_times
    counted.restype = ctypes.c_ulonglong
    return int(counted())


def by_name() -> Counter[str]:
    """How many each was; the names of kernels are a linker's. Empty on anything else."""
    if not is_hollow():
        return Counter()
    said = ctypes.CDLL(None).hollow_names
    said.restype = ctypes.c_char_p
    lines = (line.split(" ", 1) for line in said().decode().splitlines())
    return Counter({name: int(count) for count, name in lines})

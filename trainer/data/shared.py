"""Memory that the training process and its workers see alike, for the pixels of the batches that are being made.

Workers write pixels where the training process reads them: nothing is copied, nothing passes a pipe. The memory has no name in any file
system, so that the size of /dev/shm, which containers keep at 64 MB, does not matter.
"""

import contextlib
import logging
import math
import mmap
import multiprocessing.reduction
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.contracts.errors import InputError
from trainer.data.memory import available_bytes

log = logging.getLogger("trainer")

UInt8s = npt.NDArray[np.uint8]


class SharedArrays:
    """`count` arrays of uint8 of one shape. Handed to a process that is being started, it is the same memory there."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        """Raises InputError where the machine, or the container, has not that much memory left."""
        size, left = count * math.prod(shape), available_bytes()
        if size > left:
            raise InputError(
                f"data.prefetch: {count} batches of pixels take {size >> 20:,} MiB and {left >> 20:,} MiB of memory are left;"
                " lower data.prefetch or the pairs of a process, or set data.workers=0"
            )
        descriptor = os.memfd_create("batches")
        os.ftruncate(descriptor, size)
        self._map(descriptor, (count, *shape))

    def _map(self, descriptor: int, shape: tuple[int, ...]) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._all: UInt8s = np.frombuffer(mmap.mmap(descriptor, math.prod(shape)), np.uint8).reshape(shape)

    def page_lock(self) -> None:
        """Have the memory stay where it is, so that a GPU reads it while this process goes on. Where the system refuses, copies wait."""
        import torch  # heavy, and workers that only read need it not

        address, size = self._all.ctypes.data, self._all.nbytes
        cuda: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        refused = int(cuda.cudaHostRegister(address, size, 0))
        if refused:
            # CUDA keeps the refusal as its last error, which torch would find after the next launch and take for that one's.
            with contextlib.suppress(RuntimeError):
                torch.ones(1, device="cuda")
            log.warning(
                "%d MiB of pixels cannot be page-locked (CUDA error %d): copies to the GPU are slower",
                size >> 20,
                refused,
            )
        else:
            weakref.finalize(self, cuda.cudaHostUnregister, address)

    def __getstate__(self) -> dict[str, Any]:
        return {"descriptor": multiprocessing.reduction.DupFd(self._descriptor), "shape": self._all.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._map(state["descriptor"].detach(), state["shape"])

    def __getitem__(self, number: int) -> UInt8s:
        array: UInt8s = self._all[number]
        return array

    def lend(self, number: int, when_returned: Callable[[int], None]) -> UInt8s:
        """An array; `when_returned(number)` is called when nobody holds it, or a tensor made of it, any more."""
        lent = self[number]
        weakref.finalize(lent, when_returned, number).atexit = False
        return lent

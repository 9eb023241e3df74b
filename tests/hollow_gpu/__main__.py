"""A GPU that is not there: PyTorch, Triton and everything on top of them find an H200, and nothing that they start on it is run.

    PYTHON -m tests.hollow_gpu COMMAND …      # PYTHON has a torch for CUDA 13; the GPU itself is asked for nothing

    PYTHON -m tests.hollow_gpu PYTHON -m tests.benchmarks.rehearsal
    PYTHON -m tests.hollow_gpu python -m trainer --config …

What is true on it: which code runs for a GPU and that it runs, what the host does and how long it takes, what is compiled for the chip,
which kernels, products and copies are started and how many, what PyTorch's allocator gives out and when 139.8 GiB are not enough. What is
not: every number that a kernel would have computed (it reads as zero), the time a GPU would take, what cuDNN, cuBLAS and FlashAttention
take for themselves and which of their kernels they would choose, more than one process, CUDA graphs.

It takes the place of NVIDIA's libraries by LD_PRELOAD (`build.py`); those need not be installed: torch without what it depends on is
enough (`pip install --no-deps torch triton`), with `nvidia-cuda-runtime` and `nvidia-cuda-crt` for their headers, a C and a C++ compiler.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hollow_gpu.build import environment


def main() -> int:
    command = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="hollow-gpu-") as folder:
        try:
            if not command:
                raise RuntimeError("no command was given: PYTHON -m tests.hollow_gpu COMMAND …")
            code = subprocess.run(command, check=False, env=os.environ | environment(Path(folder))).returncode
        except (RuntimeError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return code if code >= 0 else 128 - code  # as a shell says it of a signal


if __name__ == "__main__":
    sys.exit(main())

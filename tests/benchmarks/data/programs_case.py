"""One case of the benchmark `programs`: what torch.compile makes of a model for a Hopper GPU, compiled to its machine code without one.

    python -m tests.benchmarks.data.programs_case MODEL none|activation|elementwise torch|short PAIRS

Inductor writes its kernels as in `traffic_case.py`; Triton and the assembler compile each, in every configuration that a GPU would try, but
load none. Prints a line of JSON: [graphs, [[name, [[configuration, instructions, registers, stack] …], why it failed or ""] …]].
"""

import contextlib
import hashlib
import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch._inductor.runtime import triton_helpers
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from tests.benchmarks.data.traffic_case import Traffic, on_an_h200, ours, step
from tests.trainer.compiled import HOPPER, read_cubin

KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''\n(.*?)''', device_str", re.DOTALL)


class Hopper:
    """What Triton asks of a driver before it loads anything."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget(*HOPPER)

    def get_current_device(self) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda


driver.set_active(Hopper())  # for all of this process


class _CompiledError(Exception):
    """There is code, and nothing to load it into."""


def kernels_in(programs: list[str]) -> dict[str, str]:
    """Sources by a name that says all of them: a program numbers its kernels, and two may give one name to what differs."""
    found = {}
    for program in programs:
        for name, source in KERNEL.findall(program):
            alike = re.sub(r"_\d+$", "", name)
            what = source.replace(name, alike)
            found[f"{alike}_{hashlib.sha256(what.encode()).hexdigest()[:8]}"] = what
    return found


def compiled(name: str, source: str, folder: Path) -> list[tuple[str, int, int, int]]:
    """Of each configuration: what it is, instructions, registers, bytes of stack."""
    path = folder / f"{name}.py"
    path.write_text(source)  # Triton reads a kernel's source again
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = getattr(module, name.rpartition("_")[0])
    codes = [read_cubin(cubin_of(kernel, configuration)) for configuration in kernel.configs]
    return [
        (str(configuration), code.instructions, code.registers, code.stack)
        for configuration, code in zip(kernel.configs, codes, strict=True)
    ]


def cubin_of(kernel: Any, configuration: Any) -> bytes:
    made: list[bytes] = []
    compile_it = triton.compile

    def keep(*inputs: Any, **options: Any) -> None:
        made.append(compile_it(*inputs, **options).asm["cubin"])
        raise _CompiledError

    with mock.patch.object(triton, "compile", keep), contextlib.suppress(_CompiledError):
        kernel._precompile_config(configuration)
    return made[0]


def of_code(programs: list[str]) -> None:
    """Compile the kernels of what Inductor wrote for some graphs, and print what came of each."""
    kernels: list[tuple[str, list[tuple[str, int, int, int]], str]] = []
    with (
        contextlib.redirect_stdout(sys.stderr),
        tempfile.TemporaryDirectory() as folder,
        on_an_h200(),
        mock.patch.object(triton_helpers, "set_driver_to_gpu"),
    ):
        for name, source in kernels_in(programs).items():
            try:
                kernels.append((name, compiled(name, source, Path(folder)), ""))
            except Exception as error:  # noqa: BLE001 - Triton's are of many kinds; whatever it is, the kernel has no code
                kernels.append((name, [], f"{type(error).__name__}: {error}"))
    print(json.dumps([len(programs), kernels]))


def main() -> None:
    name, checkpoint, attention, pairs = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        model, found = ours(name, checkpoint, short=attention == "short"), Traffic(with_code=True)
        model.compile_blocks(found.backend)
        step(found, model, model, model.preset.image_size, int(pairs), model.preset.context_length)
    assert found.code is not None
    of_code(found.code)


if __name__ == "__main__":
    main()

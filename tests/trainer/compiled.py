"""Our Triton kernels as they are compiled for a Hopper GPU, which needs none: for those who look at their code.

    python -m tests.trainer.compiled FOLDER KIND REQUESTS.json

FOLDER gets the code of each request, in a file that is named for its place among them. A process of its own makes it, because in one that
has switched the interpreter on nothing is compiled.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

Kind = Literal["ptx", "cubin"]
BLOCK = 256
HOPPER = ("cuda", 90, 32)
"""Triton's `GPUTarget`, which not every process can import: its backend, architecture and threads of a warp."""


class Request(TypedDict):
    module: str
    kernel: str
    pointers: dict[str, str]
    numbers: dict[str, str]
    """Types of arguments that are numbers; the others are fp32."""
    constants: dict[str, int]
    options: dict[str, object]


def fused_step(
    *,
    weights: Literal["fp32", "bf16"] = "fp32",
    is_plain: bool = True,
    onto: int = 0,
    is_bounded: bool = False,
) -> Request:
    """The fused step, for weights and gradients of a type; the others are its own constants."""
    from trainer.optim import fused

    pointers = {"weights": f"*{weights}", "gradients": f"*{weights}", "moments": "*fp16", "moment_scales": "*fp32"}
    pointers |= {"roots": "*fp16", "root_scales": "*fp32", "tiles": "*i32", "starts": "*i64", "shifts": "*i32"}
    return {
        "module": "trainer.optim.fused",
        "kernel": "_kernel",
        "pointers": pointers,
        "numbers": {"n": "i32", "key": "i32"},
        "constants": {
            "block": BLOCK,
            "rows": fused._TILE // BLOCK,
            "is_plain": is_plain,
            "onto": onto,
            "is_bounded": is_bounded,
        },
        "options": {"num_warps": fused._WARPS, "enable_fp_fusion": False},
    }


def short_attention(kernel: Literal["_forward", "_backward"], tile: int, *, causal: bool = True) -> Request:
    """A kernel of short attention in bf16, for lengths up to `tile`."""
    from trainer.models import short_attention_kernels

    pointers = ("packed", "out") if kernel == "_forward" else ("gradient", "packed", "out")
    return {
        "module": "trainer.models.short_attention_kernels",
        "kernel": kernel,
        "pointers": dict.fromkeys(pointers, "*bf16"),
        "numbers": {"length": "i32", "heads": "i32"},
        "constants": {"causal": causal, "tile": tile},
        "options": {"num_warps": short_attention_kernels._warps(tile)},
    }


def compiled(kind: Kind, requests: Sequence[Request]) -> list[bytes]:
    """The code of each request, made by one process."""
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "requests.json"
        asked.write_text(json.dumps(requests))
        command = [sys.executable, "-m", "tests.trainer.compiled", folder, kind, str(asked)]
        environment = {**os.environ, "TRITON_CACHE_DIR": folder}
        environment.pop("TRITON_INTERPRET", None)
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return [(Path(folder) / str(place)).read_bytes() for place in range(len(requests))]


class Code(NamedTuple):
    instructions: int
    registers: int
    stack: int
    """Bytes that a thread spills."""
    moves: list[str]
    """Loads and stores."""


def read_cubin(cubin: bytes) -> Code:
    """By the tools that come with Triton."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        listing = subprocess.run([tools / "nvdisasm", file.name], check=True, capture_output=True, text=True).stdout
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], check=True, capture_output=True, text=True
        )
    found = re.findall(r"^\s+/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing, re.MULTILINE)
    registers, stack = (int(re.findall(rf"{key}:(\d+)", usage.stdout + usage.stderr)[0]) for key in ("REG", "STACK"))
    return Code(len(found), registers, stack, [one for one in found if one.startswith(("LDG", "STG"))])


def main(folder: str, kind: str, asked: str) -> None:
    for place, request in enumerate(json.loads(Path(asked).read_text())):
        (Path(folder) / str(place)).write_bytes(code_of(kind, request))


def code_of(kind: str, request: Request) -> bytes:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel = getattr(importlib.import_module(request["module"]), request["kernel"])
    names = kernel.arg_names
    kinds = request["pointers"] | request["numbers"] | dict.fromkeys(request["constants"], "constexpr")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in request["pointers"]}
    values = {(names.index(name),): value for name, value in request["constants"].items()}
    source = ASTSource(kernel, {name: kinds.get(name, "fp32") for name in names}, values, aligned)
    made = compile(source, GPUTarget(*HOPPER), options=request["options"]).asm[kind]
    return made if isinstance(made, bytes) else str(made).encode()


if __name__ == "__main__":
    main(*sys.argv[1:])

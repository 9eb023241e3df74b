"""The fused step as Triton compiles it for a Hopper GPU, which needs none: for those who look at its code.

    python -m tests.trainer.compiled OUT KIND WEIGHTS '{"is_plain": true, …}'

A process of its own makes it, because in one that has switched the interpreter on nothing is compiled.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

BLOCK = 256


def compiled(
    kind: Literal["ptx", "cubin"],
    *,
    weights: Literal["fp32", "bf16"] = "fp32",
    is_plain: bool = True,
    onto: int = 0,
    is_bounded: bool = False,
) -> bytes:
    """The kernel's code, for weights and gradients of a type; the others are its own constants."""
    constants = json.dumps({"is_plain": is_plain, "onto": onto, "is_bounded": is_bounded})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "code"
        command = [sys.executable, "-m", "tests.trainer.compiled", str(out), kind, weights, constants]
        environment = {**os.environ, "TRITON_CACHE_DIR": folder}
        environment.pop("TRITON_INTERPRET", None)
        subprocess.run(command, env=environment, check=True, capture_output=True)
        return out.read_bytes()


def main(out: str, kind: str, weights: str, given: str) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from trainer.optim import fused

    pointers = {"weights": f"*{weights}", "gradients": f"*{weights}", "moments": "*fp16", "moment_scales": "*fp32"}
    pointers |= {"roots": "*fp16", "root_scales": "*fp32", "tiles": "*i32", "starts": "*i64", "shifts": "*i32"}
    constants = {"block": BLOCK, "rows": fused._TILE // BLOCK, **json.loads(given)}
    names = fused._kernel.arg_names
    kinds = pointers | {"n": "i32", "key": "i32"} | dict.fromkeys(constants, "constexpr")
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fused._kernel, {name: kinds.get(name, "fp32") for name in names}, values, aligned)
    options = {"num_warps": fused._WARPS, "enable_fp_fusion": False}
    made = compile(source, GPUTarget("cuda", 90, 32), options=options).asm[kind]
    Path(out).write_bytes(made if isinstance(made, bytes) else made.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])

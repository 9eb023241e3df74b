"""The hollow GPU: what PyTorch finds on it. All but two tests need a torch for CUDA 13, which may be there without a GPU."""

import os
import subprocess
import sys

import pytest

from tests.hollow_gpu.build import torch_for_cuda

needs_cuda = pytest.mark.skipif(torch_for_cuda() is None, reason="this torch is none for CUDA")
SEGMENTS = ("expandable_segments:False", "expandable_segments:True")


def on_it(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "tests.hollow_gpu", *command]
    return subprocess.run(call, capture_output=True, text=True, check=False, timeout=250, env=os.environ | variables)


def said_on_it(script: str, **variables: str) -> str:
    done = on_it(sys.executable, "-c", "import torch\nfrom tests.hollow_gpu import launched\n" + script, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_torch_for_cuda_it_says_so() -> None:
    done = on_it("true")
    if torch_for_cuda() is None:
        assert (done.returncode, done.stderr) == (2, "error: this Python has no torch for CUDA: name one that has\n")
    else:
        assert (done.returncode, done.stderr) == (0, "")


def test_without_a_command_it_says_so() -> None:
    done = on_it()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: no command was given")


@needs_cuda
def test_the_code_is_the_commands() -> None:
    assert on_it("sh", "-c", "exit 7").returncode == 7
    assert on_it("sh", "-c", "kill -TERM $$").returncode == 143
    assert on_it("no-such-command").stderr.startswith("error: ")


@needs_cuda
@pytest.mark.parametrize("segments", SEGMENTS)
def test_memory_is_given_out_taken_back_and_ends(segments: str) -> None:
    script = """
free, whole = torch.cuda.mem_get_info()
held = torch.empty(100 << 30, dtype=torch.uint8, device="cuda")
print(whole - free < 1 << 30, free - torch.cuda.mem_get_info()[0] == 100 << 30, torch.cuda.max_memory_allocated() == 100 << 30)
try:
    torch.empty(50 << 30, dtype=torch.uint8, device="cuda")
except torch.cuda.OutOfMemoryError:
    print("full")
del held
torch.cuda.empty_cache()
print(torch.cuda.mem_get_info()[0] == free, torch.empty(139 << 30, dtype=torch.uint8, device="cuda").numel() == 139 << 30)
"""
    assert said_on_it(script, PYTORCH_ALLOC_CONF=segments).split() == ["True", "True", "True", "full", "True", "True"]


@needs_cuda
def test_what_is_started_is_counted_by_name() -> None:
    script = """
x = torch.ones(64, 64, device="cuda", requires_grad=True)
fused = torch.compile(lambda x: (x.sin() + 1).cos())
fused(x).sum().backward()
before, names = launched.times(), launched.by_name()
fused(x)
print(launched.times() - before, [name.startswith("triton_") for name in launched.by_name() - names])
before, names = launched.times(), launched.by_name()
(x @ x).sum()
new = sorted(launched.by_name() - names)
print(launched.times() - before, "reduce_kernel" in new[0], "gemm" in new[1].lower() or "Matmul" in new[1])
print(torch.ones(3).pin_memory().is_pinned(), torch.ones(3).is_pinned())
"""
    # torch 2.11's workers for compiling, given nothing to do, keep a process of Python 3.12 from ending for five minutes.
    lines = said_on_it(script, TORCHINDUCTOR_COMPILE_THREADS="1").splitlines()
    assert lines[0] == "1 [True]"
    assert lines[1:] == ["2 True True", "True False"]


@needs_cuda
def test_what_is_copied_there_is_read_again_and_what_kernels_write_is_zero() -> None:
    script = """
x = torch.arange(5, device="cpu").cuda()
y = torch.empty_like(x)
y.copy_(x)
print(x.tolist(), y[1:3].tolist(), (x + 1).tolist())
for _ in range(70):
    y.sin()
print(x.tolist())
"""
    assert said_on_it(script).splitlines() == ["[0, 1, 2, 3, 4] [1, 2] [0, 0, 0, 0, 0]", "[0, 0, 0, 0, 0]"]


@needs_cuda
def test_one_process_gathers_what_it_has_given() -> None:
    script = """
import torch.distributed as dist
dist.init_process_group("nccl", init_method="tcp://127.0.0.1:0", rank=0, world_size=1, device_id=torch.device("cuda", 0))
found = [None]
dist.all_gather_object(found, {"rank": 0, "text": "x" * 5000})
print(found[0]["rank"], len(found[0]["text"]))
dist.destroy_process_group()
"""
    assert said_on_it(script) == "0 5000"


@needs_cuda
def test_the_benchmark_says_that_its_rates_are_none() -> None:
    case = ("speed", "--models", "tiny-vit", "--pairs", "64", "--compute", "bf16", "--no-compile", "--peer", "")
    done = on_it(sys.executable, "-m", "tests.benchmarks.gpu_train", *case)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A hollow GPU: " in done.stdout

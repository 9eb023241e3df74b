"""One case of the benchmark `traffic`: what a GPU would read, write and multiply for a pair, without one.

    PYTHON -m tests.benchmarks.data.traffic_case ours|open_clip MODEL none|activation|elementwise|blocks torch|short PAIRS PLACES

The model is traced forward and backward with fake tensors. Each graph that torch.compile makes of it goes to Inductor as if it were on an
H200, up to where its kernels are scheduled and none is written yet: each knows its buffers, and each product its operations. What is
computed outside of compiled programs counts as kernels of one operation each. Prints a line of JSON: [kind, times, bytes, operations, what]
for each kernel of the whole batch.
"""

import collections
import contextlib
import copy
import json
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast
from unittest import mock

import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.device_interface import CudaInterface
from torch._guards import TracingContext, detect_fake_mode
from torch._inductor import compile_fx, scheduler
from torch._inductor.exc import InductorError
from torch._inductor.fx_passes import reinplace
from torch._inductor.graph import GraphLowering
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.nn import functional
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tests.benchmarks.data.gpu_case import FULL_LENGTH, Case, drawn_texts
from trainer.models import CLIP, PRESETS, build, short_attention

H200 = types.SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    total_memory=141 << 30,
    multi_processor_count=132,
    warp_size=32,
    max_threads_per_block=1024,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65_536,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=232_448,
    shared_memory_per_multiprocessor=233_472,
    L2_cache_size=50 << 20,
    gcnArchName="",
)
"""What Inductor asks of a device."""

VIEWS = (torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default, torch.ops.aten.lift_fresh.default)
"""Operations that move nothing, of those that torch does not call views."""


class Kernel(NamedTuple):
    kind: str
    """product, attention, sum (norms, gradients of biases), or elementwise; outside of programs all else is elementwise."""
    bytes: int
    operations: int
    what: str


class _ScheduledError(Exception):
    """Kernels are known, and need not be written."""


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Kernels of a step, and how often each runs; with_code: also the code that Inductor writes for each graph."""

    def __init__(self, *, with_code: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.runs: collections.Counter[Kernel] = collections.Counter()
        self.code: list[str] | None = [] if with_code else None
        self._in_program = False

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """What is done here is counted by its program."""
        before, self._in_program = self._in_program, True
        try:
            yield
        finally:
            self._in_program = before

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # else nothing is compiled below it

    def __torch_dispatch__(self, operation: Any, kinds: Any, inputs: Any = (), options: Any = None) -> Any:
        found = operation(*inputs, **(options or {}))
        outside = not self._in_program and TracingContext.try_get() is None
        if outside and operation.namespace in ("aten", "trainer") and not operation.is_view and operation not in VIEWS:
            tensors = [one for one in pytree.tree_leaves((inputs, options, found)) if isinstance(one, Tensor)]
            name = str(operation)
            kind = kind_of_extern(name) if "mm" in name or "attention" in name else "elementwise"
            operations = 0
            if kind == "product":
                operations = flop_registry[operation.overloadpacket](*inputs, out_val=found)
            self.runs[Kernel(kind, sum(one.nbytes for one in tensors), operations, f"outside: {name}")] += 1
        return found

    def backend(self, graph: Any, inputs: list[Tensor], options: dict[str, Any] | None = None) -> Callable[..., Any]:
        inner: Any = self._inner
        made: Any = compile_fx.compile_fx(graph, inputs, inner_compile=inner, config_patches=options)
        return cast(Callable[..., Any], made)

    def _inner(self, graph: Any, inputs: list[Any], **options: Any) -> Callable[[list[Any]], Any]:
        with self._inside():
            kernels = kernels_of(graph, inputs, options, self.code)

        def program(given: list[Any]) -> Any:
            for kernel in kernels:
                self.runs[kernel] += 1
            own = list(given)
            given.clear()
            with self._inside():
                return graph(*own)

        program._boxed_call = True  # type: ignore[attr-defined]
        return program


def kernels_of(graph: Any, inputs: list[Any], options: dict[str, Any], code: list[str] | None) -> list[Kernel]:
    """What Inductor makes of a graph of operations on an H200. `code`, if it is wanted, is added to."""
    found: list[Kernel] = []
    codegen = GraphLowering.codegen

    def stop(lowered: Any) -> None:
        if code is None:
            lowered.init_wrapper_code()
            lowered._update_scheduler()
        else:
            code.append(codegen(lowered)[0].value)
        found.extend(kernel_of(node) for node in lowered.scheduler.nodes if has_kernel(node))
        raise _ScheduledError

    with on_an_h200(), mock.patch.object(GraphLowering, "codegen", stop):
        try:
            compile_fx.compile_fx_inner(*moved(graph, inputs), **options)
        except InductorError as error:
            if not isinstance(error.inner_exception, _ScheduledError):
                raise
    return found


def has_kernel(node: Any) -> bool:
    names = ("NopKernelSchedulerNode", "MultiOutput", "ReinterpretView")
    return type(node).__name__ not in names and type(getattr(node, "node", None)).__name__ not in names


def kernel_of(node: Any) -> Kernel:
    moved_bytes, operations = int(node.get_read_write_buffers_sizes()), int(node.estimate_flops() or 0)
    if node.is_extern():
        name = str(getattr(node.node, "op_overload", None) or getattr(node.node, "python_kernel_name", None))
        return Kernel(kind_of_extern(name), moved_bytes, operations, f"{name} {node.node.maybe_get_size() or ''}")
    parts = node.get_nodes()
    names = {
        str(origin.target).partition(".")[2].partition(".")[0]
        for part in parts
        for origin in part.node.origins
        if origin.op == "call_function"
    }
    kind = "sum" if any(part.is_reduction() for part in parts) else "elementwise"
    dull = {"view", "permute", "reshape", "convert_element_type", "unsqueeze", "squeeze", "expand", "clone"}
    return Kernel(kind, moved_bytes, 0, f"{' '.join(sorted(names - dull))} {parts[-1].node.get_size()}")


def kind_of_extern(name: str) -> str:
    return "attention" if "attention" in name else "product"


def moved(graph: Any, inputs: list[Any]) -> tuple[Any, list[Any]]:
    """The same graph and inputs on a GPU."""
    graph, mode = copy.deepcopy(graph), detect_fake_mode(inputs)
    assert mode is not None
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.update_kwarg("device", torch.device("cuda", 0))
        node.meta.pop("val", None)
    graph.recompile()
    with mode:
        there = [
            torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device="cuda:0")
            if isinstance(one, Tensor)
            else one
            for one in inputs
        ]
    FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*there)
    return graph, there


@contextlib.contextmanager
def on_an_h200() -> Iterator[None]:
    """torch says of itself that it has one. Nothing that would be computed there is."""
    device: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda *_: H200,
        "get_device_capability": lambda *_: (H200.major, H200.minor),
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "_lazy_init": lambda: None,
        "_exchange_device": lambda _: 0,
        "_maybe_exchange_device": lambda _: 0,
    }
    interface: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_compute_capability": lambda *_: 90,
        "get_device_properties": lambda *_: H200,
        "is_triton_capable": lambda *_: True,
        "raise_if_triton_unavailable": lambda *_: None,
    }
    worker: dict[str, Any] = {
        "current_device": staticmethod(lambda: 0),
        "get_device_properties": staticmethod(lambda *_: H200),
    }
    patches: Any = mock.patch.multiple
    with (
        mock.patch.object(scheduler, "has_triton", return_value=True),
        mock.patch.object(fake_tensor, "init_gpu_context"),
        # cuDNN has a convolution's output channels-last where one of its inputs is. A torch that sees no GPU thinks of no cuDNN.
        mock.patch.object(torch._C, "_conv_determine_backend_memory_format", conv_format),
        # It copies fake tensors, to see whether their shapes agree, which a torch without CUDA cannot.
        mock.patch.object(reinplace, "_inplace_generalized_scatter", lambda target, _source, _views: target),
        patches(torch.cuda, **device),
        patches(CudaInterface, **{name: staticmethod(one) for name, one in interface.items()}),
        patches(CudaInterface.Worker, **worker),
    ):
        yield


def conv_format(pixels: Tensor, weight: Tensor, _: object) -> torch.memory_format:
    last = any(one.is_contiguous(memory_format=torch.channels_last) for one in (pixels, weight))
    return torch.channels_last if last else torch.contiguous_format


def gpu_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False
) -> Tensor:
    """What torch takes for it without cuDNN: FlashAttention, or where there is a mask, padded to eights, the memory-efficient one."""
    if attn_mask is None:
        out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]
        return out
    bias = attn_mask
    if bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill(~bias, -torch.inf)
    queries, keys = q.shape[-2], k.shape[-2]
    bias = functional.pad(bias, (0, -keys % 8))[..., :keys].expand(*q.shape[:2], queries, keys)
    masked: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True, dropout_p)[0]
    return masked


def ours(name: str, checkpoint: str, *, short: bool) -> CLIP:
    model = build(name, checkpoint_activations=checkpoint)  # type: ignore[arg-type]
    if short:
        model.take_short_attention()
        short_attention.is_for = lambda packed: packed.shape[1] <= short_attention.LONGEST
    return model.to(torch.bfloat16)


def open_clip(name: str) -> nn.Module:
    import open_clip as library

    model: nn.Module = library.create_model(
        name.replace("/", "-"), precision="pure_bf16", device="cpu", force_quick_gelu=True
    )
    return model.train()


def fake(model: nn.Module) -> None:
    """Parameters and buffers become tensors without memory."""
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    own[name] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty  # type: ignore[assignment]


def step(found: Traffic, model: nn.Module, run: Callable[..., Any], size: int, pairs: int, places: int) -> None:
    """Forward and backward by `run`, which is the model or has it compiled; `found` sees it."""
    ids = drawn_texts(Case("", pairs, ""), 49_408)[:, FULL_LENGTH - places :]
    with (
        mock.patch.object(functional, "scaled_dot_product_attention", gpu_attention),
        mock.patch.object(torch._inductor.config, "fx_graph_cache", False),
        mock.patch.object(torch._functorch.config, "enable_autograd_cache", False),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        fake(model)
        pixels = torch.empty(pairs, 3, size, size, dtype=torch.bfloat16)
        with found:
            images, texts, scale = run(pixels, mode.from_tensor(ids))[:3]
            torch.autograd.backward((scale * images.float().sum() * texts.float().sum()).sum())


def main() -> None:
    who, name, checkpoint, attention, pairs, places = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        found = Traffic()
        model = ours(name, checkpoint, short=attention == "short") if who == "ours" else open_clip(name)
        run: Callable[..., Any] = model
        if isinstance(model, CLIP):
            model.compile_blocks(found.backend)
        else:
            run = torch.compile(model, backend=found.backend)
        step(found, model, run, PRESETS[name].image_size, int(pairs), int(places))
    print(json.dumps([[kernel.kind, times, *kernel[1:]] for kernel, times in found.runs.items()]))


if __name__ == "__main__":
    main()

"""How many operations a model costs, counted from its shapes, and which share of a device's peak a run reaches (MFU).

An operation is a multiplication or an addition inside a matrix product or a convolution: what torch's own counter counts on the meta
device, where nothing is computed. A step costs one forward and one backward pass of every pair; what is computed twice to save memory
(activation checkpointing, gradient caching) is not counted twice, and neither are the loss and the optimizer, which are small.
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer import zero
from trainer.config import TrainConfig
from trainer.models import CLIP

_PEAK_TFLOPS = {
    "Tesla V100-SXM2-16GB": 125.0,
    "Tesla V100-SXM2-32GB": 125.0,
    "Tesla V100-PCIE-16GB": 112.0,
    "Tesla V100-PCIE-32GB": 112.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
    "NVIDIA H200 NVL": 835.0,
}
"""Dense half-precision peaks (fp16 of the V100, bf16 of the others) from NVIDIA's data sheets, by the device's whole name: other forms of
a GPU, and slices of one (MIG), have other peaks."""


def forward_flops(model: CLIP) -> int:
    """Operations of one picture and one text of full length through `model`, which was built on the meta device.

    In the mode that it is in: what a training model does not see of its patches is not counted.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*_pairs(model))
    return int(counter.get_total_flops()) // _PAIRS


def training_flops(model: CLIP, text_length: int | None = None) -> int:
    """The same with the backward pass, of a text of `text_length` (None: the full one); a frozen tower has none."""
    with FlopCounterMode(display=False) as counter:
        outputs = model(*_pairs(model, text_length))
        torch.autograd.backward(torch.stack([output.sum() for output in outputs]).sum())
    return int(counter.get_total_flops()) // _PAIRS


def training_flops_of_length(model: CLIP) -> Callable[[int], int]:
    """`training_flops` of a text of any length, counted three times only: products grow with the length, attention with its square."""
    one, two, three = (training_flops(model, length) for length in (1, 2, 3))
    first, second = two - one, three - 2 * two + one
    return lambda length: one + (length - 1) * first + (length - 1) * (length - 2) // 2 * second


def peak_flops(config: TrainConfig) -> float | None:
    """Operations a second that one device can do at most: `run.peak_tflops`, else what is known of the GPU; None where nothing is."""
    if config.run.peak_tflops is not None:
        return config.run.peak_tflops * 1e12
    if zero.on_cpu() or config.precision.compute == "fp32":
        return None
    return known_peak(torch.cuda.get_device_name())


def known_peak(device: str) -> float | None:
    """Operations a second in half precision that the GPU of this name does at most; None where that is not known."""
    peak = _PEAK_TFLOPS.get(device)
    return None if peak is None else peak * 1e12


_PAIRS = 2
"""That are counted at once: of a single small picture batch norm would have one number to normalise."""


def _pairs(model: CLIP, text_length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    side = model.preset.image_size
    pixels = torch.empty(_PAIRS, 3, side, side, device="meta")
    return pixels, torch.zeros(_PAIRS, text_length or model.preset.context_length, dtype=torch.int64, device="meta")

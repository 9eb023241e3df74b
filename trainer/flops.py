"""How many operations a model costs, counted from its shapes, and which share of a device's peak a run reaches (MFU).

An operation is a multiplication or an addition inside a matrix product or a convolution: what torch's own counter counts on the meta
device, where nothing is computed. A step costs one forward and one backward pass of every pair; what is computed twice to save memory
(activation checkpointing, gradient caching) is not counted twice, and neither are the loss and the optimizer, which are small.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import TrainConfig
from trainer.models import CLIP

_PEAK_TFLOPS = {
    "V100": 125.0,
    "A100": 312.0,
    "L40S": 362.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200": 989.0,
}
"""Dense half-precision peaks (fp16 of the V100, bf16 of the others) from NVIDIA's data sheets, by a part of the device's name: the first
that fits."""


def forward_flops(model: CLIP) -> int:
    """Operations of one picture and one text of full length through `model`, which was built on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*_one_pair(model))
    return int(counter.get_total_flops())


def training_flops(model: CLIP) -> int:
    """The same with the backward pass; a frozen tower has none."""
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(torch.stack([output.sum() for output in model(*_one_pair(model))]).sum())
    return int(counter.get_total_flops())


def peak_flops(config: TrainConfig) -> float | None:
    """Operations a second that one device can do at most: `run.peak_tflops`, else what is known of the GPU; None where nothing is."""
    if config.run.peak_tflops is not None:
        return config.run.peak_tflops * 1e12
    if not torch.cuda.is_available() or config.precision.compute == "fp32":
        return None
    name = torch.cuda.get_device_name()
    return next((peak * 1e12 for part, peak in _PEAK_TFLOPS.items() if part in name), None)


def _one_pair(model: CLIP) -> tuple[torch.Tensor, torch.Tensor]:
    side = model.preset.image_size
    pixels = torch.empty(1, 3, side, side, device="meta")
    return pixels, torch.zeros(1, model.preset.context_length, dtype=torch.int64, device="meta")

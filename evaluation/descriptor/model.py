"""The descriptor's network: a picture to a vector of length 1, such that copies lie near each other and nothing else does.

The CLIP paper's detector (appendix C) as later work improved on it, small enough for a CPU:

- Weights are normalised, activations are not. Batch statistics would tell a picture what else is in its batch, and a contrastive loss
  rewards reading that; normalised weights (Salimans and Kingma 2016; centred as in Qiao et al. 2019) cost nothing per picture.
- Every halving after the stem's is a blur and then a subsampling (Zhang 2019): a copy moved by a pixel keeps its vector.
- GELU, scaled to keep a variance of 1 (Brock et al. 2021), so that normalised weights need no normalised activations.
- Generalised-mean pooling with exponent 3 and one linear layer, as in SSCD (Pizzi et al. 2022): what is salient anywhere in the picture.

Pixels go in as uint8, so that a caller cannot normalise them in another way.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from evaluation.descriptor.config import ArchitectureConfig

GELU_GAIN = 1.7015  # GELU of a standard normal number has a standard deviation of 1 / 1.7015
GEM_POWER = 3.0
GEM_FLOOR = 1e-6  # a mean of powers needs positive numbers; GELU gives slightly negative ones
_BRANCH = 0.2  # how loud a block's branch is beside its shortcut at the start


class NormedConv(nn.Module):
    """A convolution whose filters have mean 0 and length `gain`: float[n, inner, h, w] to float[n, outer, h / stride, w / stride]."""

    def __init__(self, inner: int, outer: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(outer, inner, kernel, kernel))
        self.gain = nn.Parameter(torch.ones(outer, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outer))
        self.stride, self.padding = stride, kernel // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = self.direction - self.direction.mean((1, 2, 3), keepdim=True)
        weight = centred * (self.gain / torch.linalg.vector_norm(centred, dim=(1, 2, 3), keepdim=True))
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class BlurPool(nn.Module):
    """float[n, c, h, w] to float[n, c, ⌈h/2⌉, ⌈w/2⌉]: the filter 1-2-1 both ways, mirrored at the edge, then every second sample."""

    kernel: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", torch.outer(line, line).expand(channels, 1, 3, 3).contiguous(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self.kernel.to(x.dtype), stride=2, groups=x.shape[1])


def activation(x: torch.Tensor) -> torch.Tensor:
    """GELU with a gain that keeps the variance."""
    return F.gelu(x) * GELU_GAIN


def generalised_mean(x: torch.Tensor, power: float = GEM_POWER) -> torch.Tensor:
    """float[n, c, h, w] to float[n, c]: (mean of x^p)^(1/p) over the places, x at least GEM_FLOOR. Radenović et al. 2018, equation 2."""
    return x.clamp(min=GEM_FLOOR).pow(power).mean((2, 3)).pow(1 / power)


class Block(nn.Module):
    """x + strength * two convolutions of x, same shape out as in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = NormedConv(width, width, 3), NormedConv(width, width, 3)
        self.strength = nn.Parameter(torch.tensor(_BRANCH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.second(activation(self.first(activation(x))))
        return cast(torch.Tensor, x + self.strength * branch)


class Network(nn.Module):
    """uint8[n, size, size, 3] to float32[n, dimension] of length 1. A row depends on its own picture alone."""

    def __init__(self, shape: ArchitectureConfig) -> None:
        super().__init__()
        widths = [shape.width << stage for stage in range(len(shape.blocks))]
        layers: list[nn.Module] = []
        for stage, (width, blocks) in enumerate(zip(widths, shape.blocks, strict=True)):
            layers.append(BlurPool(widths[max(stage - 1, 0)]))
            if stage:
                layers.append(NormedConv(widths[stage - 1], width, 3))
            layers += [Block(width) for _ in range(blocks)]
        self.stem = NormedConv(3, widths[0], 5, stride=2)
        self.body = nn.Sequential(*layers)
        self.widen = NormedConv(widths[-1], 2 * widths[-1], 1)
        self.head = nn.Linear(2 * widths[-1], shape.dimension)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = (
            pixels.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0
        )  # channels stay last in memory: a CPU's fast layout
        x = self.body(activation(self.stem(x)))
        pooled = generalised_mean(activation(self.widen(x)).float())
        return F.normalize(self.head(pooled).float(), dim=1)


def build(shape: ArchitectureConfig, seed: int) -> Network:
    """A network with random weights of this seed, whatever torch's own generator has been used for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return channels_last(Network(shape))


def channels_last(network: Network) -> Network:
    """The same network, its weights laid out as a CPU's convolutions read them fastest."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack this keyword
    return network

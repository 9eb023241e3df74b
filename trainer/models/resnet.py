"""The ModifiedResNet image tower of the paper: three-convolution stem, anti-aliased strides, attention
pooling.

Shapes, names and initialisation follow openai/CLIP (clip/model.py, `ModifiedResNet`). Every convolution has
stride 1 except the first; where a stage shrinks the picture an average pool does it, in the block and in
its shortcut. The last batch norm of each block starts at zero, so that a fresh block is the identity. The
attention pool asks one query only, the mean of the picture: the other rows of the attention matrix would be
computed and thrown away.

Batch norm normalises over the pictures of its own process, as in the paper's runs: W processes with B / W
pictures each do not give the features of one with B. The running statistics, which only evaluation reads,
are those of process 0 in checkpoints and exports.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.models.checkpointing import Checkpointing, checkpointed
from trainer.models.presets import HEAD_WIDTH, ResNetShape

_EXPANSION = 4


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose weights come in the dtype of its running statistics.

    DeepSpeed gives a model half-precision weights and leaves its buffers in fp32, which torch does not take together.
    """

    def forward(self, input: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.momentum is not None
        if self.training:
            self.num_batches_tracked.add_(1)
        weight, bias = self.weight.to(self.running_mean.dtype), self.bias.to(self.running_mean.dtype)
        return functional.batch_norm(
            input, self.running_mean, self.running_var, weight, bias, self.training, self.momentum, self.eps
        )


class PixelConvolution(nn.Conv2d):
    """The first convolution, of pixels of any float dtype.

    Channels lie side by side from here on: tensor cores convolve them so, or turn each input and output over, and CPUs are faster as well.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.to(self.weight.dtype, memory_format=torch.channels_last))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a shortcut; `stride` is an average pool after the 3x3 convolution."""

    def __init__(self, inplanes: int, planes: int, stride: int, checkpoint_activations: Checkpointing) -> None:
        super().__init__()
        self.checkpoint_activations = checkpoint_activations
        outplanes = planes * _EXPANSION
        self.stride = stride
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = BatchNorm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(planes)
        self.conv3 = nn.Conv2d(planes, outplanes, 1, bias=False)
        self.bn3 = BatchNorm(outplanes)
        nn.init.zeros_(self.bn3.weight)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inplanes != outplanes:
            # The pool of the shortcut is applied in `forward`, so that the two weights keep the released
            # names 0 and 1.
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, bias=False), BatchNorm(outplanes))

    def forward(self, x: Tensor) -> Tensor:
        return checkpointed(self.checkpoint_activations, self, self._inside, x)

    def _inside(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        shortcut = x
        if self.stride > 1:
            out = functional.avg_pool2d(out, self.stride)
            shortcut = functional.avg_pool2d(shortcut, self.stride)
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        return functional.relu(out + shortcut)


class AttentionPool(nn.Module):
    """[n, width, grid, grid] to [n, embed_dim]: the mean of the picture attends over the mean and all places."""

    def __init__(self, grid: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.positional_embedding = nn.Parameter(torch.randn(grid * grid + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)
        for projection in (self.k_proj, self.q_proj, self.v_proj, self.c_proj):
            nn.init.normal_(projection.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(dim=1, keepdim=True), places], dim=1)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        n, length, width = tokens.shape
        q = self.q_proj(tokens[:, :1]).view(n, 1, self.heads, HEAD_WIDTH).transpose(1, 2)
        k = self.k_proj(tokens).view(n, length, self.heads, HEAD_WIDTH).transpose(1, 2)
        v = self.v_proj(tokens).view(n, length, self.heads, HEAD_WIDTH).transpose(1, 2)
        pooled = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, width)
        out: Tensor = self.c_proj(pooled)
        return out


class ModifiedResNet(nn.Module):
    """[n, 3, image_size, image_size] to [n, embed_dim]; it shrinks 32 times before the pool."""

    def __init__(
        self, shape: ResNetShape, image_size: int, embed_dim: int, *, checkpoint_activations: Checkpointing = "none"
    ) -> None:
        super().__init__()
        width = shape.width
        self.conv1 = PixelConvolution(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = BatchNorm(width)
        self.layer1 = _stage(width, width, shape.blocks[0], 1, checkpoint_activations)
        self.layer2 = _stage(width * 4, width * 2, shape.blocks[1], 2, checkpoint_activations)
        self.layer3 = _stage(width * 8, width * 4, shape.blocks[2], 2, checkpoint_activations)
        self.layer4 = _stage(width * 16, width * 8, shape.blocks[3], 2, checkpoint_activations)
        self.attnpool = AttentionPool(image_size // 32, width * 32, embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(pixels)))
        x = functional.relu(self.bn2(self.conv2(x)))
        x = functional.relu(self.bn3(self.conv3(x)))
        x = functional.avg_pool2d(x, 2)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = block(x)
        out: Tensor = self.attnpool(x)
        return out


def _stage(
    inplanes: int, planes: int, blocks: int, stride: int, checkpoint_activations: Checkpointing
) -> nn.Sequential:
    first = Bottleneck(inplanes, planes, stride, checkpoint_activations)
    rest = (Bottleneck(planes * _EXPANSION, planes, 1, checkpoint_activations) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)

"""Pictures to pixels, for training and for evaluation.

Evaluation: shorter side to the model's resolution (bicubic), centre crop. Training: the same resize, then one random square crop, which is
the paper's only augmentation (section 2.4); RandomResizedCrop, mirroring and colour jitter are options. Everything stays uint8 until
`normalise`, which runs on the device: a quarter of the bytes travel between processes.

Random draws come from a generator keyed by (seed, number of the sample in the run), never from a worker's state: the pixels of sample k are
the same on one process or sixteen, and after any resume.
"""

import functools
import math

import numpy as np
import numpy.typing as npt
import torch

from trainer.config import CLIP_MEAN, CLIP_STD, AugmentationConfig, Channels
from trainer.data import resample

UInt8s = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""left, top, right, bottom"""

_ASPECT = (3 / 4, 4 / 3)
_CROP_TRIES = 10
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow's mode L


def normalise(pixels: torch.Tensor, mean: Channels = CLIP_MEAN, std: Channels = CLIP_STD) -> torch.Tensor:
    """uint8 [n, 3, r, r] to float32 less `mean` over `std` (of values in [0, 1]), on the tensor's own device."""
    centre, spread = _on(pixels.device, mean), _on(pixels.device, std)
    # In place behind the conversion: each further tensor of a batch's size costs a processor more in page faults than its arithmetic.
    return pixels.to(torch.float32).div_(255.0).sub_(centre).div_(spread)


@functools.cache
def _on(device: torch.device, channels: Channels) -> torch.Tensor:
    """float32 [3, 1, 1], made once: making it on a GPU waits for all that the GPU was told to do before."""
    return torch.tensor(channels, device=device).view(3, 1, 1)


def evaluation_pixels(rgb: UInt8s, size: int) -> UInt8s:
    """A decoded picture, uint8 [h, w, 3], to uint8 [3, size, size]: shorter side to `size`, bicubic, centre crop."""
    width, height = _shorter_side_to(size, rgb)
    pixels = np.empty((3, size, size), np.uint8)
    resample.window(rgb, _whole(rgb), (width, height), (round((width - size) / 2), round((height - size) / 2)), pixels)
    return pixels


def training_pixels(rgb: UInt8s, how: AugmentationConfig, *, seed: int, sample: int, into: UInt8s) -> None:
    """Fill `into`, uint8 [3, size, size], from a decoded picture, uint8 [h, w, 3], augmented as `how` says with the draws of this sample of
    the run.
    """
    size = into.shape[1]
    draws = np.random.Generator(np.random.Philox(key=(sample << 64) | (seed & (2**64 - 1))))
    if how.crop == "random_resized":
        box = _random_resized_box(rgb.shape[1], rgb.shape[0], how.scale, draws)
        resample.window(rgb, box, (size, size), (0, 0), into)
    elif how.crop == "random_square":
        width, height = _shorter_side_to(size, rgb)
        left, top = int(draws.integers(width - size + 1)), int(draws.integers(height - size + 1))
        resample.window(rgb, _whole(rgb), (width, height), (left, top), into)
    else:
        into[:] = evaluation_pixels(rgb, size)
    if how.flip and draws.random() < how.flip:
        into[:] = into[:, :, ::-1].copy()
    if how.color_jitter:
        into[:] = _jitter(into, how.color_jitter, draws)


def _shorter_side_to(size: int, rgb: UInt8s) -> tuple[int, int]:
    """Width and height once the shorter side is `size`. The longer is cut off, not rounded, as torchvision's Resize (the peers') does."""
    height, width = rgb.shape[:2]
    shorter = min(width, height)
    return max(size, int(size * width / shorter)), max(size, int(size * height / shorter))


def _whole(rgb: UInt8s) -> Box:
    return 0, 0, rgb.shape[1], rgb.shape[0]


def _random_resized_box(width: int, height: int, scale: tuple[float, float], draws: np.random.Generator) -> Box:
    """A box that covers a share of the area from `scale`, of an aspect between 3:4 and 4:3 whose logarithm is uniform; the largest centred
    one after ten tries.
    """
    low, high = scale
    for share, bend in draws.random((_CROP_TRIES, 2)).tolist():
        area = width * height * (low + (high - low) * share)
        aspect = _ASPECT[0] * (_ASPECT[1] / _ASPECT[0]) ** bend
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left, top = int(draws.integers(width - box_width + 1)), int(draws.integers(height - box_height + 1))
            return left, top, left + box_width, top + box_height
    aspect = min(max(width / height, _ASPECT[0]), _ASPECT[1])
    box_width, box_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def _jitter(pixels: UInt8s, strength: float, draws: np.random.Generator) -> UInt8s:
    """uint8 [3, h, w] with its brightness, contrast and saturation changed by up to `strength`, in an order drawn too.

    Each of the three is affine in a colour, its grey and the mean grey; so is any chain of them: own * colour + grey * its grey + shift.
    The factors are chained as numbers and the picture is changed and rounded once.
    """
    colours = pixels.astype(np.float32)
    greys = np.tensordot(_GREY, colours, axes=1)
    mean = float(greys.mean())
    own, grey, shift = 1.0, 0.0, 0.0
    brightness, contrast, saturation = draws.uniform(1 - strength, 1 + strength, size=3).tolist()
    for place in draws.permutation(3).tolist():
        if place == 0:
            own, grey, shift = own * brightness, grey * brightness, shift * brightness
        elif place == 1:
            middle = (own + grey) * mean + shift
            own, grey, shift = own * contrast, grey * contrast, shift * contrast + middle * (1 - contrast)
        else:
            own, grey = own * saturation, grey * saturation + (own + grey) * (1 - saturation)
    colours *= np.float32(own)
    colours += greys * np.float32(grey) + np.float32(shift + 0.5)
    return colours.clip(0, 255, out=colours).astype(np.uint8)

"""Photographs for the benchmark of the descriptor: which it is trained on, which it is tested on, what copies are made, and strangers.

Tested on, never trained on: one half of the 76 photographs of COCO under free licences (by SHA-256), and scikit-image's photographs.
Trained on: the other half, cuts of the photographs below any folders that are given (on Debian those of `DEBIAN`, all of
them free), half of the emoji, and drawn textures, since photographs are few. Strangers, only compared with: the other half of the emoji and
other textures.

The copies are made here with Pillow alone, by other code than the training's.
"""

import hashlib
import io
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.content.image import ImageRejected, decode
from tests.benchmarks.data.captions import REAL_DATA

UInt8s = NDArray[np.uint8]

DEBIAN = (
    "plasma-workspace-wallpapers",
    "ukui-wallpapers",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "mate-backgrounds",
)
"""Packages of Debian main with photographs; its guidelines ask for a free licence, and each package's copyright file names it."""
SCIKIT_IMAGE = (
    "astronaut",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "hubble_deep_field",
    "ihc",
    "moon",
    "retina",
    "rocket",
)
"""Of the pictures in scikit-image's package the photographs, each scene once."""
CUTS = 4  # a large photograph becomes so many cuts across and down
CUT_SIDE = 256  # pixels of a cut's shorter side, at most
_LEAST_SPREAD = 22.0  # grey levels: cuts of sky and plain walls look alike


def jpeg(image: Image.Image, quality: int = 92) -> bytes:
    with io.BytesIO() as file:
        image.convert("RGB").save(file, "JPEG", quality=quality)
        return file.getvalue()


# ---- sources


def photographs_of_coco(half: int) -> list[bytes]:
    """One half of photos_cc."""
    table = REAL_DATA / "photos_cc.parquet"
    if not table.exists():
        return []
    found: list[bytes] = pq.read_table(table, columns=["jpeg"])["jpeg"].to_pylist()
    return [one for one in found if hashlib.sha256(one).digest()[0] % 2 == half]


def photographs_of_scikit_image(folder: Path) -> list[bytes]:
    """Those of its package, which lies below `folder`."""
    found = {path.stem: path for path in folder.rglob("skimage/data/*") if path.suffix in (".png", ".jpg")}
    return [jpeg(Image.open(found[name])) for name in SCIKIT_IMAGE if name in found]


def emoji(half: int) -> list[bytes]:
    """One half of the emoji, by the bytes' SHA-256."""
    table = REAL_DATA / "emoji.parquet"
    if not table.exists():
        return []
    found: list[bytes] = pq.read_table(table, columns=["png"])["png"].to_pylist()
    return [one for one in found if hashlib.sha256(one).digest()[0] % 2 == half]


def debian(folder: Path) -> None:
    """Unpack the packages of DEBIAN below `folder`, without installing them; nothing where there is no apt or they are there."""
    for name in DEBIAN:
        if not (folder / name).exists():
            (folder / "archives").mkdir(parents=True, exist_ok=True)
            subprocess.run(["apt-get", "download", "--quiet", name], cwd=folder / "archives", check=False)
            for archive in (folder / "archives").glob(f"{name}_*.deb"):
                subprocess.run(["dpkg-deb", "--extract", archive, folder / name], check=True)


def cuts(folder: Path) -> Iterator[bytes]:
    """Cuts of the photographs below a folder, those of one photograph side by side; plain ones and repeats of a file are left out."""
    seen: set[tuple[int, ...]] = set()
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")):
        if path.is_symlink() or path.stat().st_size < 50_000:
            continue
        try:
            rgb = decode(path.read_bytes(), min_short_side=CUTS * CUT_SIDE).rgb
        except ImageRejected:
            continue
        image = Image.fromarray(rgb)
        look = tuple(np.asarray(image.resize((8, 8), Image.Resampling.BOX).convert("L")).ravel() // 32)
        if look in seen:  # the same wallpaper at another size
            continue
        seen.add(look)
        across = CUTS if image.width >= CUTS * 200 else 1
        down = CUTS if image.height >= CUTS * 200 else 1
        wide, high = image.width // across, image.height // down
        for number in range(across * down):
            left, top = number % across * wide, number // across * high
            cut = image.crop((left, top, left + wide, top + high))
            cut.thumbnail((2 * CUT_SIDE, CUT_SIDE), Image.Resampling.BICUBIC)
            if np.asarray(cut.convert("L")).std() >= _LEAST_SPREAD:
                yield jpeg(cut)


def texture(seed: int, side: int = 224) -> bytes:
    """A drawn picture: dead leaves (overlapping discs and boxes, few of them large, under noise) or clouds of 1/f noise."""
    draws = np.random.default_rng(seed)
    if seed % 3 == 0:
        return jpeg(Image.fromarray(_clouds(draws, side)))
    image = Image.fromarray(_clouds(draws, side))
    pen = ImageDraw.Draw(image)
    for _ in range(int(draws.integers(20, 160))):
        radius = min(side / 2, 3 / (1 - 0.985 * draws.random()))
        x, y = draws.uniform(0, side, 2)
        box = (x - radius, y - radius * draws.uniform(0.4, 1), x + radius, y + radius)
        colour = tuple(int(value) for value in draws.integers(0, 256, 3))
        pen.ellipse(box, colour) if draws.random() < 0.6 else pen.rectangle(box, colour)
    noisy = np.asarray(image).astype(np.float32) + (_clouds(draws, side).astype(np.float32) - 128) * draws.uniform(
        0.1, 0.6
    )
    return jpeg(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))


def _clouds(draws: np.random.Generator, side: int) -> UInt8s:
    """Noise whose spectrum falls as 1/f^s, coloured."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    falling = 1 / np.maximum(frequency, 1 / side) ** draws.uniform(0.8, 1.8)
    planes = np.fft.ifft2(np.fft.fft2(draws.normal(size=(3, side, side))) * falling).real
    planes = np.tensordot(draws.normal(size=(3, 3)), planes, axes=1)
    planes = (planes - planes.mean((1, 2), keepdims=True)) / planes.std((1, 2), keepdims=True)
    spread = draws.uniform(30, 70, (3, 1, 1))
    pixels: UInt8s = (
        (draws.integers(60, 200, (3, 1, 1)) + spread * planes).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
    )
    return np.ascontiguousarray(pixels)


# ---- copies


def clip_crop(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    """What CLIP's preprocessing leaves: shorter side to 224, bicubic, the middle square."""
    scale = 224 / min(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (small.width - 224) // 2, (small.height - 224) // 2
    return small.crop((left, top, left + 224, top + 224))


def _cut(share: float) -> Callable[[Image.Image, np.random.Generator], Image.Image]:
    def cut(image: Image.Image, dice: np.random.Generator) -> Image.Image:
        wide, high = round(image.width * share**0.5), round(image.height * share**0.5)
        left, top = int(dice.integers(image.width - wide + 1)), int(dice.integers(image.height - high + 1))
        return image.crop((left, top, left + wide, top + high))

    return cut


def border(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    """A white frame, a tenth of each side wide."""
    across, down = image.width // 10, image.height // 10
    return ImageOps.expand(image, (across, down, across, down), "white")


def banner(image: Image.Image, dice: np.random.Generator) -> Image.Image:
    """A white strip with words over the lowest 12 %."""
    marked, strip = image.copy(), round(image.height * 0.12)
    pen = ImageDraw.Draw(marked)
    pen.rectangle((0, image.height - strip, image.width, image.height), "white")
    pen.text((10, image.height - strip * 0.85), "Photograph of the day", "black", ImageFont.load_default(strip * 0.6))
    return marked


COPIES: dict[str, Callable[[Image.Image, np.random.Generator], bytes]] = {
    "CLIP's centre crop": lambda image, dice: jpeg(clip_crop(image, dice)),
    "border 10 %": lambda image, dice: jpeg(border(image, dice)),
    "rotation 10°": lambda image, dice: jpeg(image.rotate(10, Image.Resampling.BICUBIC)),
    "banner 12 %": lambda image, dice: jpeg(banner(image, dice)),
    "flip": lambda image, dice: jpeg(ImageOps.mirror(image)),
    "JPEG q10": lambda image, dice: jpeg(image, 10),
    "64 pixels": lambda image, dice: jpeg(image.resize((64, 64), Image.Resampling.BICUBIC)),
    "half the area": lambda image, dice: jpeg(_cut(0.5)(image, dice)),
    "a quarter": lambda image, dice: jpeg(_cut(0.25)(image, dice)),
}
"""Name to copy of a photograph; a draw decides the place of a crop."""

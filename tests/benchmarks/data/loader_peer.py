"""The loader of open_clip's users, run by the benchmark `loader` in an environment that has webdataset, torchvision and open_clip:

    PYTHON loader_peer.py TARS CROP WORKERS BATCH CPU        prints samples/s
    PYTHON loader_peer.py FILES evaluation SIZE OUT          writes the evaluation pixels of JPEGs, for comparison

The pipeline is that of open_clip_train.data.get_wds_dataset, stage by stage, with its image_transform and its tokenizer.
"""

import glob
import io
import os
import sys
import time

import numpy as np
import torch

# torchvision's compiled part belongs to another build of torch; these ops of it are looked for at import and never called.
OPS = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
for op in ("nms", "qnms"):
    OPS.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]

import open_clip  # noqa: E402
import webdataset  # noqa: E402
from open_clip.transform import AugmentationCfg, image_transform  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision import transforms  # noqa: E402


def training_transform(crop: str) -> object:
    augmentation = AugmentationCfg(scale=(0.9, 1.0))
    whole = image_transform(224, is_train=True, aug_cfg=augmentation)
    if crop == "random_resized":
        return whole
    bicubic = transforms.InterpolationMode.BICUBIC
    resize = [transforms.Resize(224, interpolation=bicubic), transforms.RandomCrop(224)]
    return transforms.Compose([*resize, *whole.transforms[1:]])


def rate(tars: str, crop: str, workers: int, batch: int) -> float:
    transform, tokenizer = training_transform(crop), open_clip.get_tokenizer("ViT-B-32")
    dataset = webdataset.DataPipeline(
        webdataset.SimpleShardList(sorted(glob.glob(f"{tars}/*.tar"))),
        webdataset.split_by_worker,
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(bufsize=1000, initial=100),
        webdataset.select(lambda sample: "txt" in sample and "jpg" in sample),
        webdataset.decode("pilrgb", handler=webdataset.warn_and_continue),
        webdataset.rename(image="jpg;png;jpeg;webp", text="txt"),
        webdataset.map_dict(image=transform, text=lambda text: tokenizer(text)[0]),
        webdataset.to_tuple("image", "text"),
        webdataset.batched(batch, partial=False),
    )
    loader = iter(webdataset.WebLoader(dataset, batch_size=None, shuffle=False, num_workers=workers))
    for _ in range(4):
        next(loader)
    started = time.perf_counter()
    samples = sum(len(images) for images, _ in loader)
    return samples / (time.perf_counter() - started)


def evaluation(files: str, size: int, out: str) -> None:
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = transforms.Compose([transforms.Resize(size, interpolation=bicubic), transforms.CenterCrop(size)])
    pixels = []
    for path in sorted(glob.glob(f"{files}/*.jpg")):
        with open(path, "rb") as file:
            pixels.append(np.asarray(steps(Image.open(io.BytesIO(file.read())).convert("RGB"))).transpose(2, 0, 1))
    np.save(out, np.stack(pixels))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2] == "evaluation":
        evaluation(sys.argv[1], int(sys.argv[3]), sys.argv[4])
    else:
        os.sched_setaffinity(0, {int(sys.argv[5])})
        print(rate(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))

"""The nine shapes beside open_clip and transformers: names, shapes, features, and the way out and back.

    python -m tests.benchmarks.models [--peers FOLDER] [PRESET ...]

Weights are drawn by our `build`; gains, biases and batch statistics are then moved away from 1 and 0, where mistakes would not show. They
go out as `python -m trainer.export --names` writes them; the library loads the folder as its users do, in a process and an environment of
its own, encodes the same pictures and texts in fp32, and writes its own state dict, which comes back in. Of open_clip it is also asked
whether the configuration that we write is the one that it has for the model.

Printed: tensors, the largest difference of features (absolute, and as a share of the largest feature), and whether all came back to the
bit. It ends with exit code 1 where a difference is above 1e-5 or a bit is lost. One model at a time: 12 GB for RN50x64.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch

from tests.benchmarks.data import peers
from trainer import models, names
from trainer.config import CLIP_MEAN, CLIP_STD
from trainer.export import CONFIGS, load_weights, to_state_dict

PEER = Path(__file__).parent / "data" / "models_peer.py"
PACKAGES = (peers.TORCHVISION, "open_clip_torch==3.3.0", "timm", "transformers==5.24.0")
NINE = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
OPEN_CLIPS = {preset: preset.replace("/", "-").replace("@336px", "-336") + "-quickgelu" for preset in NINE}
TOLERANCE = 1e-5


class Compared(NamedTuple):
    tensors: int
    images: float
    texts: float
    largest: float
    """Of all features."""
    same_bits: bool


def drawn(preset: str) -> models.CLIP:
    """A model whose every number matters."""
    torch.manual_seed(0)
    model = models.build(preset).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("bn3.weight"):
                tensor.uniform_(
                    0.1, 0.3
                )  # of the blocks, which start at 0: large enough to show, small enough for 36 of them
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    return model


def inputs_of(model: models.CLIP) -> dict[str, torch.Tensor]:
    """One picture, and texts of several lengths with their marks."""
    preset = model.preset
    ids = torch.zeros(4, preset.context_length, dtype=torch.int64)
    for row, length in enumerate((2, 9, preset.context_length // 2, preset.context_length)):
        ids[row, :length] = torch.randint(1, preset.vocab_size - 2, (length,))
        ids[row, 0], ids[row, length - 1] = preset.vocab_size - 2, preset.vocab_size - 1
    return {"pixels": torch.randn(1, 3, preset.image_size, preset.image_size), "ids": ids}


def compare(model: models.CLIP, library: names.Names, python: str, ours: dict[str, torch.Tensor]) -> Compared:
    """Out, into the library, its features, and back."""
    preset = model.preset
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = to_state_dict(model, library)
        safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        safetensors.torch.save_file({key: ours[key] for key in ("pixels", "ids")}, folder / "inputs.safetensors")
        if library == "transformers":
            config = names.transformers_config(preset)
        else:
            config = names.open_clip_config(preset, mean=CLIP_MEAN, std=CLIP_STD, logit_bias=None)
        (folder / CONFIGS[library]).write_text(json.dumps(config))
        command = [python, "-W", "ignore", str(PEER), library, name]
        if library == "open_clip" and preset.name in OPEN_CLIPS:
            command.append(OPEN_CLIPS[preset.name])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        theirs = safetensors.torch.load_file(folder / "features.safetensors")
        with torch.device("meta"):
            empty = models.build(preset)
        back = empty.to_empty(device="cpu")
        load_weights(back, str(folder / "back.safetensors"), library)
        own = model.state_dict()
        same = all(torch.equal(own[key], value) for key, value in back.state_dict().items())
    images, texts = (float((ours[key] - theirs[key]).abs().max()) for key in ("images", "texts"))
    largest = max(float(ours[key].abs().max()) for key in ("images", "texts"))
    return Compared(len(state), images, texts, largest, same)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.benchmarks.models", allow_abbrev=False)
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "corpus-and-clip-models-peers")
    parser.add_argument("presets", metavar="PRESET", nargs="*", default=NINE)
    arguments = parser.parse_args()
    python = peers.python_with(arguments.peers, PACKAGES, ours=True)
    failed = False
    print(f"{'':<16}{'':<14}{'tensors':>8}{'images':>11}{'texts':>11}{'largest':>9}{'relative':>11}  back to the bit")
    for preset in arguments.presets:
        model = drawn(preset)
        ours = inputs_of(model)
        with torch.no_grad():
            ours |= {"images": model.encode_image(ours["pixels"]), "texts": model.encode_text(ours["ids"])}
        libraries: tuple[names.Names, ...] = ("open_clip", "transformers")
        for library in libraries[: 2 if isinstance(model.preset.vision, models.ViTShape) else 1]:
            found = compare(model, library, python, ours)
            worst = max(found.images, found.texts)
            failed |= worst > TOLERANCE or not found.same_bits
            print(
                f"{preset:<16}{library:<14}{found.tensors:>8}{found.images:>11.1e}{found.texts:>11.1e}{found.largest:>9.2f}"
                f"{worst / found.largest:>11.1e}  {'yes' if found.same_bits else 'NO'}",
                flush=True,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

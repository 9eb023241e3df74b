"""The peers' side of the benchmark `models`, run in an environment that has open_clip, timm, torchvision and transformers:

    PYTHON models_peer.py open_clip|transformers FOLDER [NAME]

Loads the model in FOLDER as the library's users do, encodes what FOLDER/inputs.safetensors holds, and writes the features and the model's
own state dict back. With NAME, a model that open_clip knows, it also says whether FOLDER's configuration is open_clip's own.
"""

import json
import sys
from pathlib import Path

import safetensors.torch
import torch

# torchvision's compiled part belongs to another build of torch; these ops of it are looked for at import and never called.
OPS = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
for op in ("nms", "qnms"):
    OPS.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]


def from_open_clip(folder: Path, name: str | None) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    import open_clip

    if name is not None:
        known = open_clip.get_model_config(name)
        given = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
        assert given == known, f"{given} is not open_clip's {known}"
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    inputs = safetensors.torch.load_file(folder / "inputs.safetensors")
    return model, model.encode_image(inputs["pixels"]), model.encode_text(inputs["ids"])


def from_transformers(folder: Path) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    from transformers import CLIPModel

    model, said = CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(said.values()), said
    inputs = safetensors.torch.load_file(folder / "inputs.safetensors")
    images = model.eval().get_image_features(pixel_values=inputs["pixels"])
    texts = model.get_text_features(input_ids=inputs["ids"])
    # transformers 5 returns the whole output of the tower, earlier versions the features.
    return model, getattr(images, "pooler_output", images), getattr(texts, "pooler_output", texts)


def main() -> None:
    library, folder = sys.argv[1], Path(sys.argv[2])
    with torch.no_grad():
        if library == "open_clip":
            model, images, texts = from_open_clip(folder, sys.argv[3] if len(sys.argv) > 3 else None)
        else:
            model, images, texts = from_transformers(folder)
    safetensors.torch.save_file({"images": images, "texts": texts}, folder / "features.safetensors")
    safetensors.torch.save_model(model, str(folder / "back.safetensors"))


if __name__ == "__main__":
    main()

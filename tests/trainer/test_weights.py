"""Files of weights that others wrote: what is read, and that nothing in them is run."""

import io
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch
from safetensors.torch import save_file

from pipeline.contracts.errors import InputError
from trainer import models, weights
from trainer.export import load_weights, to_state_dict


@pytest.fixture(scope="module")
def model() -> models.CLIP:
    return models.build("tiny-16")


def program(model: torch.nn.Module) -> bytes:
    """A TorchScript archive, as OpenAI released its weights: the program, and its tensors."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is old
        example = torch.zeros(1, 3, 16, 16), torch.zeros(1, 16, dtype=torch.int64)
        torch.jit.save(torch.jit.trace(model.eval(), example), out)  # type: ignore[no-untyped-call]
    return out.getvalue()


def write(folder: Path, kind: str, model: models.CLIP) -> Path:
    state = to_state_dict(model)
    if kind == "sharded":
        halves = dict(list(state.items())[::2]), dict(list(state.items())[1::2])
        for number, half in enumerate(halves):
            save_file(half, folder / f"model-{number}.safetensors")
        where = {name: f"model-{number}.safetensors" for number, half in enumerate(halves) for name in half}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": where}))
        return path
    path = folder / f"model.{'safetensors' if kind == 'safetensors' else 'bin' if kind == 'old' else 'pt'}"
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "program":
        path.write_bytes(program(model))
    elif kind == "training":
        torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"state": {}}}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "plain")
    return path


@pytest.mark.parametrize("kind", ["safetensors", "sharded", "plain", "old", "training", "program"])
def test_every_kind_of_file_is_read_to_the_bit(kind: str, model: models.CLIP, tmp_path: Path) -> None:
    path = write(tmp_path, kind, model)
    other = models.build("tiny-16")
    load_weights(other, str(path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    first = weights.digest(str(path))
    for file in tmp_path.glob("*-0.safetensors" if kind == "sharded" else "model*"):
        file.write_bytes(file.read_bytes() + b" ")
    assert weights.digest(str(path)) != first


class Creates:
    """Whoever unpickles one runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["pt", "old", "pickle", "program"])
def test_code_in_a_file_is_not_run(kind: str, model: models.CLIP, tmp_path: Path) -> None:
    trap, path = tmp_path / "created", tmp_path / "weights.pt"
    bad = {"visual.proj": torch.zeros(2), "logit_scale": Creates(trap)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(bad, protocol=2))
    elif kind == "program":
        with zipfile.ZipFile(io.BytesIO(program(model))) as good, zipfile.ZipFile(path, "w") as out:
            for entry in good.infolist():
                replaced = entry.filename.endswith("data.pkl")
                out.writestr(entry.filename, pickle.dumps(bad["logit_scale"], 2) if replaced else good.read(entry))
    else:
        torch.save(bad, path, _use_new_zipfile_serialization=kind == "pt")
    with pytest.raises(InputError, match=r"weights\.pt: its pickle .*none was run.*save_file"):
        load_weights(model, str(path))
    assert not trap.exists()
    if kind == "pickle":  # the trap is one
        pickle.loads(path.read_bytes())
        assert trap.exists()


def test_what_is_no_file_of_weights_is_refused(model: models.CLIP, tmp_path: Path) -> None:
    def refused(name: str, data: bytes, said: str) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=said):
            load_weights(model, str(tmp_path / name))

    whole = write(tmp_path, "plain", model).read_bytes()
    refused("a.pt", b"junk", r"a\.pt: not a readable file of torch \(\w+\)")
    refused("b.pt", whole[: len(whole) // 2], r"b\.pt: (not a readable file of torch|its pickle)")
    refused("c.safetensors", b"junk", r"c\.safetensors: not a readable safetensors file")
    maps = [b"3", b'{"a": 3}', b'{"a": "b\\u0000c"}', b'{"a": "\\ud800"}', b"[" * 100_000]
    for given in maps:
        refused(
            "d.safetensors.index.json", b'{"weight_map": %s}' % given, r"index\.json: not an index of safetensors files"
        )
    refused("e.onnx", b"", r"e\.onnx: not a file of weights by its ending")
    torch.save({"epoch": 3}, tmp_path / "f.pt")
    refused("f.pt", (tmp_path / "f.pt").read_bytes(), r"f\.pt: holds no state dict of tensors")
    for key in (0, None):
        torch.save(to_state_dict(model) | {key: torch.zeros(2)}, tmp_path / "f.pt")
        refused("f.pt", (tmp_path / "f.pt").read_bytes(), r"f\.pt: holds no state dict of tensors")
    for bomb in ("x/data.pkl", "x/data/code/0", "x/.data/code/0"):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
            out.writestr("x/constants.pkl", b"\x80\x02).")
            out.writestr(bomb, b"0" * (1 << 24))
        refused("g.pt", packed.getvalue(), r"g\.pt: an archive that torch did not write")
    with pytest.raises(InputError, match=r"none\.pt: no such file"):
        load_weights(model, str(tmp_path / "none.pt"))
    outside = tmp_path / "inner"
    outside.mkdir()
    index = json.dumps({"weight_map": {"visual.proj": "../c.safetensors"}}).encode()
    refused("inner/model.safetensors.index.json", index, r"inner/c\.safetensors: no such file")


@pytest.mark.filterwarnings("ignore")  # torch: nested and compressed tensors are prototypes
def test_what_is_no_plain_array_is_refused_before_anything_is_copied(model: models.CLIP, tmp_path: Path) -> None:
    """`text_projection` comes after others in the model, which would have changed by then."""
    kinds = {
        "sparse": torch.eye(128).to_sparse(),
        "compressed": torch.eye(128).to_sparse_csr(),
        "meta": torch.empty(128, 128, device="meta"),
        "nested": torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        "quantised": torch.quantize_per_tensor(torch.zeros(128, 128), 1.0, 0, torch.qint8),
        "8 bits": torch.zeros(128, 128, dtype=torch.float8_e4m3fn),
        "complex": torch.zeros(128, 128, dtype=torch.complex64),
        "said to be large": torch.zeros(1).expand(1 << 20, 1 << 20),
    }
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other = to_state_dict(models.build("tiny-16"))
    for kind, tensor in kinds.items():
        torch.save(other | {"text_projection": tensor}, tmp_path / "odd.pt")
        for given in (str(tmp_path / "odd.pt"), other | {"text_projection": tensor}):
            with pytest.raises(InputError, match=r"'text_projection' is no plain array of numbers .*save it dense"):
                load_weights(model, given)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), kind
    parts = to_state_dict(models.build("tiny-16"), "transformers")
    for letter in "qkv":
        key = f"text_model.encoder.layers.0.self_attn.{letter}_proj.weight"
        parts[key] = torch.zeros(1).expand(1 << 20, 1 << 20)  # put together they would ask for 12 TiB
    with pytest.raises(InputError, match="is no plain array of numbers"):
        load_weights(model, parts, "transformers")


def test_files_on_s3_are_read(s3_endpoint: str, model: models.CLIP, tmp_path: Path) -> None:
    store = boto3.client("s3")
    store.create_bucket(Bucket="weights")
    for kind in ("safetensors", "sharded", "plain"):
        folder = tmp_path / kind
        folder.mkdir()
        path = write(folder, kind, model)
        for file in folder.iterdir():
            store.upload_file(str(file), "weights", f"{kind}/{file.name}")
        uri = f"s3://weights/{kind}/{path.name}"
        other = models.build("tiny-16")
        load_weights(other, uri)
        assert torch.equal(other.text_projection, model.text_projection)
        assert weights.digest(uri) == weights.digest(str(path))
    with pytest.raises(InputError, match=r"s3://weights/none\.pt"):
        load_weights(model, "s3://weights/none.pt")

"""`python -m evaluation probe` on an exported model: features against plain torch, the cut of validation, files, identity, bad input."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from scipy.special import softmax

from evaluation.__main__ import main
from evaluation.config import EvaluationSet, ProbeConfig
from evaluation.datasets import open_set
from evaluation.model import ModelEncoder
from evaluation.overlap.splits import read_predictions
from evaluation.probing import held_out
from pipeline.content.image import decode
from pipeline.content.labelled import LabelledSet
from pipeline.contracts.config import load_config, to_toml
from pipeline.contracts.errors import InputError
from tests.evaluation import exported
from tests.evaluation.planted import flat, picture
from trainer import export
from trainer.data.transforms import evaluation_pixels, normalise

ROOT_HASH = "cd" * 32
CLASSES = ["dark", "middle", "light"]
LEVELS = [30, 120, 210]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    exported.tiny(folder, "tiny-16", CLASSES, ROOT_HASH)
    return folder


def greys(path: Path, n: int, seed: int) -> EvaluationSet:
    """Grey frames of three classes; what tells them apart is their level."""
    draws = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = [flat(LEVELS[label] + int(draws.integers(-25, 26)), 40 + k) for k, label in enumerate(labels)]
    pq.write_table(pa.table({"image": images, "label": pa.array(labels, pa.int64())}), path)
    return EvaluationSet(name=path.stem, path=str(path), label="label", classes=CLASSES)


@pytest.fixture
def config(model: Path, tmp_path: Path) -> Path:
    settings = {
        "model": str(model),
        "out": str(tmp_path / "out"),
        "validation_share": 0.25,
        "sets": [
            {
                "name": "greys",
                "metric": "mean_per_class",
                "train": greys(tmp_path / "train.parquet", 60, 1).model_dump(),
                "test": greys(tmp_path / "test.parquet", 30, 2).model_dump(),
            }
        ],
    }
    path = tmp_path / "probe.toml"
    path.write_text(to_toml(ProbeConfig.model_validate(settings)), "utf-8")
    return path


@pytest.mark.parametrize("preset", ["tiny-vit", "tiny"])
def test_features_are_those_before_the_projection(preset: str, tmp_path: Path) -> None:
    exported.tiny(tmp_path, preset, CLASSES, ROOT_HASH)
    rows = [picture(k, "evaluation", 1) for k in range(3)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "set.parquet")
    labelled = open_set(EvaluationSet(name="set", path=str(tmp_path / "set.parquet")))
    encoder = ModelEncoder(str(tmp_path / "m.safetensors"), batch=2)
    found = encoder.features(labelled, [0, 1, 2])
    net, _, card = export.load_model(str(tmp_path / "m.safetensors"))
    with torch.inference_mode():
        pixels = np.stack(
            [evaluation_pixels(decode(data, min_short_side=card.image_size).rgb, card.image_size) for data in rows]
        )
        images = net.encode_image(normalise(torch.from_numpy(pixels))).numpy()
    np.testing.assert_allclose(encoder.images(labelled, [0, 1, 2]), images, atol=1e-5)
    if preset == "tiny":  # a ResNet's attention pool ends in the joint space
        np.testing.assert_allclose(found, images, atol=1e-5)
    else:
        projection = net.get_parameter("visual.proj").detach().numpy()
        assert found.shape == (3, projection.shape[0]) == (3, 192)
        np.testing.assert_allclose(found @ projection, images, atol=1e-4)
        # After a LayerNorm with its first weights: no scaling to length 1.
        np.testing.assert_allclose(found.mean(axis=1), 0, atol=1e-4)
        np.testing.assert_allclose(found.std(axis=1), 1, atol=1e-2)


def test_probe(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--config", str(config)]) is None
    said = capsys.readouterr().out
    assert "greys: 30 examples, 3 classes" in said
    assert "15 fits" in said
    out = tmp_path / "out"
    figures = json.loads((out / "probe.json").read_bytes())
    entry = figures["sets"]["greys"]
    assert entry["examples"] == {"train": 45, "validation": 15, "test": 30}
    assert entry["validation_cut"] == {"seed": 0, "share": 0.25}
    assert len(entry["search"]) == 15
    assert entry["index"] in [trial["index"] for trial in entry["search"]]
    assert entry["top1"]["value"] > 0.9
    assert entry["top1"]["low"] < entry["top1"]["value"]
    best = next(trial for trial in entry["search"] if trial["index"] == entry["index"])
    assert best["score"] == max(trial["score"] for trial in entry["search"])
    assert entry["refit"]["strength"] == best["strength"] == entry["strength"]

    # The saved classifier gives the predictions again, from features taken anew.
    saved = (out / "probes" / "greys.safetensors").read_bytes()
    card = json.loads((out / "probes" / "greys.json").read_bytes())
    assert hashlib.sha256(saved).hexdigest() == card["weights_sha256"] == entry["weights_sha256"]
    assert card["classes"] == CLASSES
    settings = load_config(ProbeConfig, str(config))
    test = open_set(settings.sets[0].test)
    features = ModelEncoder(settings.model).features(test, range(30)).astype(np.float64)
    tensors = safetensors.numpy.load(saved)
    shares = softmax(features @ tensors["weights"].T + tensors["intercepts"], axis=1)
    table = pq.read_table(out / "predictions" / "greys.parquet")
    assert table["prediction"].to_pylist() == shares.argmax(axis=1).tolist()
    np.testing.assert_allclose(table["score"].to_numpy(), shares.max(axis=1), rtol=1e-5)
    assert table["correct"].to_numpy().sum() == entry["top1"]["hits"]
    # The overlap job takes them for scores of this set.
    assert read_predictions(str(out / "predictions" / "greys.parquet"), test, "hash").content_root == ROOT_HASH

    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["probe", "--config", str(config)]) is None
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_validation_of_its_own_and_leaks(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_config(ProbeConfig, str(config))
    own = greys(tmp_path / "validation.parquet", 18, 3)
    one = settings.sets[0]
    leaky = one.test.model_copy(update={"name": "leaky", "path": one.train.path})
    changed = settings.model_copy(update={"sets": [one.model_copy(update={"validation": own, "test": leaky})]})
    config.write_text(to_toml(changed), "utf-8")
    assert main(["probe", "--config", str(config)]) is None
    assert "60 test pictures are, bit for bit, among those learned from" in capsys.readouterr().out
    entry = json.loads((tmp_path / "out" / "probe.json").read_bytes())["sets"]["greys"]
    assert entry["examples"] == {"train": 60, "validation": 18, "test": 60}
    assert (entry["validation_cut"], entry["test_in_train"]) == (None, 60)


def labelled_set(tmp_path: Path, labels: list[int], levels: list[int]) -> LabelledSet:
    table = pa.table({"image": [flat(level, 20) for level in levels], "label": pa.array(labels, pa.int64())})
    pq.write_table(table, tmp_path / "cut.parquet")
    return open_set(EvaluationSet(name="cut", path=str(tmp_path / "cut.parquet"), label="label"))


def test_the_cut(tmp_path: Path) -> None:
    labels = [0] * 40 + [1] * 10 + [2] * 2 + [3]
    levels = [*[4 * k for k in range(20)] * 2, *range(150, 160), 200, 205, 220]
    labelled = labelled_set(tmp_path, labels, levels)
    held = held_out(labelled, 0.2, 0)
    assert [int(held[np.array(labels) == label].sum()) for label in range(4)] == [8, 2, 1, 0]
    assert (held[:20] == held[20:40]).all()  # the same picture is on one side
    # The order of the rows does not matter, the seed does.
    order = np.random.default_rng(0).permutation(len(labels))
    turned = dataclasses.replace(
        labelled, labels=labelled.labels[order], sha256=[labelled.sha256[row] for row in order]
    )
    assert (held_out(turned, 0.2, 0) == held[order]).all()
    assert any((held_out(labelled, 0.2, seed) != held).any() for seed in (1, 2))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sets.0.metric=best", "metric"),
        ("tolerance=0", "tolerance"),
        ("validation_share=1", "validation_share"),
        ("device=tpu9", "is no device of torch"),
        ("model=nowhere", "holds 0 .safetensors files"),
    ],
)
def test_bad_settings(config: Path, override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        main(["probe", "--config", str(config), override])


def test_bad_sets(config: Path, tmp_path: Path) -> None:
    settings = load_config(ProbeConfig, str(config))
    one = settings.sets[0]

    def refused(said: str, **changed: EvaluationSet) -> None:
        mended = settings.model_copy(update={"sets": [one.model_copy(update=changed)]})
        config.write_text(to_toml(mended), "utf-8")
        with pytest.raises(InputError, match=said) as caught:
            main(["probe", "--config", str(config)])
        assert "\n" not in str(caught.value)

    refused("give all parts the same `classes`", test=one.test.model_copy(update={"classes": CLASSES[::-1]}))
    refused("test .* has no labelled picture", test=one.test.model_copy(update={"label": None}))
    table = pq.read_table(one.train.path).set_column(1, "label", pa.array([1] * 60))
    pq.write_table(table, tmp_path / "one.parquet")
    single = one.train.model_copy(update={"path": str(tmp_path / "one.parquet"), "absent_classes": True})
    refused("pictures of one class only", train=single)
    assert not (tmp_path / "out").exists()

"""`python -m evaluation probe` on an exported model: features against plain torch, the cut of validation, files, identity, bad input."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from evaluation import one_vs_rest, predictions
from evaluation.__main__ import main
from evaluation.config import EvaluationSet, FewshotConfig, ProbeConfig, ZeroshotConfig
from evaluation.datasets import open_set
from evaluation.model import ModelEncoder
from evaluation.overlap.splits import read_predictions
from evaluation.probing import held_out, open_parts
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
    table = pq.read_table(out / "probes" / "predictions" / "greys.parquet")
    assert table["prediction"].to_pylist() == shares.argmax(axis=1).tolist()
    np.testing.assert_allclose(table["score"].to_numpy(), shares.max(axis=1), rtol=1e-5)
    assert table["correct"].to_numpy().sum() == entry["top1"]["hits"]
    # The overlap job takes them for scores of this set.
    assert (
        read_predictions(str(out / "probes" / "predictions" / "greys.parquet"), test, "hash").content_root == ROOT_HASH
    )

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
    # So it is with other labels, of which a set may have two for one picture.
    twice = labelled_set(tmp_path, [0] * 20 + [1] * 30, [*[4 * k for k in range(20)] * 2, *range(150, 160)])
    for seed in range(5):
        cut = held_out(twice, 0.2, seed)
        assert (cut[:20] == cut[20:40]).all()
        assert (cut[:20].sum(), cut[40:].sum()) == (4, 2)
    # The order of the rows does not matter, the seed does.
    order = np.random.default_rng(0).permutation(len(labels))
    turned = dataclasses.replace(
        labelled, labels=labelled.labels[order], sha256=[labelled.sha256[row] for row in order]
    )
    assert (held_out(turned, 0.2, 0) == held[order]).all()
    assert any((held_out(labelled, 0.2, seed) != held).any() for seed in (1, 2))


def clips(path: Path, n: int, seed: int) -> EvaluationSet:
    """Videos of 13 frames; the middle one shows the class, the others another, in no order of the rows."""
    draws = np.random.default_rng(seed)
    rows = [(video, frame) for video in range(n) for frame in range(13)]
    rows = [rows[place] for place in draws.permutation(len(rows))]
    shown = [LEVELS[(video + (frame != 6)) % 3] for video, frame in rows]
    table = pa.table(
        {
            "image": [flat(level + int(draws.integers(-25, 26)), 40 + place) for place, level in enumerate(shown)],
            "label": pa.array([video % 3 for video, _ in rows], pa.int64()),
            "id": [f"{path.stem}{video}/{frame}.jpg" for video, frame in rows],
            "video": [f"{path.stem}{video}" for video, _ in rows],
        }
    )
    pq.write_table(table, path)
    return EvaluationSet(name=path.stem, path=str(path), label="label", id="id", group="video", classes=CLASSES)


def test_of_a_video_the_middle_frame_is_probed(config: Path, tmp_path: Path) -> None:
    """As in A.3; frame 6 of 0 to 12 is known by its number, and all rows of a video have its answer."""
    settings = load_config(ProbeConfig, str(config))
    videos = {"train": clips(tmp_path / "a.parquet", 40, 5), "test": clips(tmp_path / "b.parquet", 12, 6)}
    one = settings.sets[0].model_copy(update=videos)
    config.write_text(to_toml(settings.model_copy(update={"sets": [one]})), "utf-8")
    parts = open_parts(one, settings)
    for part in (parts.train, parts.validation, parts.test):
        assert {part.labelled.ids[row].split("/")[1] for row in part.rows} == {"6.jpg"}
    assert main(["probe", "--config", str(config)]) is None
    entry = json.loads((tmp_path / "out" / "probe.json").read_bytes())["sets"]["greys"]
    assert entry["examples"] == {"train": 30, "validation": 10, "test": 12}
    assert (entry["n"], entry["top1"]["n"]) == (12, 12)
    place = tmp_path / "out" / "probes" / "predictions" / "greys.parquet"
    rows = pq.read_table(place).to_pylist()
    assert len(rows) == 12 * 13
    assert len({(row["group"], row["prediction"], row["p"], row["p_label"]) for row in rows}) == 12
    read = predictions.read(str(place))
    assert (len(read.ids), int(read.correct.sum())) == (12, entry["top1"]["hits"])
    assert entry["top1"]["value"] > 0.9
    mixed = pq.read_table(tmp_path / "b.parquet")
    other = [(label + (row == 3)) % 3 for row, label in enumerate(mixed["label"].to_pylist())]
    pq.write_table(mixed.set_column(1, "label", pa.array(other)), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="has another label than its video"):
        main(["probe", "--config", str(config)])


def test_the_metric_is_the_datasets(config: Path, tmp_path: Path) -> None:
    """Mean per class chooses the strength and is the headline where it is the dataset's; the area under a curve is the headline."""
    settings = load_config(ProbeConfig, str(config))
    one = settings.sets[0]

    def entry_of(dataset: str, classes: int, **changed: object) -> dict[str, Any]:
        parts = {}
        for name in ("train", "test"):
            part = getattr(one, name)
            where = {"label": list(range(classes))}
            parts[name] = part.model_copy(
                update={"dataset": dataset, "other_counts": True, "where": where, "classes": CLASSES[:classes]}
            )
        mended = one.model_copy(update={**parts, "metric": None, **changed})
        config.write_text(to_toml(settings.model_copy(update={"sets": [mended]})), "utf-8")
        assert main(["probe", "--config", str(config)]) is None
        found: dict[str, Any] = json.loads((tmp_path / "out" / "probe.json").read_bytes())["sets"]["greys"]
        return found

    pets = entry_of("oxford_pets", 3)
    assert (pets["metric"], pets["chosen_by"], pets["headline"]) == ("mean_per_class",) * 2 + (pets["mean_per_class"],)
    assert entry_of("oxford_pets", 3, metric="top1")["metric"] == "accuracy"
    memes = entry_of("hateful_memes", 2)
    assert (memes["metric"], memes["chosen_by"]) == ("roc_auc", "top1")
    test = open_set(one.test.model_copy(update={"where": {"label": [0, 1]}, "classes": CLASSES[:2]}))
    tensors = safetensors.numpy.load((tmp_path / "out" / "probes" / "greys.safetensors").read_bytes())
    features = ModelEncoder(settings.model).features(test, range(len(test))).astype(np.float64)
    margin = features @ (tensors["weights"][1] - tensors["weights"][0])
    assert memes["headline"]["value"] == pytest.approx(roc_auc_score(test.labels, margin))
    with pytest.raises(InputError, match="roc_auc needs two classes, there are 3"):
        entry_of("hateful_memes", 3)


def test_one_folder_for_all_commands(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the README calls them: zero-shot's answers outlive the probe's of the same name, and `versus-probe` reads all three."""
    settings = load_config(ProbeConfig, str(config))
    one, out = settings.sets[0], tmp_path / "out"
    names = ["one", "two", "three"]
    tests = []
    for k, name in enumerate(names):
        tests.append(greys(tmp_path / f"{name}.parquet", 30, 7 + k))
        table = pq.read_table(tests[-1].path)
        wrong = [label if row >= 2 * k + 1 else 2 for row, label in enumerate(table["label"].to_pylist())]
        pq.write_table(table.set_column(1, "label", pa.array(wrong)), tests[-1].path)
    sets = [
        one.model_copy(update={"name": name, "metric": metric, "test": test})
        for name, metric, test in zip(names, (None, "mean_per_class", "top1"), tests, strict=True)
    ]
    shared = {"model": settings.model, "out": str(out)}
    for kind, built in (
        ("probe", settings.model_copy(update={"sets": sets})),
        ("fewshot", FewshotConfig.model_validate({**shared, "sets": sets, "shots": [2], "seeds": [0, 1]})),
        ("zeroshot", ZeroshotConfig.model_validate({**shared, "sets": [test.model_dump() for test in tests]})),
    ):
        (tmp_path / f"{kind}.toml").write_text(to_toml(built), "utf-8")
    assert main(["zeroshot", "--config", str(tmp_path / "zeroshot.toml")]) is None
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for kind in ("probe", "fewshot"):
        assert main([kind, "--config", str(tmp_path / f"{kind}.toml")]) is None
    assert {path: path.read_bytes() for path in before} == before
    capsys.readouterr()
    assert main(["versus-probe", str(out), str(out), "--fewshot", str(out)]) is None
    assert "over 3 datasets" in capsys.readouterr().out


def several(path: Path, n: int, seed: int) -> EvaluationSet:
    """Grey pictures that are dark or light, some of them also "middle", some nothing."""
    draws = np.random.default_rng(seed)
    levels = [int(level) for level in draws.integers(0, 256, n)]
    names = [[k for k, known in enumerate((level < 90, 70 < level < 170, level > 200)) if known] for level in levels]
    images = [flat(level, 40 + k) for k, level in enumerate(levels)]
    pq.write_table(pa.table({"image": images, "label": pa.array(names, pa.list_(pa.int64()))}), path)
    return EvaluationSet(name=path.stem, path=str(path), label="label", classes=CLASSES)


def test_several_labels_a_picture(config: Path, tmp_path: Path) -> None:
    """As VOC2007: scikit-learn's classifiers of each class against the rest, one strength for all, by mAP."""
    settings = load_config(ProbeConfig, str(config))
    sets = {"train": several(tmp_path / "a.parquet", 60, 5), "test": several(tmp_path / "b.parquet", 40, 6)}
    one = settings.sets[0].model_copy(update={**sets, "metric": None})
    exact = settings.model_copy(update={"sets": [one], "tolerance": 1e-9})
    config.write_text(to_toml(exact), "utf-8")
    assert main(["probe", "--config", str(config)]) is None
    entry = json.loads((tmp_path / "out" / "probe.json").read_bytes())["sets"]["greys"]
    assert (entry["metric"], entry["chosen_by"], entry["mean_per_class"]) == ("map11", "map11", None)
    assert entry["examples"] == {"train": 45, "validation": 15, "test": 40}
    assert len(entry["search"]) <= 15
    parts = open_parts(one, exact)
    encoder = ModelEncoder(settings.model)
    train, validation, test = (
        encoder.features(part.labelled, part.rows.tolist()).astype(np.float64)
        for part in (parts.train, parts.validation, parts.test)
    )
    features, marks = np.concatenate([train, validation]), np.concatenate([parts.train.marks, parts.validation.marks])
    logits = np.stack(
        [
            LogisticRegression(C=1 / entry["strength"], tol=1e-12, max_iter=20_000)
            .fit(features, marks[:, k])
            .decision_function(test)
            for k in range(3)
        ],
        axis=1,
    )
    assert entry["headline"]["value"] == pytest.approx(one_vs_rest.mean_precision(logits, parts.test.marks))
    assert entry["headline"]["value"] > 0.8
    kept = pq.read_table(tmp_path / "out" / "probes" / "predictions" / "greys.parquet")
    np.testing.assert_allclose(np.array(kept["scores"].to_pylist()), logits, rtol=1e-3, atol=1e-3)
    mixed = one.model_copy(update={"train": settings.sets[0].train})
    with pytest.raises(InputError, match="one has several labels a picture"):
        open_parts(mixed, exact)
    for metric in ("top1", "mean_per_class"):
        asked = one.model_copy(update={"metric": metric})
        with pytest.raises(InputError, match=f"metric is '{metric}', and sets with several labels .* drop the key"):
            open_parts(asked, exact)
    with pytest.raises(InputError, match="labels: class 1 has 0 examples among 4 pictures"):
        one_vs_rest.fit(np.eye(4, dtype=np.float32), np.array([[1, 0], [0, 0], [1, 0], [0, 0]], np.int8), 1.0)
    with pytest.raises(InputError, match="pictures without an example"):
        one_vs_rest.mean_precision(np.zeros((3, 2)), np.zeros((3, 2), np.int8))
    shots = FewshotConfig.model_validate({"model": settings.model, "out": str(tmp_path / "few"), "sets": [one]})
    (tmp_path / "few.toml").write_text(to_toml(shots), "utf-8")
    with pytest.raises(InputError, match="has several labels a picture, and shots are so many of one class"):
        main(["fewshot", "--config", str(tmp_path / "few.toml")])


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

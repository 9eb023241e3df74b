"""Few-shot: the published lists, the interval over draws and examples against simulations with a planted truth, the command."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from evaluation import fewshot, probe
from evaluation.__main__ import main
from evaluation.config import EvaluationSet, FewshotConfig, ProbeSet
from evaluation.datasets import open_set
from evaluation.intervals import Interval
from evaluation.probing import Part, open_parts
from pipeline.content.image import decode
from pipeline.content.labelled import LabelledSet
from pipeline.contracts.config import load_config, to_toml
from pipeline.contracts.errors import InputError
from tests.evaluation import exported
from tests.evaluation.planted import flat

CLASSES = ["dark", "middle", "light"]


class ToyEncoder:
    """Features that are the grey level and waves of it: what a model makes of pixels is not what is tested here."""

    def features(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        assert list(rows) == sorted(rows)
        levels = np.array([decode(one.data).rgb.mean() for one in labelled.pictures(rows)]) / 255
        waves = [np.sin(k * levels) for k in range(1, 9)] + [np.cos(k * levels) for k in range(1, 9)]
        return np.stack(waves, axis=1).astype(np.float32)


def greys(path: Path, n: int, seed: int) -> EvaluationSet:
    draws = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = [flat(60 + 60 * int(label) + int(draws.integers(-45, 46)), 40) for label in labels]
    table = pa.table(
        {"image": images, "label": pa.array(labels, pa.int64()), "id": [f"{path.stem}/{k}" for k in range(n)]}
    )
    pq.write_table(table, path)
    return EvaluationSet(name=path.stem, path=str(path), label="label", id="id", classes=CLASSES)


@pytest.fixture
def config(tmp_path: Path) -> FewshotConfig:
    one = {
        "name": "greys",
        "train": greys(tmp_path / "train.parquet", 45, 1),
        "validation": greys(tmp_path / "validation.parquet", 24, 2),
        "test": greys(tmp_path / "test.parquet", 60, 3),
    }
    values = {"model": "m", "out": str(tmp_path / "out"), "sets": [one], "shots": [1, 3], "seeds": [0, 1]}
    return FewshotConfig.model_validate(values)


def whole(one: EvaluationSet) -> Part:
    labelled = open_set(one)
    return Part(labelled, np.arange(len(labelled)))


def test_the_lists(config: FewshotConfig) -> None:
    train = whole(config.sets[0].train)
    lists = fewshot.choose("greys", train, [0, 7], 4)
    for draw in lists.draws:
        for label, ids in enumerate(draw.ids):
            # The definition, by hand.
            mine = [train.labelled.ids[row] for row in range(45) if train.labelled.labels[row] == label]
            key = draw.seed.to_bytes(8, "little")
            ranked = sorted((hashlib.blake2b(one.encode(), key=key, digest_size=16).digest(), one) for one in mine)
            assert ids == [one for _, one in ranked[:4]]
    assert lists.draws[0].ids != lists.draws[1].ids
    assert fewshot.choose("greys", train, [7], 2).draws[0].ids == [ids[:2] for ids in lists.draws[1].ids]
    with pytest.raises(InputError, match=r"class 'dark' has 15 pictures to learn from .* 16 shots"):
        fewshot.choose("greys", train, [0], 16)


def test_lists_are_read_again_or_refused(config: FewshotConfig, tmp_path: Path) -> None:
    train = whole(config.sets[0].train)
    lists = fewshot.choose("greys", train, config.seeds, 4)
    place = tmp_path / "lists" / "greys.json"
    place.parent.mkdir()

    def write(**changed: object) -> None:
        place.write_text(json.dumps(lists.model_dump(mode="json") | changed), "utf-8")

    write()
    assert fewshot.read_lists(str(place), train, 4) == lists

    def refused(said: str, shots: int = 4, **changed: object) -> None:
        write(**changed)
        with pytest.raises(InputError, match=said) as caught:
            fewshot.read_lists(str(place), train, shots)
        assert "\n" not in str(caught.value)

    draw = lists.draws[0].model_dump()
    refused("no lists of few-shot examples", version=2)
    refused("no lists of few-shot examples", draws=[])
    refused("no lists of few-shot examples", draws=[draw | {"seed": -1}])
    refused("chosen from a set of content hash 0000", train_content_hash="0" * 64)
    refused("seed 0 has fewer than 5 shots", shots=5)
    refused("seed 0 has fewer than 4 shots", draws=[draw | {"ids": draw["ids"][:2]}])
    refused("'elsewhere' is no picture of class 'dark'", draws=[draw | {"ids": [["elsewhere"] * 4, *draw["ids"][1:]]}])
    refused("is no picture of class 'dark'", draws=[draw | {"ids": draw["ids"][::-1]}])
    refused("comes twice", draws=[draw | {"ids": [draw["ids"][0][:1] * 4, *draw["ids"][1:]]}])
    place.write_bytes(b"\xff[" * 50)
    with pytest.raises(InputError, match="no lists of few-shot examples"):
        fewshot.read_lists(str(place), train, 4)
    write()
    asked = config.model_copy(update={"lists": str(place.parent), "seeds": [0, 5]})
    with pytest.raises(InputError, match=r"has the seeds \[0, 1\], asked for are \[0, 5\]"):
        fewshot.lists_of(asked, asked.sets[0], train)


def test_learning_from_the_lists_is_the_probe_on_those_rows(config: FewshotConfig) -> None:
    one = config.sets[0]
    parts = open_parts(one, config)
    lists = fewshot.lists_of(config, one, parts.train)
    found = fewshot.learn(ToyEncoder(), one, parts, lists, config)
    train, validation, test = (
        ToyEncoder().features(part.labelled, part.rows.tolist()) for part in (parts.train, parts.validation, parts.test)
    )
    ids = parts.train.labelled.ids
    for place, shots in enumerate(config.shots):
        for number, draw in enumerate(lists.draws):
            rows = [ids.index(name) for each in draw.ids for name in each[:shots]]
            labels = parts.train.labelled.labels[rows]
            best = probe.search(train[rows], labels, validation, parts.validation.labels).best.probe
            learned = found["logistic"][place][number]
            assert (learned.predictions == best.predict(test)).all()
            assert learned.strength == best.strength
    point = fewshot.curve_point(parts.test, found["logistic"][1], "top1", 0.95)
    correct = [(one.predictions == parts.test.labels).mean() for one in found["logistic"][1]]
    assert point.value == pytest.approx(np.mean(correct))
    assert point.value > 0.5
    assert fewshot.curve_point(parts.test, found["ridge"][1], "top1", 0.95).value > 0.5


@pytest.mark.parametrize("by_class", [False, True])
def test_the_interval_covers_the_truth(by_class: bool) -> None:
    """Worlds with a known mean: draws differ, examples differ, and what is left is a coin's throw."""
    random = np.random.default_rng(5)
    covered, widths, worlds = 0, [], 400
    easy = np.array([0.15, 0.0, -0.15])
    for _ in range(worlds):
        classes = random.integers(0, 3, 120)
        luck, hard = 0.05 * random.normal(size=5), 0.15 * random.normal(size=120)
        share = np.clip(0.6 + luck[:, None] + hard + easy[classes], 0, 1)
        point = fewshot.crossed(random.random((5, 120)) < share, classes if by_class else None, 0.95)
        assert point.low is not None
        assert point.high is not None
        covered += point.low <= 0.6 <= point.high
        widths.append(point.high - point.low)
    assert covered >= 0.93 * worlds
    assert np.mean(widths) < 0.25


def test_the_interval_of_what_does_not_vary() -> None:
    right = np.ones((3, 8), bool)
    assert fewshot.crossed(right, None, 0.95) == Interval(1.0, None, None)
    classes = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    right[:, 6:] = False
    assert fewshot.crossed(right, classes, 0.95) == Interval(0.5, None, None)
    assert fewshot.crossed(right, None, 0.95).value == 0.75


def test_fewshot(config: FewshotConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported.tiny(tmp_path, "tiny-16", CLASSES, "ef" * 32)
    settings = config.model_copy(update={"model": str(tmp_path / "m.safetensors"), "shots": [1, 4], "seeds": [3, 4]})
    place = tmp_path / "fewshot.toml"
    place.write_text(to_toml(settings), "utf-8")
    assert main(["fewshot", "--config", str(place), "--check"]) is None
    assert not (tmp_path / "out").exists()
    assert main(["fewshot", "--config", str(place)]) is None
    assert "logistic    4 shots" in capsys.readouterr().out
    out = tmp_path / "out"
    figures = json.loads((out / "fewshot.json").read_bytes())
    entry = figures["sets"]["greys"]
    assert list(entry["shots"]) == ["1", "4"]
    for point in entry["shots"].values():
        for kind in ("logistic", "ridge"):
            one = point[kind]
            assert one["mean"] == pytest.approx(np.mean([seed["score"] for seed in one["per_seed"]]))
            assert one["low"] < one["mean"] < one["high"]
            assert [seed["seed"] for seed in one["per_seed"]] == [3, 4]
    rows = pq.read_table(out / "fewshot" / "greys.parquet").to_pylist()
    assert len(rows) == 2 * 2 * 2 * 60
    for shots, point in entry["shots"].items():
        for kind in ("logistic", "ridge"):
            for seed in point[kind]["per_seed"]:
                key = (kind, int(shots), seed["seed"])
                own = [row for row in rows if (row["kind"], row["shots"], row["seed"]) == key]
                assert [row["eval_id"] for row in own] == [f"test/{number}" for number in range(60)]
                assert np.mean([row["prediction"] == row["label"] for row in own]) == pytest.approx(seed["score"])
    lists = json.loads((out / "lists" / "greys.json").read_bytes())
    assert [len(ids) for ids in lists["draws"][0]["ids"]] == [4, 4, 4]

    # Another run from the lists gives the same figures.
    again = [f"lists={out / 'lists'}", f"out={tmp_path / 'again'}"]
    assert main(["fewshot", "--config", str(place), *again]) is None
    assert (tmp_path / "again" / "fewshot.json").read_bytes() == (out / "fewshot.json").read_bytes()
    assert (tmp_path / "again" / "lists" / "greys.json").read_bytes() == (out / "lists" / "greys.json").read_bytes()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("shots=[4, 2]", "must ascend"),
        ("shots=[0]", "shots"),
        ("seeds=[1]", "seeds"),
        ("seeds=[1, 1]", "names one twice"),
        ("shots=[99]", "class 'dark' has 15 pictures to learn from"),
        ("lists=nowhere", "nowhere/greys.json: no such file"),
    ],
)
def test_bad_settings(config: FewshotConfig, tmp_path: Path, override: str, said: str) -> None:
    place = tmp_path / "fewshot.toml"
    place.write_text(to_toml(config), "utf-8")
    with pytest.raises(InputError, match=said):
        main(["fewshot", "--config", str(place), override])


def test_the_example_names_a_probe_set() -> None:
    settings = load_config(FewshotConfig, "evaluation/configs/fewshot.toml")
    assert isinstance(settings.sets[0], ProbeSet)
    assert settings.shots == [1, 2, 4, 8, 16]
    assert len(settings.seeds) >= 5

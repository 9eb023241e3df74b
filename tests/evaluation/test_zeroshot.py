"""Zero-shot against a slow twin on a toy encoder, the guards against silent errors (an exported model: test_scoring.py)."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from evaluation import zeroshot
from evaluation.config import PromptConfig
from evaluation.prompts import load_templates, shipped
from pipeline.content.image import decode
from pipeline.content.labelled import LabelledSet, LabelledSetConfig, open_set
from pipeline.contracts.errors import InputError
from tests.evaluation.planted import flat

COLOURS = ["black", "dark_grey", "grey", "light_grey", "white", "pink"]


class ToyEncoder:
    """Knows grey levels: a picture's embedding turns with its mean, a colour word's with its place in the list.

    It is a toy because the arithmetic under test begins after the embeddings; what a model makes of pixels is the trainer's story.
    """

    def images(self, labelled: LabelledSet, rows: Sequence[int]) -> NDArray[np.float32]:
        levels = [float(decode(one.data).rgb.mean()) / 255 for one in labelled.pictures(rows)]
        return 7 * np.array([[np.cos(level), np.sin(level), 0.1] for level in levels], np.float32)

    def texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        out = []
        for number, sentence in enumerate(sentences):
            known = [place for place, name in enumerate(COLOURS) if name.replace("_", " ") in sentence]
            turn = (max(known) if known else 0) / 4 + 0.03 * (number % 3)
            out.append([np.cos(turn), np.sin(turn), len(sentence) / 100])
        return 3 * np.array(out, np.float32)


@pytest.fixture
def greys(tmp_path: Path) -> LabelledSet:
    draws = np.random.default_rng(8)
    labels = [int(value) for value in draws.integers(0, 5, 60)]
    levels = [min(255, max(0, 62 * label + int(draws.integers(-40, 40)))) for label in labels]
    table = pa.table(
        {
            "image": [flat(level, 40) for level in levels],
            "label": pa.array([*labels[:-1], None], pa.int32()),
            "half": ["a" if row < 30 else "b" for row in range(60)],
        }
    )
    pq.write_table(table, tmp_path / "greys.parquet")
    return open_set(
        LabelledSetConfig(
            name="greys",
            path=str(tmp_path / "greys.parquet"),
            label="label",
            classes=COLOURS,
            subgroup="half",
            absent_classes=True,
        )
    )


TEMPLATES = ["a photo of {}", "{} things", "so {}!"]


def test_against_a_slow_twin(greys: LabelledSet) -> None:
    encoder = ToyEncoder()
    scores, table = zeroshot.evaluate(encoder, greys, TEMPLATES)
    weights = []
    sentences = [template.format(name.replace("_", " ")) for name in COLOURS for template in TEMPLATES]
    embedded = encoder.texts(sentences)
    for number in range(len(COLOURS)):
        ensemble = np.zeros(3)
        for one in embedded[3 * number : 3 * number + 3]:
            ensemble += one / np.linalg.norm(one) / 3
        weights.append(ensemble / np.linalg.norm(ensemble))
    right, right5, per_class = 0, 0, {n: [0, 0] for n in range(5)}
    for row in range(59):
        image = encoder.images(greys, [row])[0]
        ranked = sorted(range(6), key=lambda n: (-float(weights[n] @ image), n))
        label = int(greys.labels[row])
        right += ranked[0] == label
        right5 += label in ranked[:5]
        per_class[label][0] += ranked[0] == label
        per_class[label][1] += 1
        assert table["top5"][row].as_py() == ranked[:5]
    assert (scores.top1.hits, scores.top5.hits, scores.n, scores.unlabelled) == (right, right5, 59, 1)
    mean = sum(hits / n for hits, n in per_class.values()) / 5
    assert scores.mean_per_class.value == pytest.approx(mean)
    for one in (scores.mean_per_class, scores.top1):
        assert one.low is not None
        assert one.high is not None
        assert one.low < one.value < one.high
    assert (scores.classes, scores.classes_seen, scores.chance) == (6, 5, 1 / 6)
    assert scores.constant == max(n for _, n in per_class.values()) / 59
    assert sum(group.top1.hits or 0 for group in scores.subgroups) == right
    assert table["correct"].to_pylist().count(True) == right
    assert scores.top1.value > 0.5


def macro(labels: list[int], right: list[bool], classes: int) -> zeroshot.Rate:
    """The mean per class of answers that are right where `right` says so."""
    answers = [label if hit else (label + 1) % classes for label, hit in zip(labels, right, strict=True)]
    best = np.array(answers, np.int32)[:, None]
    names = [str(number) for number in range(classes)]
    return zeroshot.summarise(np.array(labels, np.int32), best, names, None, 0, 0.95).mean_per_class


def test_the_interval_of_the_mean_per_class() -> None:
    """Classes of one example have an uncertain rate too: as wide as the interval of a plain share, for which they are one."""
    draws = np.random.default_rng(4)
    right = (draws.random(200) < 0.3).tolist()
    single = macro(list(range(200)), right, 200)
    assert single.value == pytest.approx(np.mean(right))
    assert single.low is not None
    assert single.high is not None
    half = 1.96 * np.sqrt(0.3 * 0.7 / 200)
    assert half < single.high - single.low < 4 * half
    assert single.low < single.value < single.high
    # Covers the truth about as often as it says, over worlds whose rates are known.
    truth = np.linspace(0.2, 0.9, 10)
    labels = np.repeat(np.arange(10), 30)
    covered = 0
    for _ in range(200):
        one = macro(labels.tolist(), (draws.random(300) < truth[labels]).tolist(), 10)
        covered += (one.low or 0) <= truth.mean() <= (one.high or 0)
    assert 180 <= covered <= 199
    for hits in ([True] * 60, [False] * 60, [True] * 30 + [False] * 30):
        flat_rate = macro([0] * 30 + [1] * 30, hits, 2)
        assert (flat_rate.low, flat_rate.high) == (None, None)


def test_shuffled_class_names_drop_to_chance(greys: LabelledSet) -> None:
    """Scores that survive a wrong order of the class names would be scores of something else."""
    scores, table = zeroshot.evaluate(ToyEncoder(), greys, TEMPLATES)
    best = np.array(table["top5"].to_pylist(), np.int32)
    shuffled = []
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(6).astype(np.int32)
        shuffled.append(zeroshot.summarise(greys.labels[:59], order[best], COLOURS, None, 0, 0.95).top1.value)
    assert np.mean(shuffled) == pytest.approx(scores.chance, abs=0.03)
    assert scores.top1.value > 3 * scores.chance


def test_templates(tmp_path: Path) -> None:
    assert shipped() == ["drawing", "general", "plain"]
    for name in shipped():
        assert all(template.count("{}") == 1 for template in load_templates(PromptConfig(file=name)))
    own = tmp_path / "own.json"
    own.write_text(json.dumps(["one {}", "two {}"]), "utf-8")
    assert load_templates(PromptConfig(file=str(own))) == ["one {}", "two {}"]
    own.write_text("one {}\n# a comment\n\ntwo {}.\n", "utf-8")
    assert load_templates(PromptConfig(file=str(own))) == ["one {}", "two {}."]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no place", "exactly once"),
        ("{} and {}", "exactly once"),
        ("a {name}", "exactly once"),
        ("", "no template"),
        ("[1]", "list of strings"),
    ],
)
def test_bad_templates(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.txt").write_text(text, "utf-8")
    with pytest.raises(InputError, match=said):
        load_templates(PromptConfig(file=str(tmp_path / "bad.txt")))
    with pytest.raises(InputError, match="neither a file nor one of drawing, general, plain"):
        load_templates(PromptConfig(file="absent"))


def test_a_set_without_labels_is_refused(greys: LabelledSet) -> None:
    bare = open_set(LabelledSetConfig(name="bare", path=greys.path))
    with pytest.raises(InputError, match="at least two classes"):
        zeroshot.evaluate(ToyEncoder(), bare, TEMPLATES)

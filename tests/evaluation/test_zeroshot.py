"""Zero-shot against a slow twin on a toy encoder, the guards against silent errors (an exported model: test_scoring.py)."""

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from evaluation import metrics, zeroshot
from evaluation.metrics import Answers, Rate
from pipeline.content.image import decode
from pipeline.content.labelled import LabelledSet, LabelledSetConfig, open_set
from pipeline.contracts.errors import InputError
from tests.evaluation.answers import ends_of_repeats
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
    assert scores.mean_per_class is not None
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


def macro(labels: list[int], right: list[bool], classes: int) -> Rate:
    """The mean per class of answers that are right where `right` says so."""
    answers = [label if hit else (label + 1) % classes for label, hit in zip(labels, right, strict=True)]
    best = np.array(answers, np.int32)[:, None]
    scores = np.zeros((len(labels), classes), np.float32)
    return metrics.measure("mean_per_class", Answers(scores, best, np.array(labels, np.int32)), 0.95)


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
    for hits in ([True] * 60, [False] * 60, [True] * 30 + [False] * 30):
        flat_rate = macro([0] * 30 + [1] * 30, hits, 2)
        assert (flat_rate.low, flat_rate.high) == (None, None)


@pytest.mark.prove
def test_the_interval_of_the_mean_per_class_covers_the_truth() -> None:
    """About as often as it says, over worlds whose rates are known."""
    draws = np.random.default_rng(4)
    truth = np.linspace(0.2, 0.9, 10)
    labels = np.repeat(np.arange(10), 30)
    covered = 0
    for _ in range(200):
        one = macro(labels.tolist(), (draws.random(300) < truth[labels]).tolist(), 10)
        covered += (one.low or 0) <= truth.mean() <= (one.high or 0)
    assert 180 <= covered <= 199


def test_shuffled_class_names_drop_to_chance(greys: LabelledSet) -> None:
    """Scores that survive a wrong order of the class names would be scores of something else."""
    scores, _ = zeroshot.evaluate(ToyEncoder(), greys, TEMPLATES)
    assert scores.guard.mean == pytest.approx((1 - scores.top1.value) / 5, abs=0.06)
    assert scores.guard.largest < scores.top1.value
    assert scores.guard.warnings == []
    assert scores.top1.value > 3 * scores.chance
    wrong, _ = zeroshot.evaluate(
        ToyEncoder(), greys, TEMPLATES, class_names=[[name.replace("_", " ")] for name in COLOURS[1:] + COLOURS[:1]]
    )
    assert wrong.top1.value < 0.3


def test_several_names_a_class(greys: LabelledSet) -> None:
    """Names x templates are averaged, each normalised, and the mean is normalised again; classes may have different numbers of names."""
    names = [["black", "grey"], ["dark grey"], ["white", "light grey", "pink"]]
    found = zeroshot.classifier(ToyEncoder(), names, TEMPLATES)
    sentences = [template.format(name) for several in names for name in several for template in TEMPLATES]
    embedded = ToyEncoder().texts(sentences)
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    for row, (first, last) in enumerate(((0, 6), (6, 9), (9, 18))):
        mean = embedded[first:last].mean(axis=0)
        np.testing.assert_allclose(found[row], mean / np.linalg.norm(mean), atol=1e-6)
    single = zeroshot.classifier(ToyEncoder(), [["black"], ["grey"]], TEMPLATES)
    np.testing.assert_array_equal(single, zeroshot.classifier(ToyEncoder(), ["black", "grey"], TEMPLATES))


class FlatEncoder(ToyEncoder):
    """A colour word's place in the list and nothing else, so that classes are evenly spread."""

    def texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        turns = [
            max(place for place, name in enumerate(COLOURS) if name.replace("_", " ") in one) / 4 for one in sentences
        ]
        return np.array([[np.cos(turn), np.sin(turn), 0] for turn in turns], np.float32)


def test_videos_are_scored_once(tmp_path: Path) -> None:
    """Frames' probabilities are averaged: a twin over the frames of each video; every frame gets its video's row."""
    draws = np.random.default_rng(2)
    videos = [f"v{number}" for number in range(12) for _ in range(1 + number % 4)]
    labels = [int(name[1:]) % 5 for name in videos]
    levels = [min(255, max(0, 62 * label + int(draws.integers(-90, 90)))) for label in labels]
    order = draws.permutation(len(videos))
    table = pa.table({"image": [flat(level, 24) for level in levels], "label": labels, "video": videos}).take(order)
    pq.write_table(table, tmp_path / "v.parquet")
    config = {
        "name": "v",
        "path": str(tmp_path / "v.parquet"),
        "label": "label",
        "group": "video",
        "classes": COLOURS[:5],
    }
    labelled = open_set(LabelledSetConfig.model_validate(config))
    scores, rows = zeroshot.evaluate(FlatEncoder(), labelled, ["{}"])
    weights = zeroshot.classifier(FlatEncoder(), labelled.class_texts, ["{}"])
    images = FlatEncoder().images(labelled, range(len(videos)))
    right = 0
    for number in range(12):
        mine = [row for row in range(len(videos)) if table["video"][row].as_py() == f"v{number}"]
        total = np.zeros(5)
        for row in mine:
            logits = 100 * (weights @ (images[row] / np.linalg.norm(images[row]))).astype(np.float64)
            total += np.exp(logits) / np.exp(logits).sum() / len(mine)
        answer = int(total.argmax())
        right += answer == number % 5
        for row in mine:
            assert rows["prediction"][row].as_py() == answer
            assert rows["correct"][row].as_py() == (answer == number % 5)
            assert rows["group"][row].as_py() == f"v{number}"
            assert rows["score"][row].as_py() == pytest.approx(total.max(), abs=1e-5)
    assert (scores.n, scores.top1.hits, scores.top1.n) == (12, right, 12)
    mixed = table.set_column(1, "label", pa.array([*table["label"].to_pylist()[:-1], (labels[order[-1]] + 1) % 5]))
    pq.write_table(mixed, tmp_path / "v.parquet")
    if videos.count(table["video"][-1].as_py()) > 1:
        with pytest.raises(InputError, match="has another label than its video"):
            zeroshot.evaluate(FlatEncoder(), open_set(LabelledSetConfig.model_validate(config)), ["{}"])


def test_a_video_is_another_ones_repeat_by_all_its_frames(tmp_path: Path) -> None:
    """12 clips that all begin black are 12 examples; where four come again under other names, each pair is a cluster."""
    levels = [[0, 60 * (number % 4), 9 * number + 5] for number in range(12)]
    shown = [*levels, *levels[:4]]

    def scored(clips: list[list[int]]) -> tuple[zeroshot.Scores, list[bool]]:
        table = pa.table(
            {
                "image": [flat(level, 24) for clip in clips for level in clip],
                "label": [number % 4 for number in range(len(clips)) for _ in range(3)],
                "video": [f"v{number}" for number in range(len(clips)) for _ in range(3)],
            }
        )
        pq.write_table(table, tmp_path / "v.parquet")
        config = LabelledSetConfig(
            name="v",
            path=str(tmp_path / "v.parquet"),
            label="label",
            group="video",
            classes=COLOURS[:4],
        )
        found, rows = zeroshot.evaluate(ToyEncoder(), open_set(config), ["{}"])
        return found, rows["correct"].to_pylist()[::3]

    (once, _), (more, right) = scored(levels), scored(shown)
    assert 0 < (once.top1.hits or 0) < 12
    exact = binomtest(once.top1.hits, 12).proportion_ci(0.95)
    assert (once.top1.low, once.top1.high) == pytest.approx((exact.low, exact.high))
    assert more.n == 16
    ends = ends_of_repeats(right, [number % 12 for number in range(16)])
    assert [more.top1.low, more.top1.high] == pytest.approx(ends)


def test_several_labels_a_picture(tmp_path: Path) -> None:
    """A list column of Parquet: 11-point mAP, and right is a best class that is one of the picture's."""
    draws = np.random.default_rng(3)
    levels = [int(level) for level in draws.integers(0, 256, 40)]
    labels = [sorted({min(4, level // 52), int(draws.integers(0, 5))}) for level in levels]
    labels[7] = []
    pq.write_table(pa.table({"image": [flat(level, 24) for level in levels], "label": labels}), tmp_path / "m.parquet")
    config = LabelledSetConfig(name="m", path=str(tmp_path / "m.parquet"), label="label", classes=COLOURS[:5])
    labelled = open_set(config)
    assert labelled.marks is not None
    assert [np.flatnonzero(row).tolist() for row in labelled.marks] == labels
    scores, rows = zeroshot.evaluate(FlatEncoder(), labelled, ["{}"], metric="map11")
    assert (scores.n, scores.unlabelled, scores.mean_per_class) == (40, 0, None)
    assert scores.headline.value > scores.headline_chance + 0.1
    assert rows["correct"].to_pylist() == [
        answer in one for answer, one in zip(rows["prediction"].to_pylist(), labels, strict=True)
    ]
    kept = np.array(rows["scores"].to_pylist(), np.float32)
    again = Answers(kept, zeroshot.rank(kept), labelled.labels, labelled.marks)
    assert metrics.value("map11", again) == scores.headline.value
    with pytest.raises(InputError, match="mean_per_class does not go with several labels"):
        zeroshot.evaluate(FlatEncoder(), labelled, ["{}"], metric="mean_per_class")


def test_a_metric_that_does_not_fit_is_refused(greys: LabelledSet) -> None:
    with pytest.raises(InputError, match="map11 does not go with one label"):
        zeroshot.evaluate(ToyEncoder(), greys, TEMPLATES, metric="map11")
    with pytest.raises(InputError, match="roc_auc needs two classes, there are 6"):
        zeroshot.evaluate(ToyEncoder(), greys, TEMPLATES, metric="roc_auc")


def test_a_metric_without_a_value_is_refused(tmp_path: Path) -> None:
    """The area under a curve of memes none of which is hateful."""
    table = pa.table({"image": [flat(20 * k, 24) for k in range(6)], "label": [0] * 6})
    pq.write_table(table, tmp_path / "memes.parquet")
    config = {"name": "memes", "path": str(tmp_path / "memes.parquet"), "label": "label", "absent_classes": True}
    labelled = open_set(LabelledSetConfig.model_validate({**config, "classes": COLOURS[:2]}))
    with pytest.raises(InputError, match=r"set 'memes' .*roc_auc has no value on it"):
        zeroshot.evaluate(FlatEncoder(), labelled, ["{}"], metric="roc_auc")
    scores = np.eye(3, dtype=np.float32)
    none = Answers(scores, zeroshot.rank(scores), np.full(3, -1, np.int32), np.zeros((3, 3), np.int8))
    for metric in ("accuracy", "map11"):
        with pytest.raises(InputError, match=f"voc: {metric} has no value"):
            zeroshot.summarise(none, COLOURS[:3], metric=metric, place="voc")


def test_frames_with_other_marks_than_their_video_are_refused(tmp_path: Path) -> None:
    columns = {"label": [[0], [0, 1], [1]], "video": ["v", "v", "w"]}
    pq.write_table(pa.table({"image": [flat(80 * k, 24) for k in range(3)], **columns}), tmp_path / "v.parquet")
    config = {"name": "v", "path": str(tmp_path / "v.parquet"), "label": "label", "group": "video"}
    labelled = open_set(LabelledSetConfig.model_validate({**config, "classes": COLOURS[:2]}))
    with pytest.raises(InputError, match="frame '1' has another label than its video"):
        zeroshot.evaluate(FlatEncoder(), labelled, ["{}"], metric="map11")


def test_kept_scores_cost_what_they_are(greys: LabelledSet) -> None:
    """4 bytes a class and example, not an object for each: 59 examples of 20,000 classes."""
    draws = np.random.default_rng(7)
    scores = draws.random((59, 20_000), np.float32)
    rows = np.arange(59)
    answers = Answers(scores, zeroshot.rank(scores), greys.labels[rows])
    tracemalloc.start()
    table = zeroshot.prediction_table(greys, rows, answers, keep_scores=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * scores.nbytes
    assert table["scores"][58].as_py() == scores[58].tolist()


def test_a_set_without_labels_is_refused(greys: LabelledSet) -> None:
    bare = open_set(LabelledSetConfig(name="bare", path=greys.path))
    with pytest.raises(InputError, match="at least two classes"):
        zeroshot.evaluate(ToyEncoder(), bare, TEMPLATES)

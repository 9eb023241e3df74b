"""Calibration against a naive twin and planted temperatures; the worst group against worlds whose groups are equal."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from evaluation import calibration, groups, predictions
from evaluation.__main__ import main
from pipeline.contracts.errors import InputError
from tests.evaluation.answers import black_beginnings, ends_of_repeats, outcomes, write_answers


def made(n: int, scale: float, seed: int, classes: int = 6) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Cosines, and labels drawn from the probabilities that they have at `scale`: calibrated there by construction."""
    draws = np.random.default_rng(seed)
    scores = draws.uniform(-0.3, 0.3, (n, classes)).astype(np.float32)
    shares = calibration.probabilities(scores, scale)
    labels = (draws.random((n, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return scores, labels.astype(np.int32)


def naive_error(p: list[float], right: list[bool]) -> float:
    """The definition, bin by bin."""
    total = 0.0
    for number in range(15):
        inside = [k for k, one in enumerate(p) if number / 15 < one <= (number + 1) / 15]
        if inside:
            away = sum(right[k] for k in inside) / len(inside) - sum(p[k] for k in inside) / len(inside)
            total += len(inside) / len(p) * abs(away)
    return total


def test_against_a_naive_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, labels = made(500, 20.0, 1)
    place = write_answers(tmp_path / "toy.parquet", scores, labels, scale=30.0, pictures=[k % 400 for k in range(500)])
    assert main(["calibration", place, "--out", str(tmp_path / "c.json")]) is None
    assert "toy: 500 examples" in capsys.readouterr().out
    found = json.loads((tmp_path / "c.json").read_bytes())["sets"][0]
    p, own, brier = [], [], []
    for row, label in zip(scores.astype(float).tolist(), labels.tolist(), strict=True):
        exponents = [np.exp(30.0 * one) for one in row]
        shares = [one / sum(exponents) for one in exponents]
        p.append(max(shares))
        own.append(shares[label])
        brier.append(sum((share - (k == label)) ** 2 for k, share in enumerate(shares)))
    right = [bool(one) for one in scores.argmax(axis=1) == labels]
    assert found["accuracy"] == np.mean(right)
    pictures = [k % 400 for k in range(500)]
    assert [found["low"], found["high"]] == pytest.approx(ends_of_repeats(right, pictures))
    for one in found["table"]:
        inside = [k for k in range(500) if one["above"] < p[k] <= one["upto"]]
        shown = [pictures[k] for k in inside]
        if len(set(shown)) < len(shown) and 0 < one["accuracy"] < 1:
            ends = ends_of_repeats([right[k] for k in inside], shown)
        else:
            exact = binomtest(sum(right[k] for k in inside), len(set(shown))).proportion_ci(0.95)
            ends = [exact.low, exact.high]
        assert [one["low"], one["high"]] == pytest.approx(ends)
    assert found["confidence"] == pytest.approx(np.mean(p))
    assert found["ece"]["value"] == pytest.approx(naive_error(p, right), abs=1e-12)
    assert found["log_loss"]["value"] == pytest.approx(-np.mean(np.log(own)))
    assert found["brier"]["value"] == pytest.approx(np.mean(brier))
    assert found["brier_answer"]["value"] == pytest.approx(np.mean((np.array(p) - right) ** 2))
    for name in ("ece", "ece_equal_mass", "log_loss", "brier"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"] or name.startswith("ece")
    assert sum(one["n"] for one in found["table"]) == 500
    # Without the scores of every class the same comes from p and p_label, which are float32 in the file.
    place = write_answers(tmp_path / "bare.parquet", scores, labels, scale=30.0, keep_scores=False)
    answered = calibration.calibrate(predictions.read(place), 0.95)
    assert answered is not None
    bare, tempered = answered
    assert tempered is None
    assert bare.brier is None
    assert bare.ece.value == pytest.approx(naive_error(p, right), abs=1e-6)
    assert bare.log_loss.value == pytest.approx(-np.mean(np.log(own)), rel=1e-6)


def test_equal_mass_is_the_mean_over_sorted_blocks() -> None:
    draws = np.random.default_rng(2)
    p = draws.random(600)
    right = draws.random(600) < p**2
    found = calibration.expected_error(p, right, calibration.equal_mass(p))
    order = np.argsort(p)
    blocks = [abs(right[part].mean() - p[part].mean()) for part in np.split(order, 15)]
    assert found == pytest.approx(np.mean(blocks), abs=1e-12)
    assert calibration.equal_mass(np.ones(40)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("scale", [10.0, 20.0, 60.0])
def test_a_planted_temperature_is_found(scale: float) -> None:
    """Labels are calibrated at 20: a model that works at `scale` has the temperature scale / 20, within four standard errors.

    By Fisher's information the error of 20 / scale x T is one over the root of all variances of the logits under their own softmax.
    """
    scores, labels = made(6000, 20.0, 3)
    shares, logits = calibration.probabilities(scores, 20.0), 20.0 * scores.astype(np.float64)
    information = ((shares * logits**2).sum(axis=1) - (shares * logits).sum(axis=1) ** 2).sum()
    found = calibration.fit_temperature(scores, labels, scale) * 20.0 / scale
    assert abs(found - 1) < 4 / np.sqrt(information) < 0.08


def test_a_temperature_mends_what_it_should(tmp_path: Path) -> None:
    scores, labels = made(2500, 20.0, 3)
    place = write_answers(tmp_path / "toy.parquet", scores, labels, scale=60.0)
    found = calibration.calibrate(predictions.read(place), 0.95)
    assert found is not None
    whole, tempered = found
    assert tempered is not None
    assert tempered.fitted + tempered.after.n == 2500
    assert 1100 < tempered.fitted < 1400
    assert tempered.after.accuracy == tempered.before.accuracy
    assert tempered.after.ece.value < 2 * tempered.after.ece_by_luck
    assert tempered.before.ece.value > 5 * tempered.before.ece_by_luck
    assert (tempered.after.log_loss.high or 1e9) < (tempered.before.log_loss.low or 0)
    assert whole.ece.value == pytest.approx(tempered.before.ece.value, rel=0.2)


def test_the_temperature_has_the_least_loss() -> None:
    scores, labels = made(800, 35.0, 4)
    best = calibration.fit_temperature(scores, labels, 20.0)

    def loss(temperature: float) -> float:
        shares = calibration.probabilities(scores, 20.0 / temperature)
        return float(-np.log(shares[np.arange(800), labels]).mean())

    grid = [loss(best * (1 + step)) for step in np.linspace(-0.2, 0.2, 81)]
    assert loss(best) <= min(grid) + 1e-12


def test_halves_keep_a_picture_together_and_know_no_order() -> None:
    digests = [bytes([k]) * 32 for k in range(200)]
    half = calibration.halves(digests)
    assert 70 < half.sum() < 130
    assert (calibration.halves(digests[::-1]) == half[::-1]).all()


def test_videos_with_one_first_frame_are_calibrated_one_by_one(tmp_path: Path) -> None:
    """They share a black frame: still every one is an example of its own, and they lie in both halves."""
    place = write_answers(tmp_path / "clips.parquet", **black_beginnings([row % 3 > 0 for row in range(40)]))
    answered = calibration.calibrate(predictions.read(place), 0.95)
    assert answered is not None
    whole, tempered = answered
    assert None not in (whole.ece.low, whole.log_loss.low, whole.brier_answer.high)
    exact = binomtest(26, 40).proportion_ci(0.95)
    assert (whole.low, whole.high) == pytest.approx((exact.low, exact.high))
    assert tempered is not None
    assert 8 < tempered.fitted < 32
    assert tempered.fitted + tempered.after.n == 40


def test_examples_with_several_labels_have_no_probability_of_one(tmp_path: Path) -> None:
    scores, labels = made(20, 20.0, 8)
    one = predictions.read(write_answers(tmp_path / "voc.parquet", scores, np.full_like(labels, -1)))
    assert one.p is not None
    assert (one.p_label, one.scores) == (None, None)
    assert calibration.calibrate(one, 0.95) is None


def test_without_probabilities(tmp_path: Path) -> None:
    scores, labels = made(20, 20.0, 5)
    place = write_answers(tmp_path / "toy.parquet", scores, labels, scale=None)
    with pytest.raises(InputError, match="every set has no probabilities"):
        main(["calibration", place])
    place = write_answers(tmp_path / "two.parquet", scores, labels)
    with pytest.raises(InputError, match="answers on 'two' come twice"):
        main(["calibration", place, place])


# ---- worst groups


def test_a_worst_group_that_is_worse_is_told_from_one_that_is_not(tmp_path: Path) -> None:
    draws = np.random.default_rng(6)
    names = [f"g{k % 10}" for k in range(1000)]
    equal = draws.random(1000) < 0.7
    worse = np.where([name == "g3" for name in names], draws.random(1000) < 0.4, equal)
    for right, planted in ((equal, False), (worse, True)):
        found = groups.worst_group(right, names, 0.95)
        assert sum(group.n for group in found.groups) == 1000
        assert found.worst_accuracy.value == min(group.value for group in found.groups)
        assert found.gap.value == pytest.approx(max(group.value for group in found.groups) - found.worst_accuracy.value)
        assert (found.p < 0.01) == planted
        assert 0.08 < found.gap_by_luck < 0.2
        assert all(group.low < group.value < group.high for group in found.groups)
    assert found.worst == "g3"


@pytest.mark.prove
def test_equal_groups_are_called_different_as_often_as_the_level_says() -> None:
    draws = np.random.default_rng(7)
    names = [f"g{k % 5}" for k in range(200)]
    p_values = [groups.worst_group(draws.random(200) < 0.6, names, 0.95).p for _ in range(200)]
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.10


def test_groups_of_videos_with_one_first_frame(tmp_path: Path) -> None:
    given = black_beginnings([row % 4 > 0 for row in range(40)])
    sides = ["left" if row < 60 else "right" for row in range(120)]
    found = groups.of_predictions(
        predictions.read(write_answers(tmp_path / "clips.parquet", groups=sides, **given)), 0.95
    )
    assert found is not None
    assert [(one.name, one.n, one.hits) for one in found.groups] == [("left", 20, 15), ("right", 20, 15)]


def test_groups_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = [True, False, True, True, False, True] * 10
    scores, labels = outcomes(right)
    names = ["a", "b", None] * 20
    place = write_answers(tmp_path / "toy.parquet", scores, labels, groups=names)
    assert main(["groups", place, "--out", str(tmp_path / "g.json")]) is None
    assert "worst: 'b' 0.00%" in capsys.readouterr().out
    found = json.loads((tmp_path / "g.json").read_bytes())["sets"][0]
    assert {one["name"]: (one["n"], one["hits"]) for one in found["groups"]} == {"a": (20, 20), "b": (20, 0)}
    bare = write_answers(tmp_path / "bare.parquet", scores, labels)
    assert main(["groups", place, bare]) is None
    assert "left out, fewer than two subgroups: bare" in capsys.readouterr().out
    with pytest.raises(InputError, match="every set has fewer than two subgroups"):
        main(["groups", bare])
    for command in ("groups", "calibration", "compare"):
        with pytest.raises(
            InputError, match=r"g\.json: is a file, and none of answers .\.parquet.; give a run's `out`"
        ):
            main([command, str(tmp_path / "g.json"), place])


def test_groups_that_are_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, labels = outcomes([True, True, False, False] * 10)
    assert main(["groups", write_answers(tmp_path / "toy.parquet", scores, labels, groups=["a", "b"] * 20)]) is None
    said = capsys.readouterr().out
    assert "none is behind another: all have 50.00%; gap 0.00% (" in said
    assert "worst:" not in said

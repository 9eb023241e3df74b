"""The linear probe against scikit-learn's logistic regression, the search against a plain twin, ridge against the normal equations."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax

from evaluation import probe, ridge
from pipeline.contracts.errors import InputError

linear_model = pytest.importorskip("sklearn.linear_model")
datasets = pytest.importorskip("sklearn.datasets")

GRID = np.logspace(-6, 6, 97)


class Data(NamedTuple):
    """Rows to learn from and rows to ask."""

    x: NDArray[Any]
    y: NDArray[np.int64]
    asked: NDArray[Any]
    answers: NDArray[np.int64]


def clouds(n: int, d: int, classes: int, *, seed: int = 0, dtype: type = np.float32, asked: int = 2000) -> Data:
    """Overlapping classes of unequal sizes in features of unequal spread, far from the origin: what L-BFGS finds hard."""
    draws = np.random.default_rng(seed)
    spread = (1.0 + np.arange(d)) ** -0.7
    turn = np.linalg.qr(draws.normal(size=(d, d)))[0]
    means, offset = draws.normal(size=(classes, d)) * spread, draws.normal(size=d)
    share = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    labels = np.concatenate([np.arange(classes), draws.choice(classes, n + asked - classes, p=share)])
    rows = (1.5 * means[labels] + draws.normal(size=(n + asked, d)) * spread) @ turn + offset
    rows = (2 * rows).astype(dtype)
    return Data(rows[:n], labels[:n], rows[n:], labels[n:])


def objective(x: NDArray[Any], y: NDArray[np.int64], weights: Any, intercepts: Any, strength: float) -> float:
    """The definition: sum of losses + λ/2 ‖W‖²; for one row of weights, the binomial one of scikit-learn."""
    logits = x.astype(np.float64) @ np.asarray(weights).T + intercepts
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    return float(
        -log_softmax(logits, axis=1)[np.arange(len(y)), y].sum() + strength / 2 * (np.asarray(weights) ** 2).sum()
    )


def sklearns(data: Data, strength: float) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a tolerance below rounding is not reached
        # Newton's steps reach the optimum; L-BFGS stops before it on some processors, at 3.6e-6 of it in the hardest case.
        newton = linear_model.LogisticRegression(C=1 / strength, tol=1e-12, max_iter=20_000, solver="newton-cg")
        return newton.fit(data.x.astype(np.float64), data.y)


@pytest.mark.parametrize(
    ("n", "d", "classes", "strength"),
    [
        (600, 16, 5, 1e3),
        (600, 16, 5, 1.0),
        (600, 16, 5, 1e-2),
        (400, 8, 4, 1e-4),
        pytest.param(1500, 16, 5, 1e-5, marks=pytest.mark.prove),
        (600, 16, 2, 3.0),
        (800, 16, 2, 1e-2),
        (30, 50, 4, 0.1),
        (30, 50, 2, 10.0),
        (5000, 6, 3, 0.5),
    ],
)
def test_scikit_learns_optimum(n: int, d: int, classes: int, strength: float) -> None:
    data = clouds(n, d, classes)
    theirs = sklearns(data, strength)
    ours = probe.fit(data.x, data.y, strength)
    best = objective(data.x, data.y, theirs.coef_, theirs.intercept_, strength)
    # Two classes: w is the difference of the two rows.
    rows, at = ours.weights, ours.intercepts
    if classes == 2:
        np.testing.assert_allclose(rows[0], -rows[1], atol=1e-9)
        rows, at = rows[1:] - rows[:1], at[1:] - at[:1]
    here = objective(data.x, data.y, rows, at, strength)
    assert abs(here - best) <= 1e-6 * best
    assert ours.objective == pytest.approx(here, rel=1e-9)
    assert (ours.predict(data.asked) == theirs.predict(data.asked.astype(np.float64))).mean() >= 0.999


@pytest.mark.prove
@pytest.mark.parametrize("strength", [30.0, 1.0, 1e-2])
def test_scikit_learns_optimum_on_many_features(strength: float) -> None:
    data = clouds(4000, 128, 20, asked=4000)
    theirs, ours = sklearns(data, strength), probe.fit(data.x, data.y, strength)
    best = objective(data.x, data.y, theirs.coef_, theirs.intercept_, strength)
    assert abs(ours.objective - best) <= 1e-6 * best
    assert (ours.predict(data.asked) == theirs.predict(data.asked.astype(np.float64))).mean() >= 0.999


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_the_unit_of_the_features_does_not_matter(unit: float) -> None:
    """x → u x and λ → u² λ turn W into W / u and leave the objective as it is."""
    data = clouds(600, 16, 5, dtype=np.float64)
    one, other = probe.fit(data.x, data.y, 0.3), probe.fit(unit * data.x, data.y, 0.3 * unit**2)
    assert other.objective == pytest.approx(one.objective, rel=1e-8)
    assert (one.predict(data.asked) == other.predict(unit * data.asked)).mean() >= 0.999


def test_the_gradient_is_the_gradient_in_the_features_coordinates() -> None:
    data = clouds(500, 12, 4)
    for tolerance in (1e-2, 1e-4, 1e-7):
        one = probe.fit(data.x, data.y, 0.7, tolerance=tolerance)
        x = data.x.astype(np.float64)
        wrong = np.exp(log_softmax(one.logits(x), axis=1)) - np.eye(4)[data.y]
        by_weights = wrong.T @ x + 0.7 * one.weights
        largest = max(np.abs(by_weights).max(), np.abs(wrong.sum(axis=0)).max()) / len(x)
        assert one.gradient == pytest.approx(largest, rel=0.01, abs=2e-8)
        assert one.gradient <= tolerance
        assert one.converged


def test_a_start_changes_the_way_and_not_the_end() -> None:
    data = clouds(700, 10, 4)
    cold = probe.fit(data.x, data.y, 0.05)
    far = probe.fit(data.x, data.y, 1e4)
    near = probe.fit(data.x, data.y, 0.06)
    for start in (far, near):
        warm = probe.fit(data.x, data.y, 0.05, start=start)
        assert warm.objective == pytest.approx(cold.objective, rel=1e-9)
        np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-4)
    assert probe.fit(data.x, data.y, 0.05, start=near).evaluations < cold.evaluations


def test_a_class_without_examples_takes_no_part() -> None:
    data = clouds(500, 10, 4)
    moved = np.array([0, 2, 3, 5])[data.y]
    one, plain = probe.fit(data.x, moved, 1.0, classes=7), probe.fit(data.x, data.y, 1.0)
    assert one.weights.shape == (7, 10)
    np.testing.assert_allclose(one.weights[[0, 2, 3, 5]], plain.weights, atol=1e-7)
    assert np.isneginf(one.intercepts[[1, 4, 6]]).all()
    assert (one.predict(data.asked) == np.array([0, 2, 3, 5])[plain.predict(data.asked)]).all()


@pytest.mark.parametrize("d", [3, 10])
def test_rows_that_are_all_the_same_leave_the_shares_of_the_classes(d: int) -> None:
    one = probe.fit(np.full((6, d), 0.7, np.float32), np.array([0, 0, 0, 1, 1, 2]), 1.0)
    np.testing.assert_allclose(one.weights, 0, atol=1e-6)
    shares = np.exp(log_softmax(one.logits(np.full((1, d), 0.7)), axis=1))
    np.testing.assert_allclose(shares, [[1 / 2, 1 / 3, 1 / 6]], atol=1e-6)


def test_types_of_features() -> None:
    data = clouds(300, 8, 3, dtype=np.float64)
    wanted = probe.fit(data.x, data.y, 1.0)
    frozen = data.x.copy()
    frozen.flags.writeable = False
    for features in (frozen, torch.from_numpy(data.x), np.asfortranarray(data.x)):
        np.testing.assert_allclose(probe.fit(features, data.y, 1.0).weights, wanted.weights, atol=1e-7)
    for wide in (data.x.astype(">f8"), data.x.astype(np.longdouble)):
        np.testing.assert_allclose(probe.fit(wide, data.y, 1.0).weights, wanted.weights, atol=1e-7)
    half = probe.fit(data.x.astype(np.float16), data.y.astype(np.int32), 1.0)
    np.testing.assert_allclose(half.weights, wanted.weights, atol=0.01)
    whole = (10 * data.x).astype(np.int64)
    np.testing.assert_allclose(
        probe.fit(whole, data.y, 1.0).weights, probe.fit(whole.astype(np.float64), data.y, 1.0).weights
    )


# ---- the search


def plain_search(score: Any) -> tuple[int, list[int]]:
    """The paper's search, written the other way round; also the positions asked, in order."""
    asked = []

    def at(index: int) -> float:
        asked.append(index)
        return float(score[index])

    def best_of(candidates: list[int]) -> int:
        """The largest score; of equals the smallest C."""
        values = {index: at(index) if index not in asked else float(score[index]) for index in candidates}
        top = max(values.values())
        return min(index for index in candidates if values[index] == top)

    best = best_of([0, 16, 32, 48, 64, 80, 96])
    for step in (8, 4, 2, 1):
        best = best_of([index for index in (best, best - step, best + step) if 0 <= index <= 96])
    return best, asked


def test_halving_is_the_papers_search() -> None:
    draws = np.random.default_rng(1)
    worlds = [-np.abs(np.arange(97) - peak) / 97 for peak in range(97)]
    worlds += [draws.integers(0, 4, 97) / 4 for _ in range(200)]
    for number, world in enumerate(worlds):
        asked: list[int] = []

        def score_at(index: int, world: Any = world, asked: list[int] = asked) -> float:
            asked.append(index)
            return float(world[index])

        best = probe.halving(score_at)
        assert (best, asked) == plain_search(world)
        assert len(asked) == len(set(asked)) <= 15
        if number < 97:
            assert best == number  # one peak is always found
            assert len(asked) == 15 or best < 15 or best > 81


def digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    x, y = datasets.load_digits(return_X_y=True)
    return x, y


@pytest.mark.parametrize(
    ("unit", "tolerance", "index"),
    [
        (16, 1e-9, 50),
        pytest.param(1, 1e-4, 31, marks=pytest.mark.prove),
        pytest.param(1, 1e-5, 31, marks=pytest.mark.prove),
        pytest.param(1, 1e-9, 31, marks=pytest.mark.prove),
    ],
)
def test_digits(unit: int, tolerance: float, index: int) -> None:
    """research/evaluation.md 4.7: 900 to learn from, 300 to choose by, 597 to report on; pixels of 0 to 16, or of 0 to 1."""
    x, y = digits()
    x = x / unit
    found = probe.search(x[:900], y[:900], x[900:1200], y[900:1200], tolerance=tolerance)
    assert len(found.trials) == 15
    assert all(trial.probe.converged for trial in found.trials)
    assert found.best.index == index
    assert found.best.score == pytest.approx(0.97, abs=1e-12)
    final = probe.fit(x[:1200], y[:1200], found.best.probe.strength, tolerance=tolerance, start=found.best.probe)
    assert (final.predict(x[1200:]) == y[1200:]).mean() == pytest.approx(0.9229480737018425, abs=1e-15)


@pytest.mark.parametrize(
    ("unit", "inverse", "index"),
    [
        (16, 1 / GRID[::-1], 50),
        pytest.param(16, GRID, 50, marks=pytest.mark.prove),
        pytest.param(1, GRID, 31, marks=pytest.mark.prove),
    ],
)
def test_digits_by_scikit_learn(unit: int, inverse: NDArray[np.float64], index: int) -> None:
    """scikit-learn's own fits at its default tolerance choose the same, whether the grid is read as C or, turned round, as λ."""
    x, y = digits()
    x = x / unit

    def score_at(place: int) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = linear_model.LogisticRegression(C=inverse[place], max_iter=1000).fit(x[:900], y[:900])
        return float(fitted.score(x[900:1200], y[900:1200]))

    assert probe.halving(score_at) == index


def test_shuffled_labels_drop_to_chance() -> None:
    data = clouds(800, 20, 5)
    shuffled = np.random.default_rng(3).permutation(data.y)
    balanced = probe.mean_per_class
    honest = probe.search(data.x[:600], data.y[:600], data.x[600:], data.y[600:], score=balanced).best.probe
    fooled = probe.search(data.x[:600], shuffled[:600], data.x[600:], shuffled[600:], score=balanced).best.probe
    assert balanced(data.answers, honest.predict(data.asked)) > 0.6
    assert balanced(data.answers, fooled.predict(data.asked)) == pytest.approx(0.2, abs=0.08)


def test_mean_per_class() -> None:
    labels, answers = np.array([0, 0, 0, 2, 2]), np.array([0, 0, 1, 2, 4])
    assert probe.mean_per_class(labels, answers) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert probe.accuracy(labels, answers) == pytest.approx(3 / 5)


# ---- ridge


@pytest.mark.parametrize(("n", "d"), [(200, 12), (20, 40)])
def test_ridge_is_the_normal_equations(n: int, d: int) -> None:
    data = clouds(n, d, 4, dtype=np.float64, asked=500)
    strengths = np.array([1e3, 3.0, 1e-2])
    targets = np.eye(4)[data.y]
    values = []
    for strength in strengths:
        one = ridge.sweep(data.x, data.y, data.asked, data.answers, classes=4, strengths=np.array([strength]))
        centred = data.x - data.x.mean(axis=0)
        weights = np.linalg.solve(centred.T @ centred + strength * np.eye(d), centred.T @ targets)
        np.testing.assert_allclose(one.weights, weights.T, atol=1e-8)
        intercepts = targets.mean(axis=0) - data.x.mean(axis=0) @ weights
        np.testing.assert_allclose(one.intercepts, intercepts, atol=1e-8)
        answers = (data.asked @ weights + intercepts).argmax(axis=1)
        assert (one.predict(data.asked) == answers).all()
        values.append((answers == data.answers).mean())
        assert one.score == values[-1]
    best = ridge.sweep(data.x, data.y, data.asked, data.answers, classes=4, strengths=strengths)
    assert (best.score, best.strength) == (max(values), strengths[int(np.argmax(values))])


# ---- bad input

FINE = np.zeros((4, 2), np.float32) + np.arange(4)[:, None]


@pytest.mark.parametrize(
    ("features", "labels", "more", "said"),
    [
        (FINE[:, 0], [0, 1, 0, 1], {}, r"features: an array of shape \(4,\)"),
        (FINE[:, :0], [0, 1, 0, 1], {}, r"shape \(4, 0\)"),
        (FINE * np.nan, [0, 1, 0, 1], {}, "not finite"),
        (FINE + 1j, [0, 1, 0, 1], {}, "an array of complex"),
        (FINE.astype(object), [0, 1, 0, 1], {}, "an array of object"),
        (FINE.astype(str), [0, 1, 0, 1], {}, "an array of <U"),
        (FINE, [0, 1, 0], {}, r"shape \(3,\); expected one class number for each of 4"),
        (FINE, [0.0, 1.0, 0.0, 1.0], {}, "labels: float64"),
        (FINE, [0, 1, -1, 1], {}, "row 2 has -1"),
        (FINE, [0, 1, 10**9, 1], {}, "row 2 has 1000000000; class numbers go from 0 to 9,999, .* give `classes`"),
        (FINE, [0, 1, 5, 1], {"classes": 3}, "row 2 has 5; class numbers go from 0 to 2"),
        (FINE, [1, 1, 1, 1], {}, "all 4 rows are of class 1"),
        (FINE, [0, 1, 0, 1], {"strength": 0.0}, "strength: 0.0 is not above 0"),
        (FINE, [0, 1, 0, 1], {"strength": float("nan")}, "strength: nan"),
        (FINE, [0, 1, 0, 1], {"device": "abacus"}, "device: 'abacus'"),
        (FINE, [0, 1, 0, 1], {"device": "meta"}, "device: 'meta' is not there"),
        (FINE, [0, 1, 0, 1], {"device": "xla"}, "device: 'xla' is not there"),
    ],
)
def test_bad_input(features: Any, labels: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        probe.fit(features, np.array(labels), **{"strength": 1.0, **more})
    assert "\n" not in str(caught.value)


def test_bad_validation_rows() -> None:
    data = clouds(100, 6, 3)
    with pytest.raises(InputError, match=r"shape \(1,\); expected one class number for each of 2,000 rows"):
        probe.search(data.x, data.y, data.asked, data.answers[:1])
    with pytest.raises(InputError, match="row 0 has 7; class numbers go from 0 to 2"):
        probe.search(data.x, data.y, data.asked, data.answers * 0 + 7, classes=3)
    with pytest.raises(InputError, match=r"row 0 has .; class numbers go from 0 to 2"):
        probe.search(data.x, data.y, data.asked, data.answers + 5)
    with pytest.raises(InputError, match="features: 5 a row, the probe was fitted on 6"):
        probe.search(data.x, data.y, data.asked[:, :5], data.answers)


def test_a_start_of_another_shape_and_features_that_overflow() -> None:
    data = clouds(100, 6, 3)
    with pytest.raises(InputError, match=r"start: weights of shape \(3, 6\)"):
        probe.fit(data.x[:, :5], data.y, 1.0, start=probe.fit(data.x, data.y, 1.0))
    with pytest.raises(InputError, match=r"the largest entry is .*e.200"):
        probe.fit(data.x.astype(np.float64) * 1e200, data.y, 1.0)

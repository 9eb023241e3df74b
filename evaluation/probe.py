"""The linear probe: how well does a linear classifier on frozen features do? Exactly as in A.3 of the CLIP paper, and fast.

Multinomial logistic regression with an L2 penalty on the weights and none on the intercepts, by L-BFGS. `strength` is the paper's λ:

    objective = Σ_i -log p(label_i | features_i) + λ/2 ‖W‖²,       λ = 1/C,  C as scikit-learn's `LogisticRegression` has it.

Two classes have one weight vector w in scikit-learn. Here they have two rows, -w/2 and w/2, and the penalty is taken of w, which is λ ‖W‖²:
the same probabilities and the same objective. A class without a training example cannot be learned; as in scikit-learn it takes no part.

What makes it faster than scikit-learn's, whose optimum it finds, in the order of what each gives:

- The variables are changed so that the Hessian is nearly the identity: a Kronecker product of classes and features stands for it, and
  is taken anew every 40 iterations. L-BFGS itself is scipy's, as in scikit-learn. Features are centred; that changes the intercepts only.
- A search starts each fit from its neighbour's weights.
- Products are float32 as long as the gradient is far above their rounding, then float64. Sums over blocks of rows, the objective and the
  variables are float64 always. A block of logits stays in the processor's cache.

A fit has converged when no entry of the gradient of objective / n, in the features' own coordinates, is above `tolerance`: scikit-learn's
rule and scale. At its default of 1e-4, which the paper used, neither is at the optimum where the penalty is weak, nor at the 1e-5 that
`search` uses, and which of nearly equal strengths wins may depend on the solver; at 1e-9 it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize

from evaluation.device import usable
from pipeline.contracts.errors import InputError

INVERSE_STRENGTHS: NDArray[np.float64] = np.logspace(-6, 6, 97)
"""The paper's grid, as C: position 0 is the strongest penalty, λ = 1e6. It is its own inverse, so λ has the same values."""

SEARCH_TOLERANCE = 1e-5
"""A tenth of scikit-learn's default, with which the paper searched: its fits walk there from zero, ours begin at a neighbour's weights,
which 1e-4 may take for an end at once (tests/benchmarks/README.md, probe)."""

TOLERANCE = 1e-9
"""Of a single fit: as near as float64 comes on most features; L-BFGS also ends where the objective does not fall any more."""

MOST_ITERATIONS = 1000
"""The paper's limit."""

_COARSE = 16
_RENEW = 40  # iterations after which the coordinates are taken anew
_SURE = 1e-6  # classes that are this much surer than the least sure, and examples all of which are this sure, are taken for no surer
_SINGLE_UNTIL = 1e-7  # of the gradient, in units of the largest feature (root mean square): 100 times the rounding of float32 products
_SINGLE_FALL = 1e-8  # of the objective / n: what float32 products still see fall
_MOST_UNSAID = (
    10_000  # classes that nobody said there are: a stray label would cost the memory of as many rows of weights
)
_LARGEST = 1e15  # an entry whose square, summed over rows, is far from float32's largest number
_BLOCK = {"cpu": 1 << 12, "cuda": 1 << 17}

Features = NDArray[np.floating] | NDArray[np.integer] | torch.Tensor
Score = Callable[[NDArray[np.int64], NDArray[np.int64]], float]


@dataclass(frozen=True)
class Probe:
    """A fitted classifier: `weights` float64[classes, d] and `intercepts` float64[classes], -inf for a class that had no example.

    `objective` and `gradient` are at these weights: the sum above (to seven digits where float32 products were enough for the tolerance),
    and the largest entry of the gradient of objective / n. `evaluations` counts passes over the data. `converged` is false where the
    iterations ended before the tolerance was reached and the objective still fell.
    """

    strength: float
    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    objective: float
    gradient: float
    evaluations: int
    converged: bool

    def logits(self, features: Features) -> NDArray[np.float64]:
        """float64[n, classes]. Raises InputError for features of another width."""
        matrix = np.asarray(_matrix(features).cpu(), np.float64)
        if matrix.shape[1] != self.weights.shape[1]:
            raise InputError(
                f"features: {matrix.shape[1]} a row, the probe was fitted on {self.weights.shape[1]}; give features of the same model"
            )
        found: NDArray[np.float64] = matrix @ self.weights.T + self.intercepts
        return found

    def predict(self, features: Features) -> NDArray[np.int64]:
        """int64[n]: the class with the largest logit, of equals the lowest."""
        best: NDArray[np.int64] = self.logits(features).argmax(axis=1).astype(np.int64)
        return best


@dataclass(frozen=True)
class Trial:
    """One strength of a search: its place in INVERSE_STRENGTHS, what validation gave, and the fit."""

    index: int
    score: float
    probe: Probe


@dataclass(frozen=True)
class Search:
    """All trials in the order in which they were made, and the best of them."""

    best: Trial
    trials: list[Trial]


def fit(
    features: Features,
    labels: NDArray[np.integer],
    strength: float,
    *,
    classes: int | None = None,
    tolerance: float = TOLERANCE,
    start: Probe | None = None,
    device: str = "cpu",
) -> Probe:
    """The probe of one strength λ. `features` float[n, d] (rows are used as they are, not normalised), `labels` int[n] from 0 on.

    classes: how many there are (none: the largest label says it, which must then be below 10,000 or the number of rows). start: weights to
    begin from; they change the way, not the end.
    Raises InputError for features or labels that are none, and for features so large that the objective might overflow.
    """
    return Problem(features, labels, classes, device).fit(strength, tolerance, start)


def search(
    features: Features,
    labels: NDArray[np.integer],
    validation: Features,
    validation_labels: NDArray[np.integer],
    *,
    classes: int | None = None,
    tolerance: float = SEARCH_TOLERANCE,
    score: Score | None = None,
    device: str = "cpu",
) -> Search:
    """The paper's search for a strength: 7 + 8 = 15 fits of the 97, each scored on the validation rows.

    First the positions 0, 16, …, 96 (λ = 1e6, 1e4, …, 1e-6), then the two neighbours of the best so far at a distance of 8, 4, 2 and 1.
    Of equal scores the stronger penalty wins; so it does not matter whether the grid is read as C or as λ. Neighbours outside of the grid
    are not tried. score: of labels and predictions, both int64[n], larger is better (none: the accuracy). Raises as `fit`, also for the
    validation rows, whose labels must be of the classes that there are.
    """
    problem = Problem(features, labels, classes, device)
    measure = score or accuracy
    wanted = _checked_labels(validation_labels, len(_matrix(validation)), problem.classes)
    return searched(
        lambda strength, start: problem.fit(strength, tolerance, start),
        lambda found: measure(wanted, found.predict(validation)),
    )


def searched(fit_from: Callable[[float, Probe | None], Probe], score_of: Callable[[Probe], float]) -> Search:
    """The search from how a strength is fitted, given weights to begin from, and what a fit is worth."""
    trials: dict[int, Trial] = {}

    def score_at(index: int) -> float:
        # From the nearest that is done, of two the stronger: its weights are smaller.
        nearest = min(trials, key=lambda other: (abs(other - index), other), default=None)
        found = fit_from(1.0 / float(INVERSE_STRENGTHS[index]), None if nearest is None else trials[nearest].probe)
        trials[index] = Trial(index, score_of(found), found)
        return trials[index].score

    best = halving(score_at)
    return Search(trials[best], list(trials.values()))


def halving(score_at: Callable[[int], float]) -> int:
    """The position in INVERSE_STRENGTHS that the search of the paper ends at; `score_at` is asked once for each that it tries."""
    last = len(INVERSE_STRENGTHS) - 1
    scores = {index: score_at(index) for index in range(0, last + 1, _COARSE)}
    best = max(scores, key=lambda index: scores[index])  # of equals the first: the strongest penalty
    step = _COARSE // 2
    while step:
        near = [index for index in (best - step, best + step) if 0 <= index <= last]
        scores |= {index: score_at(index) for index in near}
        best = max(sorted([best, *near]), key=lambda index: scores[index])
        step //= 2
    return best


def accuracy(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> float:
    """The share of predictions that are right."""
    return float((labels == predictions).mean())


def mean_per_class(labels: NDArray[np.int64], predictions: NDArray[np.int64]) -> float:
    """The mean, over the classes that have an example, of the share of theirs that are right."""
    sizes = np.bincount(labels)
    hits = np.bincount(labels, weights=labels == predictions, minlength=len(sizes))
    return float((hits[sizes > 0] / sizes[sizes > 0]).mean())


SCORES: dict[str, Score] = {"top1": accuracy, "mean_per_class": mean_per_class}
"""By what the strength can be chosen, under the names that a configuration uses."""


class Problem:
    """Features and labels on a device, and what fits on them share: their mean, the space they span, coordinates of the last fit."""

    def __init__(
        self, features: Features, labels: NDArray[np.integer], classes: int | None = None, device: str = "cpu"
    ) -> None:
        self._features = _matrix(features).to(usable(device))
        n = len(self._features)
        given = _checked_labels(labels, n, max(n, _MOST_UNSAID) if classes is None else classes)
        self.classes = int(given.max()) + 1 if classes is None else classes
        self._present, numbered = np.unique(given, return_inverse=True)
        if len(self._present) < 2:
            raise InputError(f"labels: all {len(given):,} rows are of class {given[0]}; a probe needs two classes")
        self._labels = torch.from_numpy(numbered.astype(np.int64)).to(self._features.device)[:, None]
        self._block = _BLOCK.get(self._features.device.type, _BLOCK["cpu"])
        self.mean = self._features.mean(dim=0, dtype=torch.float64)
        largest = max(abs(float(end)) for end in torch.aminmax(self._features))
        if not largest <= _LARGEST:
            raise InputError(
                f"features: the largest entry is {largest:.3g}, or some are not finite; leave those rows out, scale all down or mend the "
                "model"
            )
        lengths = torch.linalg.vector_norm(self._features, dim=0)
        self._single_until = _SINGLE_UNTIL * float(lengths.max()) / len(self._features) ** 0.5
        self._single = torch.empty_like(self._features, dtype=torch.float32)
        for first in self._blocks():
            self._single[first : first + self._block] = self._centred(first, torch.float64)
        self._span = self._row_space()
        self._axes: _Axes | None = None

    def fit(self, strength: float, tolerance: float, start: Probe | None = None) -> Probe:
        """See `fit` of the module."""
        if not (np.isfinite(strength) and strength > 0):
            raise InputError(f"strength: {strength!r} is not above 0; give the penalty λ = 1/C")
        penalty = (2.0 if len(self._present) == 2 else 1.0) * strength / len(self._features)
        at, descent = self._start(start), _Descent(self, penalty)
        left, ended = MOST_ITERATIONS, False
        for dtype, goal in ((torch.float32, max(tolerance, self._single_until)), (torch.float64, tolerance)):
            if descent.gradient <= tolerance and tolerance >= self._single_until:
                break  # float32 products were enough
            ended = False
            while left > 0:
                at, iterations, ended = descent.run(at, self._coordinates(at, penalty), dtype, goal, min(_RENEW, left))
                left -= iterations
                if ended:
                    break
                self._axes = None
        weights = np.zeros((self.classes, self._features.shape[1]))
        intercepts = np.full(self.classes, -np.inf)
        weights[self._present] = at.weights.cpu().numpy()
        intercepts[self._present] = (at.centre - at.weights @ self.mean).cpu().numpy()
        value = len(self._features) * descent.value
        return Probe(strength, weights, intercepts, value, descent.gradient, descent.evaluations, ended)

    def evaluate(self, at: _Point, dtype: torch.dtype) -> tuple[float, _Point]:
        """Mean loss without penalty, and its gradient. The products are of `dtype`, sums over blocks of rows are float64."""
        columns, row = at.weights.T.to(dtype), at.centre.to(dtype)
        loss = torch.zeros((), dtype=torch.float64, device=columns.device)
        by_weights, by_centre = torch.zeros_like(at.weights), torch.zeros_like(at.centre)
        for first in self._blocks():
            block = self._centred(first, dtype)
            labels = self._labels[first : first + self._block]
            logits = torch.addmm(row, block, columns)
            logits -= logits.amax(dim=1, keepdim=True)
            loss -= logits.gather(1, labels).sum(dtype=torch.float64)
            shares = logits.exp_()
            sums = shares.sum(dim=1, keepdim=True)
            loss += sums.log().sum(dtype=torch.float64)
            shares /= sums
            shares.scatter_add_(1, labels, shares.new_full((1, 1), -1.0).expand_as(labels))
            by_weights += shares.T @ block
            by_centre += shares.sum(dim=0, dtype=torch.float64)
        n = len(self._features)
        return float(loss) / n, _Point(by_weights / n, by_centre / n)

    def _blocks(self) -> range:
        return range(0, len(self._features), self._block)

    def _centred(self, first: int, dtype: torch.dtype) -> torch.Tensor:
        """A block of rows minus the mean. float32 ones are kept: all evaluations but a few ask for them."""
        if dtype == torch.float32:
            return self._single[first : first + self._block]
        return self._features[first : first + self._block].double() - self.mean

    def _row_space(self) -> torch.Tensor | None:
        """Where there are fewer rows than columns, orthonormal columns float64[d, r] that span them. The optimum lies in the same space."""
        n, d = self._features.shape
        if n >= d:
            return None
        _, lengths, axes = torch.linalg.svd(self._features.double() - self.mean, full_matrices=False)
        span: torch.Tensor = axes[lengths > lengths[0] * d * torch.finfo(torch.float64).eps].T.contiguous()
        return span

    def _start(self, start: Probe | None) -> _Point:
        k, d = len(self._present), self._features.shape[1]
        if start is None:
            zeros = torch.zeros(k, d, dtype=torch.float64, device=self.mean.device)
            return _Point(zeros, zeros[:, 0].clone())
        if start.weights.shape != (self.classes, d):
            raise InputError(f"start: weights of shape {start.weights.shape}, needed are {(self.classes, d)}")
        weights = torch.from_numpy(start.weights[self._present]).to(self.mean.device)
        intercepts = torch.from_numpy(np.nan_to_num(start.intercepts[self._present], neginf=0.0)).to(weights.device)
        centre = intercepts + weights @ self.mean
        if self._span is not None:
            weights = weights @ self._span @ self._span.T
        return _Point(weights - weights.mean(dim=0), centre - centre.mean())

    def _coordinates(self, at: _Point, penalty: float) -> _Coordinates:
        if self._axes is None:
            self._axes = self._axes_at(at)
        return _Coordinates(self._axes, penalty)

    def _axes_at(self, at: _Point) -> _Axes:
        """The Kronecker product nearest at hand to the Hessian of the mean loss at a point.

        The Hessian is the mean over rows of S ⊗ x xᵀ with S = diag(p) - p pᵀ. It is taken for mean(S) ⊗ C, C the covariance of the rows
        with weights tr S: sure examples count little. Centred at the weighted mean, weights and intercepts do not mix.
        """
        n, columns, row = len(self._features), at.weights.T.float(), at.centre.float()
        by_class, total = torch.zeros_like(at.centre), torch.zeros_like(at.centre[0])
        between = torch.zeros(len(by_class), len(by_class), dtype=torch.float64, device=row.device)
        width = self._features.shape[1] if self._span is None else self._span.shape[1]
        centre = torch.zeros(width, dtype=torch.float64, device=row.device)
        scatter = torch.zeros(width, width, dtype=torch.float64, device=row.device)
        for first in self._blocks():
            block = self._centred(first, torch.float32)
            shares = torch.softmax(torch.addmm(row, block, columns), dim=1)
            spread = 1.0 - (shares**2).sum(dim=1)
            by_class += shares.sum(dim=0, dtype=torch.float64)
            between += shares.T @ shares
            inner = block if self._span is None else block @ self._span.float()
            weighted = inner * spread[:, None]
            total += spread.sum(dtype=torch.float64)
            centre += weighted.sum(dim=0, dtype=torch.float64)
            scatter += weighted.T @ inner
        total.clamp_min_(n * _SURE)
        centre /= total
        # Rows of weights add up to zero at the optimum: k - 1 directions of classes are enough, orthogonal to that of all.
        directions = torch.linalg.qr(
            torch.eye(len(row), dtype=torch.float64, device=row.device)[:, 1:] - 1.0 / len(row)
        )[0]
        values, turn = torch.linalg.eigh(directions.T @ (torch.diag(by_class / n) - between / n) @ directions)
        variances, axes = torch.linalg.eigh(scatter / total - torch.outer(centre, centre))
        if self._span is not None:
            axes, centre = self._span @ axes, self._span @ centre
        values = values.clamp_min(float(values[-1]) * _SURE + _SURE**2)
        return _Axes(directions @ turn, values, axes, variances.clamp_min(0.0), centre)


@dataclass(frozen=True)
class _Point:
    """Weights float64[k, d] of the classes with examples, and float64[k] their logits at the features' mean. Or a gradient by these."""

    weights: torch.Tensor
    centre: torch.Tensor


@dataclass(frozen=True)
class _Axes:
    """Along `classes` [k, k - 1] ⊗ `features` [d, r] the Hessian of the mean loss is nearly `values` [k - 1] ⊗ `variances` [r].

    Intercepts are then the logits of the row `centre` [d], which is given from the features' mean on.
    """

    classes: torch.Tensor
    values: torch.Tensor
    features: torch.Tensor
    variances: torch.Tensor
    centre: torch.Tensor


class _Coordinates:
    """Variables float64[(k - 1) (r + 1)] in which the Hessian, penalty and all, is nearly the identity; and the way from and to a point."""

    def __init__(self, axes: _Axes, penalty: float) -> None:
        self._axes = axes
        scale = (torch.outer(axes.values, axes.variances) + penalty).rsqrt()
        self._scale = torch.cat([scale, axes.values.rsqrt()[:, None]], dim=1)

    def point(self, variables: NDArray[np.float64]) -> _Point:
        scaled = self._axes.classes @ (
            torch.from_numpy(variables).to(self._scale.device).view_as(self._scale) * self._scale
        )
        weights = scaled[:, :-1] @ self._axes.features.T
        return _Point(weights, scaled[:, -1] - weights @ self._axes.centre)

    def variables(self, at: _Point) -> NDArray[np.float64]:
        centre = at.centre + at.weights @ self._axes.centre
        inner = torch.cat([at.weights @ self._axes.features, centre[:, None]], dim=1)
        return _flat((self._axes.classes.T @ inner) / self._scale)

    def gradient(self, by: _Point) -> NDArray[np.float64]:
        weights = by.weights - torch.outer(by.centre, self._axes.centre)
        inner = torch.cat([weights @ self._axes.features, by.centre[:, None]], dim=1)
        return _flat((self._axes.classes.T @ inner) * self._scale)


class _Descent:
    """scipy's L-BFGS on one problem and penalty.

    Of the last evaluation are `value` (objective / n), `gradient` (its largest entry in the features' coordinates) and `fall`: what a step
    to the optimum would take off the value, were the Hessian the identity in the coordinates of the descent.
    """

    def __init__(self, problem: Problem, penalty: float) -> None:
        self._problem, self._penalty = problem, penalty
        self.evaluations, self.value, self.gradient, self.fall = 0, np.inf, np.inf, np.inf

    def run(
        self, start: _Point, coordinates: _Coordinates, dtype: torch.dtype, goal: float, most: int
    ) -> tuple[_Point, int, bool]:
        """Where it ended, after how many iterations, and whether the goal is reached or the objective does not fall any more."""
        single = dtype == torch.float32

        def enough() -> bool:
            return self.gradient <= goal or (single and self.fall < _SINGLE_FALL)

        known = [self._evaluate(start, coordinates, dtype)]
        if enough():
            return start, 0, True
        # The first step of scipy's is one of length 1. In these units that is the whole Newton step, were the Hessian the identity.
        unit = float(np.linalg.norm(known[0][1]))

        def evaluate(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            # scipy begins by asking for what is known already.
            value, gradient = known.pop() if known else self._evaluate(coordinates.point(unit * x), coordinates, dtype)
            return value, unit * gradient

        def after_each(intermediate_result: OptimizeResult) -> None:
            if enough():
                raise StopIteration

        found = minimize(
            evaluate,
            coordinates.variables(start) / unit,
            method="L-BFGS-B",
            jac=True,
            callback=after_each,
            options={
                "maxiter": most,
                "maxls": 20 if single else 50,
                "gtol": 0.0,
                "ftol": 64 * np.finfo(np.float64).eps,
            },
        )
        end = coordinates.point(unit * found.x)
        if enough():
            return end, int(found.nit), True
        self._evaluate(
            end, coordinates, dtype
        )  # it ended for another reason, perhaps not at the place that was evaluated last
        return end, int(found.nit), found.nit < most

    def _evaluate(self, at: _Point, coordinates: _Coordinates, dtype: torch.dtype) -> tuple[float, NDArray[np.float64]]:
        self.evaluations += 1
        loss, by = self._problem.evaluate(at, dtype)
        self.value = loss + 0.5 * self._penalty * float((at.weights**2).sum())
        by = _Point(by.weights + self._penalty * at.weights, by.centre)
        plain = by.weights + torch.outer(
            by.centre, self._problem.mean
        )  # at fixed intercepts, not at fixed logits of the mean
        self.gradient = max(float(plain.abs().max()), float(by.centre.abs().max()))
        inner = coordinates.gradient(by)
        self.fall = 0.5 * float(inner @ inner)
        return self.value, inner


def _flat(matrix: torch.Tensor) -> NDArray[np.float64]:
    found: NDArray[np.float64] = matrix.cpu().numpy().ravel()
    return found


def _matrix(features: Features) -> torch.Tensor:
    """float32 or float64 [n, d]; narrower floats become float32, wider ones and integers float64."""
    if isinstance(features, torch.Tensor):
        matrix = features
    else:
        given = np.asarray(features)
        if given.dtype.kind not in "biuf":
            raise InputError(f"features: an array of {given.dtype}; expected rows of real numbers, [n, d]")
        plain = given.dtype.kind == "f" and given.dtype.itemsize <= 8
        kind = given.dtype.newbyteorder("=") if plain else np.dtype(np.float64)
        matrix = torch.from_numpy(np.require(given, kind, ["C", "W"]))
    if matrix.ndim != 2 or not all(matrix.shape):
        raise InputError(f"features: an array of shape {tuple(matrix.shape)}; expected rows of numbers, [n, d]")
    if not matrix.is_floating_point():
        return matrix.double()
    return matrix if matrix.dtype == torch.float64 else matrix.float()


def _checked_labels(labels: NDArray[np.integer], n: int, classes: int) -> NDArray[np.int64]:
    given = np.asarray(labels)
    if given.shape != (n,) or not np.issubdtype(given.dtype, np.integer):
        raise InputError(
            f"labels: {given.dtype} of shape {given.shape}; expected one class number for each of {n:,} rows"
        )
    wrong = (given < 0) | (given >= classes)
    if wrong.any():
        row = int(wrong.argmax())
        raise InputError(
            f"labels: row {row} has {given[row]}; class numbers go from 0 to {classes - 1:,}, leave unlabelled rows out, or give `classes` "
            "where there are more"
        )
    return given.astype(np.int64)

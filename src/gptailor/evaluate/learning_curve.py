"""Learning curves: what a score was with fewer rows, and what it would be with more, with an interval.

Several families of curves are fitted to the error over the number of training rows. None is right for every
data set (Viering & Loog 2023 compare them), so a forecast is a mean over families and exponents, each
weighted by how well it fits the measured points within their noise (Hoeting et al. 1999), and the interval
holds what the points leave open: their noise, the choice of the curve, and the draw of the rows to come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special

from gptailor.types import FloatArray, IntArray, Score

DRAWS = 1000
STEP = 2**0.5  # between the sizes of neighboring subsets
STEPS = 9  # sizes: the smallest subset holds a sixteenth of the rows
ROUNDING = 0.0005  # of a score; keeps a point without spread from deciding alone
LEAST_ERROR = 1e-3  # for log-odds: a score of 1 on the held-out rows is no proof that none is ever wrong
TOP_SHARE = 0.25  # of the draw's variance: how far the one score on all rows may lie from the curve
# How far families and exponents are believed before anything is measured, by how forecasts of each alone came
# true (docs/log.md): power laws and 1/log were right in most, exponentials stop too early.
PRIOR = {"power": 0.4, "inverse logarithm": 0.3, "logistic": 0.25, "exponential": 0.05}
EXPONENTS = np.arange(0.1, 1.5001, 0.05)
USUAL_EXPONENT, SPREAD_OF_EXPONENTS = 0.5, 0.35
MIXING = 4.0  # of the Dirichlet draws around the weights: the truth often lies between two families


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Scores on the same held-out rows after training on `rows` rows: (S, R) by split and drawn subset.

    On all rows there is one subset to draw, so R is 1.
    """

    rows: int
    scores: FloatArray


@dataclass(frozen=True, slots=True)
class Curve:
    """One shape: the error, or its log-odds, is floor + height x shape(rows)."""

    family: str
    shape: Callable[[FloatArray], FloatArray]  # falls with the rows
    log_prior: float
    of_log_odds: bool = False  # which have no floor: the error falls towards zero and never reaches it


def subset_sizes(num_rows: int, *, smallest: int) -> list[int]:
    """Sizes of nested subsets, rising to all rows by a factor of the root of two."""
    sizes = [round(num_rows / STEP**step) for step in range(STEPS)]
    return sorted({num_rows, *(size for size in sizes if size >= smallest)})


def nested_order(strata: IntArray, rng: np.random.Generator) -> IntArray:
    """(N,) an order of the rows whose every prefix holds the strata in their shares."""
    place = np.empty(len(strata))
    for stratum in np.unique(strata):
        rows = rng.permutation(np.flatnonzero(strata == stratum))
        place[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return np.argsort(place, kind="stable")


def forecast(points: Sequence[CurvePoint], rows: Sequence[int], *, seed: int = 0) -> list[Score]:
    """The score after training on as many `rows`, on the same held-out rows, each with a 95 % interval.

    Args:
        points: What was measured, sizes rising, the last on all rows; scores between 0 and 1, higher is
            better. At least three sizes, with two subsets or more at all but the last.
        rows: Numbers of training rows, larger than the last point's.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    sizes = np.array([point.rows for point in points], dtype=np.float64)
    draw = draw_variance(points)
    all_rows = sizes[-1]
    noise = (
        draw
        / sizes
        * np.where(
            sizes < all_rows, (1 - sizes / all_rows) / [point.scores.size for point in points], TOP_SHARE
        )
    )
    weights = 1 / (noise + ROUNDING**2)
    errors = 1 - np.array([point.scores.mean() for point in points])
    drawn = errors + rng.normal(size=(DRAWS, len(points))) / np.sqrt(weights)
    drawn[0] = errors
    predicted, believed = _by_family(sizes, drawn, weights, np.array(rows, dtype=np.float64))
    mean = np.einsum("fd,fdt->t", believed, predicted) / DRAWS
    mixed = rng.gamma(np.maximum(MIXING * believed, 1e-3))
    mixed /= mixed.sum(axis=0)
    # The rows at hand are one draw of many; those to come are drawn, too, and dilute it.
    shift = np.sqrt(draw * (1 / all_rows + 1 / np.array(rows)))
    spread = np.einsum("fd,fdt->dt", mixed, predicted) + rng.normal(size=(DRAWS, 1)) * shift
    low, high = np.clip(np.quantile(spread, (0.025, 0.975), axis=0), 0, 1)
    return [
        Score(1 - value, min(1 - worst, 1 - value), max(1 - best, 1 - value))
        for value, best, worst in zip(mean.tolist(), low.tolist(), high.tolist(), strict=True)
    ]


def draw_variance(points: Sequence[CurvePoint]) -> float:
    """How much the score varies with the rows that are drawn, times their number.

    Subsets of one pool overlap: their scores vary by 1 - size / pool of what independent draws would (the
    finite-population correction). The larger half of the sizes tells.
    """
    pool = points[-1].rows
    found = [
        float(point.rows * point.scores.var(axis=1, ddof=1).mean() / (1 - point.rows / pool))
        for point in points
        if point.rows < pool and point.scores.shape[1] > 1
    ]
    return float(np.mean(found[len(found) // 2 :]))


def _by_family(
    sizes: FloatArray, errors: FloatArray, weights: FloatArray, rows: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Errors (F, D, T) of each family at T numbers of rows for D draws of the points, and beliefs (F, D)."""
    predicted, evidence = [], []
    for family, prior in PRIOR.items():
        curves = [curve for curve in _curves(sizes) if curve.family == family]
        fitted = [_fit(curve, sizes, errors, weights, rows) for curve in curves]
        log_prior = np.array([curve.log_prior for curve in curves])[:, None]
        log_belief = log_prior - np.stack([misfit for _, misfit in fitted]) / 2
        highest = log_belief.max(axis=0)
        belief = np.exp(log_belief - highest)
        total = belief.sum(axis=0)
        predicted.append(np.einsum("cd,cdt->dt", belief / total, np.stack([found for found, _ in fitted])))
        evidence.append(np.log(prior) + highest + np.log(total / np.exp(log_prior).sum()))
    log_weight = np.stack(evidence)
    weight = np.exp(log_weight - log_weight.max(axis=0))
    return np.stack(predicted), weight / weight.sum(axis=0)


def _curves(sizes: FloatArray) -> list[Curve]:
    """Every shape that is tried, over rows as a share of all (or, for 1/log, rows)."""
    largest = sizes[-1]
    power = [
        Curve(
            "power",
            lambda rows, b=exponent: (rows / largest) ** -b,  # type: ignore[misc]
            -(((exponent - USUAL_EXPONENT) / SPREAD_OF_EXPONENTS) ** 2) / 2,
        )
        for exponent in EXPONENTS
    ]
    exponential = [
        Curve("exponential", lambda rows, scale=scale: np.exp((sizes[0] - rows) / scale), 0.0)  # type: ignore[misc]
        for scale in np.geomspace(largest / 8, 2 * largest, 12)
    ]
    return [
        *power,
        Curve("inverse logarithm", lambda rows: 1 / np.log(rows), 0.0),
        *exponential,
        Curve("logistic", lambda rows: -np.log(rows / largest), 0.0, of_log_odds=True),
    ]


def _fit(
    curve: Curve, sizes: FloatArray, errors: FloatArray, weights: FloatArray, rows: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weighted least squares for all draws at once: errors (D, T) at `rows`, and misfits (D,) (chi square).

    The height isn't negative: a curve that rises with the rows is noise. Nor is an error's floor.
    """
    x, y, held = curve.shape(sizes), errors, weights
    if curve.of_log_odds:
        y = scipy.special.logit(np.clip(errors, LEAST_ERROR, 1 - LEAST_ERROR))
        measured = np.clip(errors[0], LEAST_ERROR, 1 - LEAST_ERROR)
        held = weights * (measured * (1 - measured)) ** 2  # an error's noise, carried over to its log-odds
    middle, center = np.average(x, weights=held), np.average(y, axis=1, weights=held)
    height = ((y - center[:, None]) * held) @ (x - middle) / (held @ (x - middle) ** 2)
    height = np.maximum(height, 0)
    floor = center - height * middle
    if not curve.of_log_odds:
        through_zero = np.maximum((errors * weights) @ x / (weights @ x**2), 0)
        height, floor = np.where(floor < 0, through_zero, height), np.maximum(floor, 0)

    def at(shape: FloatArray) -> FloatArray:
        found: FloatArray = floor[:, None] + height[:, None] * shape
        return scipy.special.expit(found) if curve.of_log_odds else found

    misfit = ((errors - at(x)) ** 2) @ weights
    return np.clip(at(curve.shape(rows)), 0, 1), misfit

"""Learning curves: what a score was with fewer rows, and what it would be with more, with an interval.

The log-odds of the error fall with a power of the number of training rows; seldom the error stops falling, as
an exponential does. Which of these curves, no data set shares with the next (Viering & Loog 2023 compare
many), so a forecast is a mean over them, each weighted by how well it fits the measured points within their
noise (Hoeting et al. 1999), and the interval holds what the points leave open: their noise, the choice of the
curve, and the draw of the rows to come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import scipy.special

from gptailor.types import FloatArray, IntArray, Score

DRAWS = 1000
STEP = 2**0.5  # between the sizes of neighboring subsets
STEPS = 9  # sizes: the smallest subset holds a sixteenth of the rows
ROUNDING = 0.0005  # of a score; keeps a point without spread from deciding alone
LEAST_ERROR = 1e-3  # for log-odds: a score of 1 on the held-out rows is no proof that none is ever wrong
TOP_SHARE = 0.25  # of the draw's variance: how far the one score on all rows may lie from the curve
# How far each curve is believed before anything is measured, by how forecasts of each alone came true
# (docs/log.md). The power 0 stands for the logarithm, on which nothing ever stops; 1.5 is soon flat.
EXPONENTS = np.arange(0, 1.5001, 0.05)
USUAL_EXPONENT, SPREAD_OF_EXPONENTS = 0.1, 0.2
SCALES = np.geomspace(1 / 8, 2, 12)  # of exponentials, as shares of all rows
BELIEF_IN_EXPONENTIALS = 0.01


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Scores on the same held-out rows after training on `rows` rows: (S, R) by split and drawn subset.

    On all rows there is one subset to draw, so R is 1.
    """

    rows: int
    scores: FloatArray


@dataclass(frozen=True, slots=True)
class Curve:
    """One shape: the error, or its log-odds, is floor + height x shape(share of all rows)."""

    shape: Callable[[FloatArray], FloatArray]  # falls with the rows
    of_log_odds: bool  # an error has a floor of 0 at least


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
    predicted = _carried_on(sizes / all_rows, drawn, weights, np.array(rows) / all_rows)
    mean = predicted.mean(axis=0)
    # The rows at hand are one draw of many; those to come are drawn, too, and dilute it.
    shift = np.sqrt(draw * (1 / all_rows + 1 / np.array(rows)))
    spread = predicted + rng.normal(size=(DRAWS, 1)) * shift
    low, high = np.clip(np.quantile(spread, (0.025, 0.975), axis=0), 0, 1)
    return [
        Score(1 - value, min(1 - worst, 1 - value), max(1 - best, 1 - value))
        for value, best, worst in zip(mean.tolist(), low.tolist(), high.tolist(), strict=True)
    ]


def draw_variance(points: Sequence[CurvePoint]) -> float:
    """How much the score varies with the rows that are drawn, times their number.

    Subsets of one pool overlap: their scores vary by 1 - size / pool of what independent draws would (the
    finite-population correction). The larger half of the sizes tells; and where few subsets tell it, it may
    well be larger.
    """
    pool = points[-1].rows
    found = [
        float(point.rows * point.scores.var(axis=1, ddof=1).mean() / (1 - point.rows / pool))
        for point in points
        if point.rows < pool and point.scores.shape[1] > 1
    ]
    drawn = points[0].scores.size
    return float(np.mean(found[len(found) // 2 :])) * drawn / (drawn - 1)


def _carried_on(
    shares: FloatArray, errors: FloatArray, weights: FloatArray, wanted: FloatArray
) -> FloatArray:
    """Errors (D, T) at T shares of all rows for D draws of the measured points, the mean over all curves."""
    powers = np.exp(-(((EXPONENTS - USUAL_EXPONENT) / SPREAD_OF_EXPONENTS) ** 2) / 2)
    curves = [
        *(Curve(partial(_power, exponent), of_log_odds=True) for exponent in EXPONENTS.tolist()),
        *(Curve(partial(_exponential, scale), of_log_odds=False) for scale in SCALES.tolist()),
    ]
    stops = np.full(len(SCALES), BELIEF_IN_EXPONENTIALS / len(SCALES))
    believed = np.concatenate([(1 - BELIEF_IN_EXPONENTIALS) * powers / powers.sum(), stops])
    fitted = [_fit(curve, shares, errors, weights, wanted) for curve in curves]
    log_belief = np.log(believed)[:, None] - np.stack([misfit for _, misfit in fitted]) / 2
    belief = np.exp(log_belief - log_belief.max(axis=0))
    found: FloatArray = np.einsum(
        "cd,cdt->dt", belief / belief.sum(axis=0), np.stack([predicted for predicted, _ in fitted])
    )
    return found


def _power(exponent: float, shares: FloatArray) -> FloatArray:
    """A power of the rows; for an exponent of 0 what powers come to, the logarithm."""
    found: FloatArray = (shares**-exponent - 1) / exponent if exponent else -np.log(shares)
    return found


def _exponential(scale: float, shares: FloatArray) -> FloatArray:
    found: FloatArray = np.exp(-shares / scale)
    return found


def _fit(
    curve: Curve, shares: FloatArray, errors: FloatArray, weights: FloatArray, wanted: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Weighted least squares for all draws at once: errors (D, T) at `wanted`, and misfits (D,) (chi square).

    The height isn't negative: a curve that rises with the rows is noise. Nor is an error's floor.
    """
    x, y, held = curve.shape(shares), errors, weights
    if curve.of_log_odds:
        y = scipy.special.logit(np.clip(errors, LEAST_ERROR, 1 - LEAST_ERROR))
        measured = np.clip(errors[0], LEAST_ERROR, 1 - LEAST_ERROR)
        held = weights * (measured * (1 - measured)) ** 2  # an error's noise, carried over to its log-odds
    middle, center = np.average(x, weights=held), np.average(y, axis=1, weights=held)
    height = np.maximum(((y - center[:, None]) * held) @ (x - middle) / (held @ (x - middle) ** 2), 0)
    floor = center - height * middle
    if not curve.of_log_odds:
        through_zero = np.maximum((errors * weights) @ x / (weights @ x**2), 0)
        height, floor = np.where(floor < 0, through_zero, height), np.maximum(floor, 0)

    def at(shape: FloatArray) -> FloatArray:
        found: FloatArray = floor[:, None] + height[:, None] * shape
        return scipy.special.expit(found) if curve.of_log_odds else found

    return np.clip(at(curve.shape(wanted)), 0, 1), ((errors - at(x)) ** 2) @ weights

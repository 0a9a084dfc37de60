"""Probabilities that mean what they say, and the threshold below which the answer is "not sure".

Everything here is fitted on validation rows and only measured on test rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gptailor.errors import DataError, NonFiniteError
from gptailor.evaluate.metrics import bootstrap_share, interval
from gptailor.evaluate.resampling import ROWS, Resampling, columns
from gptailor.types import FloatArray, IntArray, Score

TEMPERATURES = (0.05, 20.0)
FEWEST_KEPT = 20  # rows that must speak for a threshold
PRIOR_WIDTH = 1.0  # standard deviation of the log-temperature before any row was seen


def softmax(logits: FloatArray, temperature: float = 1.0) -> FloatArray:
    """Probabilities (N, C) of logits (N, C) divided by the temperature.

    Raises:
        NonFiniteError: A logit is NaN or infinite.
    """
    return np.exp(_log_softmax(_scaled(logits, temperature)))


def fit_temperature(logits: FloatArray, answers: IntArray) -> float:
    """The temperature that makes the answers (N,) most likely under the logits (N, C) (Guo et al. 2017).

    A weak prior (log-temperature normal around 0, standard deviation 1) keeps it near 1 where few rows
    speak, and sane where every row is right. Simulated (4 classes, true temperature 3): with 10 rows the
    fresh-row loss is 0.83 nats against 3.85 without the prior (best: 0.57); from 100 rows on both agree
    within 0.001. The result lies between 0.05 and 20; it is 1.0 without rows.
    """
    if len(answers) == 0:
        return 1.0
    scaled = _scaled(logits, 1.0)
    rows = np.arange(len(answers))
    return likeliest_temperature(
        lambda temperature: float(-_log_softmax(scaled / temperature)[rows, answers].sum())
    )


def likeliest_temperature(nats: Callable[[float], float]) -> float:
    """The temperature of the least cost in nats, with the prior that `fit_temperature` explains."""
    from scipy.optimize import minimize_scalar

    def cost(log_temperature: float) -> float:
        return nats(float(np.exp(log_temperature))) + 0.5 * (log_temperature / PRIOR_WIDTH) ** 2

    # The likelihood has one valley in the log-temperature, the sum may have two: start from a grid.
    grid = np.geomspace(*TEMPERATURES, 25)
    best = int(np.argmin([cost(np.log(temperature)) for temperature in grid]))
    around = np.log(grid[max(best - 1, 0)]), np.log(grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(cost, bounds=around, method="bounded", options={"xatol": 1e-7})
    return float(np.clip(np.exp(found.x), *TEMPERATURES))


def expected_calibration_error(probabilities: FloatArray, answers: IntArray, *, bins: int = 15) -> float:
    """How far the top probability is from the share of right answers, on average over rows, 0 to 1.

    Equal-width bins of the top probability, each closed above (Guo et al. 2017, equation 3).
    Shapes: `probabilities` (N, C), `answers` (N,).
    """
    confidence, right = _top(probabilities, answers)
    gaps = np.bincount(bin_numbers(confidence, bins), weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(answers))


def calibration_error(
    probabilities: FloatArray, answers: IntArray, *, bins: int = 15, resampling: Resampling = ROWS
) -> Score:
    """`expected_calibration_error` with its 95 % bootstrap interval.

    Noise makes the error look larger in a resample, never smaller; read the lower end with that in mind.
    """
    confidence, right = _top(probabilities, answers)
    in_bin = bin_numbers(confidence, bins)[:, None] == np.arange(bins)
    *gaps, rows = resampling.sums(columns(*((confidence - right)[:, None] * in_bin).T)).T
    errors = np.abs(gaps).sum(axis=0) / rows
    return interval(float(errors[0]), errors[1:])


def calibration_noise(
    probabilities: FloatArray, *, bins: int = 15, resamples: int = 500, seed: int = 0
) -> Score:
    """The calibration error that right probabilities would show on these rows, with a 95 % range.

    Few rows in a bin are never right in exactly the share that was said, so the error is above zero however
    well a model is calibrated: with 100 rows by some 0.1.
    """
    confidence = probabilities.max(axis=1)
    bin_of, rng = bin_numbers(confidence, bins), np.random.default_rng(seed)
    errors = np.empty(resamples)
    for place in range(resamples):
        gap = confidence - (rng.random(len(confidence)) < confidence)
        errors[place] = np.abs(np.bincount(bin_of, weights=gap, minlength=bins)).sum() / len(confidence)
    return interval(float(errors.mean()), errors)


def calibration_scores(
    logits: FloatArray, answers: IntArray, temperature: float, *, resampling: Resampling = ROWS
) -> dict[str, Score]:
    """The calibration error `before` and `after` the temperature, on the same resamples."""
    return {
        name: calibration_error(softmax(logits, scale), answers, resampling=resampling)
        for name, scale in (("before", 1.0), ("after", temperature))
    }


def reliability_bins(probabilities: FloatArray, answers: IntArray, *, bins: int = 10) -> list[dict[str, Any]]:
    """The points of a reliability plot: one entry per bin that holds rows, by rising confidence."""
    return binned(*_top(probabilities, answers), bins=bins)


def binned(confidence: FloatArray, right: FloatArray, *, bins: int = 10) -> list[dict[str, Any]]:
    """The same from what was said, (N,), and whether it was so, (N,) 0.0 or 1.0."""
    bin_of = bin_numbers(confidence, bins)
    return [
        {
            "low": index / bins,
            "high": (index + 1) / bins,
            "confidence": float(confidence[bin_of == index].mean()),
            "accuracy": float(right[bin_of == index].mean()),
            "count": int((bin_of == index).sum()),
        }
        for index in np.unique(bin_of).tolist()
    ]


def choose_threshold(probabilities: FloatArray, answers: IntArray, *, target: float = 0.95) -> float | None:
    """The lowest threshold whose kept rows (top probability at or above it) reach the target accuracy.

    0.0 where all rows together reach it, None where no threshold that keeps `FEWEST_KEPT` rows does: the
    surest row alone is nearly always right. Rows of equal confidence stand or fall together.
    Shapes: `probabilities` (N, C), `answers` (N,).
    """
    thresholds, kept, right = _levels(probabilities, answers)
    good = np.flatnonzero((right / kept >= target) & (kept >= min(FEWEST_KEPT, len(answers))))
    if not len(good):
        return None
    return 0.0 if good[-1] == len(thresholds) - 1 else float(thresholds[good[-1]])


def coverage_curve(probabilities: FloatArray, answers: IntArray, *, points: int = 50) -> list[dict[str, Any]]:
    """What each threshold buys: the share of rows answered and their accuracy, from few rows to all.

    At most `points` of the thresholds that differ, spread evenly over the rows.
    """
    thresholds, kept, right = _levels(probabilities, answers)
    wanted = np.linspace(kept[0], kept[-1], min(points, len(kept)))
    return [
        {
            "threshold": float(thresholds[level]),
            "coverage": float(kept[level] / kept[-1]),
            "accuracy": float(right[level] / kept[level]),
        }
        for level in np.unique(np.searchsorted(kept, wanted)).tolist()
    ]


def at_threshold(
    probabilities: FloatArray,
    answers: IntArray,
    threshold: float | None,
    *,
    resampling: Resampling = ROWS,
) -> dict[str, Any]:
    """What a threshold buys on these rows: coverage, and accuracy of what is answered, with intervals.

    None answers every row. `accuracy` is None where no row is answered. The interval of the accuracy
    is that of the kept rows, their number taken as given.
    """
    confidence, right = _top(probabilities, answers)
    answered = confidence >= (0.0 if threshold is None else threshold)
    kept = right[answered]
    return {
        "threshold": threshold,
        "answered": int(answered.sum()),
        "abstained": int((~answered).sum()),
        "coverage": bootstrap_share(answered.astype(np.float64), resampling=resampling),
        "accuracy": bootstrap_share(kept, resampling=resampling.of(answered)) if len(kept) else None,
    }


def _scaled(logits: FloatArray, temperature: float) -> FloatArray:
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    if not np.isfinite(scaled).all():
        row = int(np.flatnonzero(~np.isfinite(scaled).all(axis=-1))[0])
        raise NonFiniteError(
            "a logit is not a finite number, so there is no probability.",
            where=f"row {row} of the predictions",
            fix="Train again with a lower learning rate or in fp32.",
        )
    return scaled


def _log_softmax(scaled: FloatArray) -> FloatArray:
    shifted: FloatArray = scaled - scaled.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _top(probabilities: FloatArray, answers: IntArray) -> tuple[FloatArray, FloatArray]:
    """The top probability of each row, and 1.0 where it is on the answer; both (N,)."""
    if len(answers) == 0:
        raise DataError("there is no row to score.", fix="Give a labelled file with at least one usable row.")
    if probabilities.ndim != 2 or len(probabilities) != len(answers):
        raise ValueError(f"need (N, C) and (N,), got {probabilities.shape} and {answers.shape}")
    right = probabilities.argmax(axis=1) == answers
    return probabilities.max(axis=1), right.astype(np.float64)


def bin_numbers(confidence: FloatArray, bins: int) -> IntArray:
    """Which of `bins` equal-width bins, each closed above, a probability falls into."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _levels(probabilities: FloatArray, answers: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """For each distinct top probability, from the highest: it, the rows at or above it, the right ones."""
    confidence, right = _top(probabilities, answers)
    order = np.argsort(-confidence, kind="stable")
    confidence, right = confidence[order], right[order]
    last = np.flatnonzero(np.append(confidence[1:] != confidence[:-1], True))
    right_so_far: FloatArray = np.cumsum(right, dtype=np.float64)[last]
    return confidence[last], (last + 1).astype(np.float64), right_so_far

"""Scores of a model that answers with a number: how far off it is, and whether it orders the rows rightly.

The root mean square error decides: it is what training minimizes, and the mean of the training rows is the
best constant by it, so that the simplest baseline is the strongest of its kind. Arrays have shape (N,).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gptailor.evaluate.metrics import (
    BASELINE_NAMES,
    CHEAPER,
    as_json,
    check_rows,
    interval,
    interval_in_words,
)
from gptailor.evaluate.resampling import ROWS, Resampling, columns
from gptailor.types import EvalReport, FloatArray, IntArray, Predictions, Score

POINTS = 400  # of the plot of answers and predictions
ROUNDING = 1e-14  # of the largest number; what is left of equal numbers after rounding is no spread


def root_mean_square_error(answers: FloatArray, predictions: FloatArray) -> float:
    """In the unit of the numbers."""
    return float(np.sqrt(((answers - predictions) ** 2).mean()))


def number_scores(
    answers: FloatArray, predictions: FloatArray, *, resampling: Resampling = ROWS
) -> dict[str, Any]:
    """Root mean square error, mean absolute error, Pearson's and Spearman's correlation, with intervals.

    A correlation with numbers that are all the same is 0. In a resample Spearman's correlation is Pearson's
    of the ranks that the rows have among all.
    """
    check_rows(len(answers))
    errors = answers - predictions
    pairs = {"pearson": (answers, predictions), "spearman": (_ranks(answers), _ranks(predictions))}
    drawn = {
        "rmse": np.sqrt(np.divide(*resampling.sums(columns(errors**2)).T)),
        "mae": np.divide(*resampling.sums(columns(np.abs(errors))).T),
        **{key: _correlation(*pair, resampling=resampling) for key, pair in pairs.items()},
    }
    return {key: interval(float(values[0]), values[1:]) for key, values in drawn.items()}


def paired_error_difference(
    answers: FloatArray, ours: FloatArray, theirs: FloatArray, *, resampling: Resampling = ROWS
) -> Score:
    """Our root mean square error minus theirs on the same rows; below zero is better."""
    check_rows(len(answers))
    ours, theirs, rows = resampling.sums(columns((ours - answers) ** 2, (theirs - answers) ** 2)).T
    gaps = np.sqrt(ours / rows) - np.sqrt(theirs / rows)
    return interval(float(gaps[0]), gaps[1:])


def evaluate_numbers(
    predictions: FloatArray, answers: FloatArray, *, split: str, resampling: Resampling
) -> EvalReport:
    """Scores with intervals from (N,) numbers."""
    return EvalReport(
        split=split,
        size=len(answers),
        scores=number_scores(answers, predictions, resampling=resampling),
        predictions=Predictions(predictions[:, None], answers),
    )


def number_details(predictions: FloatArray, answers: FloatArray) -> dict[str, Any]:
    """What the page draws: answers beside predictions, some hundred rows at most, evenly over the range."""
    order = np.argsort(answers, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(POINTS, len(order))).astype(np.int64))]
    return {
        "numbers": [
            {"answer": float(a), "prediction": float(p)}
            for a, p in zip(answers[chosen], predictions[chosen], strict=True)
        ]
    }


def number_verdict(
    *, ours_name: str, best_baseline: str, difference: Score, same_predictions: bool
) -> dict[str, Any]:
    """Whether the model is worth it against the best baseline, and one sentence that says so."""
    baseline = BASELINE_NAMES.get(best_baseline, best_baseline)
    advice = CHEAPER.get(best_baseline, f"use {baseline} if it is cheaper, or label more rows")
    between = interval_in_words(difference, "{:+.3g}".format)
    if same_predictions:
        says = f"{ours_name} gives the same answers as {baseline}, row by row: {advice}."
    elif difference.high < 0:
        says = f"{ours_name} is off by {-difference.value:.3g} less than {baseline}{between}: worth it."
    elif difference.low > 0:
        says = f"{ours_name} is off by {difference.value:.3g} more than {baseline}{between}: don't ship it."
    else:
        says = f"No clear difference: {difference.value:+.3g} in error against {baseline}{between}; {advice}."
    return {
        "best_baseline": best_baseline,
        "metric": "rmse",
        "difference": as_json(difference),
        "worth_it": bool(difference.high < 0 and not same_predictions),
        "says": says,
    }


def quantile_bins(numbers: FloatArray, *, bins: int = 5) -> IntArray:
    """(N,) which fifth of the rows a number is in, to spread rows evenly by."""
    edges = np.quantile(numbers, np.linspace(0, 1, bins + 1)[1:-1]) if len(numbers) else np.zeros(0)
    places = np.searchsorted(np.unique(edges), numbers, side="right").astype(np.int64)
    if len(np.unique(places)) < 2:  # most are the smallest: of the others, too, each part gets some
        places = (numbers > np.min(numbers, initial=np.inf)).astype(np.int64)
    return places


def _correlation(left: FloatArray, right: FloatArray, *, resampling: Resampling) -> FloatArray:
    """Pearson's of (N,) and (N,): (1 + R,), of the rows as they are, then of each resample."""
    x, y = _standardized(left), _standardized(right)
    *sums, rows = resampling.sums(columns(x, y, x * y, x**2, y**2)).T
    mean_x, mean_y, both, square_x, square_y = (one / rows for one in sums)
    deviations = np.sqrt(_spread(square_x, mean_x) * _spread(square_y, mean_y))
    found: FloatArray = np.divide(
        both - mean_x * mean_y, deviations, out=np.zeros_like(rows), where=deviations > 0
    )
    return np.clip(found, -1.0, 1.0)


def _spread(square: FloatArray, mean: FloatArray) -> FloatArray:
    """The variance; 0 where only rounding is left of it."""
    found: FloatArray = square - mean**2
    return np.where(found > ROUNDING * square, found, 0.0)


def _standardized(values: FloatArray) -> FloatArray:
    """With mean 0 and deviation 1; 0 where all are the same."""
    gaps = values / (np.abs(values).max() or 1.0)
    gaps -= gaps.mean()
    deviation = np.sqrt((gaps**2).mean())
    return np.zeros_like(gaps) if deviation <= ROUNDING else gaps / deviation


def _ranks(values: FloatArray) -> FloatArray:
    """Ranks from 0, those of equal values averaged."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle: FloatArray = ends - (counts + 1) / 2
    return middle[place]

"""Scores of a model that answers with a number: how far off it is, and whether it orders the rows rightly.

The root mean square error decides: it is what training minimizes, and the mean of the training rows is the
best constant by it, so that the simplest baseline is the strongest of its kind. Arrays have shape (N,).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gptailor.evaluate.metrics import BASELINE_NAMES, CHEAPER, as_json, check_rows, interval, resampled_rows
from gptailor.types import EvalReport, FloatArray, IntArray, Predictions, Score

POINTS = 400  # of the plot of answers and predictions
ROUNDING = 1e-14  # of the largest number; what is left of equal numbers after rounding is no spread


def root_mean_square_error(answers: FloatArray, predictions: FloatArray) -> float:
    """In the unit of the numbers."""
    return float(np.sqrt(((answers - predictions) ** 2).mean()))


def number_scores(
    answers: FloatArray, predictions: FloatArray, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Root mean square error, mean absolute error, Pearson's and Spearman's correlation, with intervals.

    A correlation with numbers that are all the same is 0. In a resample Spearman's correlation is Pearson's
    of the ranks that the rows have among all.
    """
    check_rows(len(answers))
    ranks = _ranks(answers), _ranks(predictions)
    errors = answers - predictions
    found: dict[str, list[FloatArray]] = {key: [] for key in ("rmse", "mae", "pearson", "spearman")}
    for rows in _drawn(len(answers), resamples=resamples, seed=seed):
        found["rmse"].append(np.sqrt((errors[rows] ** 2).mean(axis=1)))
        found["mae"].append(np.abs(errors[rows]).mean(axis=1))
        found["pearson"].append(_correlation(answers[rows], predictions[rows]))
        found["spearman"].append(_correlation(ranks[0][rows], ranks[1][rows]))
    resampled = {key: np.concatenate(values) for key, values in found.items()}
    return {key: interval(float(values[0]), values[1:]) for key, values in resampled.items()}


def paired_error_difference(
    answers: FloatArray, ours: FloatArray, theirs: FloatArray, *, resamples: int = 2000, seed: int = 0
) -> Score:
    """Our root mean square error minus theirs on the same rows; below zero is better."""
    check_rows(len(answers))
    ours, theirs = (ours - answers) ** 2, (theirs - answers) ** 2
    gaps = np.concatenate(
        [
            np.sqrt(ours[rows].mean(axis=1)) - np.sqrt(theirs[rows].mean(axis=1))
            for rows in _drawn(len(answers), resamples=resamples, seed=seed)
        ]
    )
    return interval(float(gaps[0]), gaps[1:])


def evaluate_numbers(
    predictions: FloatArray, answers: FloatArray, *, split: str, resamples: int, seed: int
) -> EvalReport:
    """Scores with intervals from (N,) numbers."""
    return EvalReport(
        split=split,
        size=len(answers),
        scores=number_scores(answers, predictions, resamples=resamples, seed=seed),
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
    between = f"(95 % interval {difference.low:+.3g} to {difference.high:+.3g})"
    if same_predictions:
        says = f"{ours_name} gives the same answers as {baseline}, row by row: {advice}."
    elif difference.high < 0:
        says = f"{ours_name} is off by {-difference.value:.3g} less than {baseline} {between}: worth it."
    elif difference.low > 0:
        says = f"{ours_name} is off by {difference.value:.3g} more than {baseline} {between}: don't ship it."
    else:
        says = (
            f"No clear difference: {difference.value:+.3g} in error against {baseline} {between}; {advice}."
        )
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
    return np.searchsorted(np.unique(edges), numbers, side="right").astype(np.int64)


def _drawn(size: int, *, resamples: int, seed: int) -> Iterator[IntArray]:
    """All rows once, and then the resamples, so that one pass gives point values and their spread."""
    yield np.arange(size)[None]
    yield from resampled_rows(np.random.default_rng(seed), size, resamples=resamples)


def _correlation(left: FloatArray, right: FloatArray) -> FloatArray:
    """Pearson's, of the last axis."""
    found: FloatArray = (_standardized(left) * _standardized(right)).mean(axis=-1)
    return found


def _standardized(values: FloatArray) -> FloatArray:
    """With mean 0 and deviation 1 over the last axis; 0 where all are the same."""
    largest = np.abs(values).max(axis=-1, keepdims=True)
    gaps = values / np.where(largest > 0, largest, 1.0)
    gaps -= gaps.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((gaps**2).mean(axis=-1, keepdims=True))
    flat = deviation <= ROUNDING
    found: FloatArray = np.where(flat, 0.0, gaps / np.where(flat, 1.0, deviation))
    return found


def _ranks(values: FloatArray) -> FloatArray:
    """Ranks from 0, those of equal values averaged."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    middle: FloatArray = ends - (counts + 1) / 2
    return middle[place]

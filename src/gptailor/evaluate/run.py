"""All the scores of one classifier on one split, from its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gptailor.evaluate.calibrate import (
    at_threshold,
    calibration_noise,
    calibration_scores,
    coverage_curve,
    reliability_bins,
    softmax,
)
from gptailor.evaluate.metrics import classification_scores, confusion_matrix
from gptailor.evaluate.resampling import Resampling
from gptailor.types import EvalReport, FloatArray, IntArray, Predictions

OVERFIT_MARGIN = 0.05  # nats of validation loss over its lowest value that are worth a word


def macro_f1(answers: IntArray, predictions: IntArray, *, num_labels: int) -> float:
    """Mean F1 over the classes that occur in answers or predictions; the point value of the report's."""
    table = confusion_matrix(answers, predictions, num_labels).astype(np.float64)
    sizes = table.sum(axis=0) + table.sum(axis=1)
    seen = sizes > 0
    return float((2 * table.diagonal()[seen] / sizes[seen]).mean())


def evaluate_logits(
    logits: FloatArray,
    answers: IntArray,
    *,
    label_names: Sequence[str],
    split: str,
    temperature: float,
    resampling: Resampling,
) -> EvalReport:
    """Scores with intervals from (N, C) logits and (N,) answers."""
    probabilities = softmax(logits, temperature)
    scores = classification_scores(answers, probabilities.argmax(axis=1), label_names, resampling=resampling)
    calibration = calibration_scores(logits, answers, temperature, resampling=resampling)
    return EvalReport(
        split=split,
        size=len(answers),
        scores={
            **scores,
            "calibration_error": calibration["after"],
            "calibration_error_before": calibration["before"],
        },
        predictions=Predictions(probabilities, answers),
    )


def evaluation_details(
    logits: FloatArray,
    answers: IntArray,
    *,
    label_names: Sequence[str],
    temperature: float,
    threshold: float | None,
    resampling: Resampling,
) -> dict[str, Any]:
    """What the page draws beside the scores: confusion, reliability, coverage."""
    before, after = softmax(logits), softmax(logits, temperature)
    table = confusion_matrix(answers, after.argmax(axis=1), len(label_names))
    pairs = sorted(
        (
            (int(table[i, j]), i, j)
            for i in range(len(table))
            for j in range(len(table))
            if i != j and table[i, j]
        ),
        key=lambda pair: (-pair[0], pair[1], pair[2]),
    )
    return {
        "label_names": list(label_names),
        "confusion": table.tolist(),
        "confused": [
            {"answer": label_names[i], "prediction": label_names[j], "count": count}
            for count, i, j in pairs[:12]
        ],
        "reliability": {
            "before": reliability_bins(before, answers),
            "after": reliability_bins(after, answers),
        },
        "calibration_noise": calibration_noise(after, seed=resampling.seed),
        "coverage": coverage_curve(after, answers),
        "temperature": temperature,
        "threshold": threshold,
        "at_threshold": at_threshold(after, answers, threshold, resampling=resampling),
    }


def overfitting_in_words(
    curves: Sequence[Mapping[str, float]],
    *,
    best_step: int,
    unit: str = "nats",
    refit_steps: int = 0,
    alike: bool = True,
) -> str:
    """What the two loss curves say, in one or two sentences; `unit` is the loss's.

    `alike`: both losses are the same measure, without weights of classes or smoothed targets in one of them,
    so that the gap between them means something.
    """
    if len(curves) < 2:
        return ""
    lowest = min(curves, key=lambda point: point["validation_loss"])
    last = curves[-1]
    rise = last["validation_loss"] - lowest["validation_loss"]
    falls = lowest["train_loss"] - last["train_loss"]
    kept = f"The weights of step {best_step:,} are kept."
    if refit_steps:
        kept = (
            f"Step {best_step:,} was best; then the validation rows were trained on, too, "
            f"from the start, for {refit_steps:,} steps, and those weights are kept."
        )
    if rise > OVERFIT_MARGIN and falls > 0:
        return (
            f"Overfitting from step {lowest['step']:,}: since then the training loss fell by {falls:.2f} "
            f"and the validation loss rose by {rise:.2f} {unit}. {kept}"
        )
    gap = last["validation_loss"] - last["train_loss"]
    if lowest is last:
        return f"No overfitting: the validation loss was still falling at the last step. {kept}"
    if alike and gap > 0.5:
        behind = f"The training loss is {gap:.2f} {unit} under the validation loss"
        return f"{behind}, which no longer falls. {kept}"
    if rise > OVERFIT_MARGIN and falls < -OVERFIT_MARGIN:
        return (
            f"Training went astray after step {lowest['step']:,}: the validation loss rose by {rise:.2f} "
            f"{unit} and the training loss by {-falls:.2f}; a lower learning rate may help. {kept}"
        )
    highest = max(point["validation_loss"] for point in curves if point["step"] >= lowest["step"])
    most = highest - lowest["validation_loss"]
    rose = f"after its lowest the validation loss rose by {most:.2f} {unit} at most"
    return f"No overfitting to speak of: {rose}. {kept}"
